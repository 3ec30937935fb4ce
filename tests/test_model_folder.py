"""Which folders are whole models: told before anything is loaded."""

import json
import shutil

import pytest

from hermes3.evaluate.run import run
from hermes3.model_folder import INDEX, check_model
from hermes3.results.suite import load


@pytest.fixture
def sharded(base, tmp_path):
    """The base model in several files, as large ones are saved."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path, max_shard_size="2MB")
    shutil.copy(base / "chat_template.jinja", tmp_path)
    return tmp_path


def test_whole_models_pass(base, sharded):
    check_model(base)
    check_model(sharded)
    assert len(list(sharded.glob("model-*.safetensors"))) > 2


def test_a_model_without_template_is_refused(llama):
    with pytest.raises(ValueError, match="no chat_template.jinja"):
        check_model(llama)


def test_a_folder_without_weights_is_refused(sharded):
    for file in sharded.glob("model*"):
        file.unlink()
    with pytest.raises(ValueError, match="no model.safetensors.*hermes3 consolidate"):
        check_model(sharded)
    (sharded / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json"):
        check_model(sharded)


def test_an_adapter_is_refused(sharded):
    (sharded / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge-lora.*merged"):
        check_model(sharded)


def test_a_model_with_an_adapter_inside_is_refused(base, sharded):
    """Its parts may be in any shard, and the folder may have no other trace of the adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for file in sharded.glob("model*"):
        file.unlink()
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(sharded, max_shard_size="2MB")
    with pytest.raises(ValueError, match="with an adapter inside.*base_layer"):
        check_model(sharded)


def test_a_missing_shard_is_refused(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"names {shard.name}"):
        check_model(sharded)


def test_a_shard_of_another_model_is_refused(sharded):
    first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=f"{second.name} holds .* and it does not"):
        check_model(sharded)


@pytest.mark.parametrize("left", [4, 100, 100_000])
def test_a_broken_off_copy_is_refused(sharded, left):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{shard.name}.*again"):
        check_model(sharded)


def test_evaluation_refuses_before_it_starts(sharded, tmp_path):
    index = json.loads((sharded / INDEX).read_text())
    (sharded / next(iter(index["weight_map"].values()))).unlink()
    with pytest.raises(ValueError, match="missing"):
        run(sharded, tmp_path / "out", load("tiny"))
