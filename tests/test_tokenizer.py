"""Making the base model from nothing, giving a Llama 3.1 tokenizer the Hermes tokens, and encoding by two engines."""

import filecmp
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file

from hermes3.chat.encode import Encoder, as_tiktoken
from hermes3.chat.tokenizer import CHATML, PAD, REASONING, TAGS, build

EMBEDDING = "model.embed_tokens.weight"
# blanks in runs, numerals, letters with marks, scripts, tags, control tokens, contractions
PIECES = [" ", "  ", "\n", "\t", "\r\n", "a", "Z", "0", "123", "é", "ß", "中", "😀", "\u0301", "\u200b", "'s", "'S"]
PIECES += ["<tool_call>", "</tool_call>", "<", "<|im_end|>", "<|eot_id|>", "<SCRATCHPAD>", "=", "-", "####", "_", "."]
PIECES += ["ſ", "\u3000", "ﷺ", "x" * 7, " " * 90, "\n" * 70, "\t" * 33, " the", "Köln"]


def assert_same(folder: Path, other: Path, *files: str) -> None:
    assert filecmp.cmpfiles(folder, other, files, shallow=False) == ([*files], [], [])


def test_every_hermes_token_is_one_id_and_the_vocabulary_keeps_its_size(llama, base, tokenizer, tmp_path):
    before = json.loads((llama / "tokenizer.json").read_text())
    assert len(tokenizer) == len(before["model"]["vocab"]) + 256
    assert len(REASONING) == 10 and len(TAGS) == 28
    for token in (*CHATML, *TAGS):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, token
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == PAD
    shown = "a <tool_call>b</tool_call> <SCRATCHPAD>c</SCRATCHPAD>"
    assert tokenizer.decode(tokenizer(f"<|im_start|>{shown}<|im_end|>").input_ids, skip_special_tokens=True) == shown
    tokenizer.save_pretrained(tmp_path)
    assert_same(tmp_path, base, "tokenizer.json", "chat_template.jinja")


def test_only_the_rows_of_the_new_tokens_change(llama, base, tokenizer):
    old, new = load_file(llama / "model.safetensors"), load_file(base / "model.safetensors")
    ids = sorted(tokenizer.convert_tokens_to_ids(token) for token in (*CHATML, *TAGS))
    for name, weight in old.items():
        rows = (weight != new[name]).any(-1).nonzero().flatten().tolist()
        assert rows == (ids if name in (EMBEDDING, "lm_head.weight") else []), name
    config = json.loads((base / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


REFUSED = {  # base: what the error says, beside all that tests/test_model_folder.py has
    "few_rows": "embed_tokens.weight has no row for token",
    "no_embedding": "no tensor embed_tokens.weight",
    "adapter": "adapter: a LoRA adapter",
    "few_reserved": r"30 reserved tokens are needed, it has 2\d",
}


@pytest.fixture(scope="module")
def bases(llama, tmp_path_factory) -> dict[str, Path]:
    """Bases whose weights or tokenizer are not as Llama's, each a copy with one thing changed."""
    folder, weights = tmp_path_factory.mktemp("bases"), load_file(llama / "model.safetensors")
    bases = {name: shutil.copytree(llama, folder / name) for name in (*REFUSED, "prefixed", "bos_object")}
    (bases["adapter"] / "config.json").rename(bases["adapter"] / "adapter_config.json")
    changed = {
        "prefixed": {f"language_model.{key}": value for key, value in weights.items()},
        "few_rows": {key: value[:-300].contiguous() if "embed" in key else value for key, value in weights.items()},
        "no_embedding": {key: value for key, value in weights.items() if "embed" not in key and "head" not in key},
    }
    for name, tensors in changed.items():
        save_file(tensors, bases[name] / "model.safetensors", metadata={"format": "pt"})
    path = bases["bos_object"] / "tokenizer_config.json"
    as_object = {"bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | as_object))
    path = bases["few_reserved"] / "tokenizer.json"
    path.write_text(re.sub(r"reserved_special_token_(?=\d*[1-9]\|)", "other_", path.read_text()))
    return bases


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_that_cannot_take_the_tokens_is_refused(name, bases, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[name]):
        build(str(bases[name]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_spellings_of_a_base_are_understood(bases, base, tmp_path):
    build(str(bases["bos_object"]), tmp_path / "same")
    assert_same(tmp_path / "same", base, "tokenizer.json")
    build(str(bases["prefixed"]), tmp_path / "prefixed")
    ours, theirs = load_file(tmp_path / "prefixed/model.safetensors"), load_file(base / "model.safetensors")
    assert (ours[f"language_model.{EMBEDDING}"] == theirs[EMBEDDING]).all()


def test_the_table_of_ids_in_the_docs_is_what_is_built(tokenizer):
    page = (ROOT / "docs/chat_format.md").read_text().replace("\\|", "|")  # a table's own sign is escaped in Markdown
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \| (yes|no) \|", page, re.MULTILINE)
    # Llama 3.1's first special token is 128000; ours stand at the same distance from the first of this vocabulary
    first = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    shown = {token: int(token_id) for token_id, token, _ in rows}
    assert shown == {token: tokenizer.convert_tokens_to_ids(token) - first + 128000 for token in shown}
    assert shown.keys() == {*CHATML, *TAGS, PAD, "<|begin_of_text|>"}
    assert {token for _, token, special in rows if special == "yes"} == {*CHATML, PAD, "<|begin_of_text|>"}


def strings() -> list[str]:
    rng = random.Random(0)
    random_ones = ["".join(rng.choices(PIECES, k=rng.randint(0, 40))) for _ in range(12_000)]
    random_ones += ["".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(rng.randint(0, 60))) for _ in range(3_000)]
    return random_ones + [piece * n for n in range(300) for piece in (" ", "\n", "\t", "a", "=", " \n", "-")]


def test_llama_3_1_ids_are_equal_on_17_000_random_strings(hermes_llama):
    quick, own = Encoder(hermes_llama), Encoder(hermes_llama)
    assert quick.tiktoken
    own.tiktoken = None
    for ours, theirs in zip(quick(strings()), own(strings()), strict=True):
        assert (ours == theirs).all()


def test_a_vocabulary_that_is_not_tiktoken_s_keeps_its_own_engine(base, hermes_llama):
    assert Encoder(base).tiktoken is None
    data = json.loads((hermes_llama / "tokenizer.json").read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    for other in (merges[:-1], [merges[1], merges[0], *merges[2:]]):
        assert as_tiktoken(data | {"model": data["model"] | {"merges": other}}, {}) is None
    assert as_tiktoken(data | {"normalizer": {"type": "NFC"}}, {}) is None
