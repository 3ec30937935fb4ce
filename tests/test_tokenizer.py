"""Making the base model from nothing, and giving a Llama 3.1 tokenizer the Hermes tokens."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from data_mixes.samples import tiny_base
from hermes3.chat.tokenizer import CHATML, PAD, REASONING, TAGS, build


def test_special_tokens_stand_in_llama_s_order():
    tokens = tiny_base.special_tokens()
    assert len(tokens) == 256
    names = "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id"
    names += " reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag"
    assert tokens[:11] == [f"<|{name}|>" for name in names.split()]
    assert tokens[11] == "<|reserved_special_token_3|>" and tokens[255] == "<|reserved_special_token_247|>"


def test_the_base_is_small_and_made_alike_twice(llama, corpus, tmp_path):
    parameters, vocabulary = tiny_base.build(tmp_path / "again", corpus)
    assert 2e6 <= parameters <= 8e6
    assert vocabulary > 3000
    for file in ("tokenizer.json", "model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (llama / file).read_bytes(), file


def test_every_hermes_token_is_one_id_and_the_vocabulary_keeps_its_size(llama, tokenizer):
    before = json.loads((llama / "tokenizer.json").read_text())
    assert len(tokenizer) == len(before["model"]["vocab"]) + 256
    assert len(REASONING) == 10 and len(TAGS) == 28
    for token in (*CHATML, *TAGS):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, token
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == PAD
    ids = tokenizer("<|im_start|>a <tool_call>b</tool_call> <SCRATCHPAD>c</SCRATCHPAD><|im_end|>")["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == "a <tool_call>b</tool_call> <SCRATCHPAD>c</SCRATCHPAD>"


def test_saved_again_it_stays_the_same(base, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / file).read_bytes() == (base / file).read_bytes(), file


def test_only_the_rows_of_the_new_tokens_change(llama, base, tokenizer):
    from safetensors.torch import load_file

    old, new = load_file(llama / "model.safetensors"), load_file(base / "model.safetensors")
    ids = sorted(tokenizer.convert_tokens_to_ids(token) for token in (*CHATML, *TAGS))
    for name, weight in old.items():
        rows = (weight != new[name]).any(-1).nonzero().flatten().tolist()
        assert rows == (ids if name in ("model.embed_tokens.weight", "lm_head.weight") else []), name
    assert json.loads((base / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_too_few_reserved_tokens_is_said_with_the_number(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "poor")
    file = tmp_path / "poor/tokenizer.json"
    data = json.loads(file.read_text())
    data["added_tokens"] = [t for t in data["added_tokens"] if "reserved" not in t["content"] or t["id"] % 10 == 0]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"30 reserved tokens are needed, it has 2\d"):
        build(str(tmp_path / "poor"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no such folder"):
        build(str(tmp_path / "none"), tmp_path / "out")


def odd_bases(llama: Path, folder: Path) -> dict[str, Path]:
    """Bases whose weights or tokenizer are not as Llama's, each a copy with one thing changed."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    names = ("bin_only", "prefixed", "adapter", "bos_object", "few_rows", "no_embedding", "no_weights", "lost_shard")
    bases = {name: shutil.copytree(llama, folder / name) for name in names}
    torch.save(weights, bases["bin_only"] / "pytorch_model.bin")
    for name in ("bin_only", "no_weights"):
        (bases[name] / "model.safetensors").unlink()
    (bases["adapter"] / "model.safetensors").rename(bases["adapter"] / "adapter_model.safetensors")
    changed = {
        "prefixed": {f"language_model.{key}": value for key, value in weights.items()},
        "few_rows": {key: value[:-300].contiguous() if "embed" in key else value for key, value in weights.items()},
        "no_embedding": {key: value for key, value in weights.items() if "embed" not in key and "head" not in key},
    }
    for name, tensors in changed.items():
        save_file(tensors, bases[name] / "model.safetensors", metadata={"format": "pt"})
    path = bases["bos_object"] / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"bos_token": {"__type": "AddedToken", "content": config["bos_token"]}}))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (bases["lost_shard"] / "model.safetensors.index.json").write_text(json.dumps(index))
    return bases


def test_an_odd_base_gives_rows_to_the_new_tokens_or_is_refused(llama, base, tmp_path):
    from safetensors.torch import load_file

    bases = odd_bases(llama, tmp_path)
    refused = {
        "bin_only": "no weights in model.*only pytorch_model.bin",
        "adapter": "no weights in model.*only adapter_model.safetensors",
        "no_weights": "no weights in model.*a config.json alone",
        "few_rows": "embed_tokens.weight has no row for token",
        "no_embedding": "no tensor embed_tokens.weight",
        "lost_shard": "names model-00001-of-00002.safetensors, which is not there",
    }
    for name, message in refused.items():
        with pytest.raises(ValueError, match=message):
            build(str(bases[name]), tmp_path / "out")
        assert not (tmp_path / "out").exists(), name
    build(str(bases["bos_object"]), tmp_path / "same")
    assert (tmp_path / "same/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    build(str(bases["prefixed"]), tmp_path / "prefixed_out")
    ours, theirs = load_file(tmp_path / "prefixed_out/model.safetensors"), load_file(base / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert (ours[f"language_model.{name}"] == theirs[name]).all()


def test_the_table_of_ids_in_the_docs_is_what_is_built(tokenizer):
    page = (ROOT / "docs/chat_format.md").read_text().replace("\\|", "|")  # a table's own sign is escaped in Markdown
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \| (yes|no) \|", page, re.MULTILINE)
    # Llama 3.1's first special token is 128000; ours stand at the same distance from the first of this vocabulary
    first = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    expected = {token: tokenizer.convert_tokens_to_ids(token) - first + 128000 for token in (*CHATML, *TAGS)}
    shown = {token: int(token_id) for token_id, token, _ in rows}
    assert {token: shown[token] for token in expected} == expected
    assert {token for _, token, special in rows if special == "yes"} == {*CHATML, PAD, "<|begin_of_text|>"}
