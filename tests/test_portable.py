"""What transformers 5 saves, as transformers 4 will read it. Version 4 itself runs in `make quantize-check`."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from hermes3 import portable
from hermes3.evaluate.run import run
from hermes3.results.suite import load

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def transformers_alone(monkeypatch):
    """Our plugin, registered by another test, mends what its process saves."""
    for kind in (PretrainedConfig, PreTrainedTokenizerBase):
        saves = kind.save_pretrained
        monkeypatch.setattr(kind, "save_pretrained", getattr(saves, "__wrapped__", saves))


@pytest.fixture
def llama31(tmp_path):
    """A model folder as transformers 5 saves it, with Llama 3.1's rotary embedding."""
    config = LlamaConfig(**SHAPE, vocab_size=64, rope_parameters=LLAMA31 | {"rope_theta": 500000.0})
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_transformers_5_alone_leaves_the_older_names_out(llama31):
    """Once this fails, `hermes3.portable` can go."""
    assert "rope_theta" not in config_of(llama31) and "rope_scaling" not in config_of(llama31)
    with pytest.raises(ValueError, match="rope_theta is not 500000.0.*python -m hermes3.portable"):
        portable.check(llama31)


def test_both_names_say_the_same(llama31):
    written = config_of(llama31)
    portable.mend(llama31)
    portable.check(llama31)
    assert config_of(llama31) == written | {"rope_theta": 500000.0, "rope_scaling": LLAMA31}
    portable.mend(llama31)  # again: as before
    portable.check(llama31)


def test_transformers_5_reads_what_it_read_before(llama31):
    before, ids = LlamaForCausalLM.from_pretrained(llama31), torch.arange(50)[None]
    portable.mend(llama31)
    after = LlamaForCausalLM.from_pretrained(llama31)
    assert after.config.rope_parameters == before.config.rope_parameters
    assert torch.equal(after(ids).logits, before(ids).logits)


def test_a_scaling_that_contradicts_is_refused(llama31):
    portable.mend(llama31)
    changed = config_of(llama31) | {"rope_scaling": LLAMA31 | {"factor": 32.0}}
    (llama31 / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="rope_scaling"):
        portable.check(llama31)


def test_saving_is_mended_in_the_whole_process(base, tmp_path):
    portable.save_portably()
    portable.save_portably()  # a plugin may register twice
    AutoConfig.from_pretrained(base).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    assert config_of(tmp_path)["rope_theta"] == 500000.0
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == portable.TOKENIZER_CLASS
    portable.check(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


def test_a_tokenizer_that_vllm_does_not_know_is_refused(base, tmp_path):
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_class TokenizersBackend"):
        portable.check(tmp_path)
    portable.mend(tmp_path)
    portable.check(tmp_path)


def test_vllm_is_not_given_such_a_folder(base, llama31):
    for file in [*base.glob("tokenizer*"), *base.glob("*.jinja")]:
        (llama31 / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="rope_theta"):
        run(llama31, llama31 / "out", load("tiny"), backend="vllm")


def test_the_hermes_tokenizer_is_written_so(base):
    assert json.loads((base / "tokenizer_config.json").read_text())["tokenizer_class"] == portable.TOKENIZER_CLASS
    portable.check(base)
