"""Giving a Llama 3.1 tokenizer the Hermes tokens, encoding by two engines, and which folders are whole models."""

import filecmp
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from gigatoken import Tokenizer as Gigatoken
from safetensors.torch import load_file, save_file

from hermes3.chat.encode import Encoder, every_word
from hermes3.chat.tokenizer import CHATML, PAD, TAGS, build
from hermes3.model_folder import INDEX, check_model

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


def resave(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def edit(file: Path, old: str, new: str) -> None:
    text, count = re.subn(old, new, file.read_text())
    assert count
    file.write_text(text)


REFUSED = [  # what is done to a base, and what the error says, beside all of HARMS
    (lambda base: resave(base, lambda old: old | {EMBEDDING: old[EMBEDDING][:9].contiguous()}), "no row for token"),
    (lambda base: resave(base, lambda tensors: {"lm_head": tensors[EMBEDDING]}), "no tensor embed_tokens.weight"),
    (lambda base: (base / "config.json").rename(base / "adapter_config.json"), "base: a LoRA adapter"),
    (lambda base: edit(base / "tokenizer.json", r"reserved_special_token_(?=\d*[1-9]\|)", "x_"), "30 .*, it has 2"),
    (lambda base: edit(base / "tokenizer.json", r"<\|eot_id\|>", "<|im_end|>"), "<.im_end.> is there already"),
]


@pytest.mark.parametrize(("harm", "message"), REFUSED)
def test_a_base_that_cannot_take_the_tokens_is_refused(harm, message, llama, tmp_path):
    harm(shutil.copytree(llama, tmp_path / "base"))
    with pytest.raises(ValueError, match=message):
        build(str(tmp_path / "base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_spellings_of_a_base_are_understood(llama, base, tmp_path):
    odd = shutil.copytree(llama, tmp_path / "odd")
    edit(odd / "tokenizer_config.json", r'("bos_token":) (".*?")', r'\1 {"__type": "AddedToken", "content": \2}')
    resave(odd, lambda weights: {f"language_model.{key}": value for key, value in weights.items()})
    build(str(odd), tmp_path / "out")
    assert_same(tmp_path / "out", base, "tokenizer.json")
    ours, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(base / "model.safetensors")
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


def test_llama_3_1_ids_are_equal_on_17_000_random_strings(hermes_llama):
    quick, own = Encoder(hermes_llama), Encoder(hermes_llama)
    assert quick.gigatoken
    own.gigatoken, rng = None, random.Random(0)
    strings = ["".join(rng.choices(PIECES, k=rng.randint(0, 40))) for _ in range(12_000)]
    strings += ["".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(rng.randint(0, 60))) for _ in range(3_000)]
    strings += [piece * n for n in range(300) for piece in (" ", "\n", "\t", "a", "=", " \n", "-")]
    for ours, theirs in zip(quick(strings), own(strings), strict=True):
        assert (ours == theirs).all()


def test_a_tokenizer_that_gigatoken_reads_otherwise_keeps_its_own_engine(hermes_llama, tmp_path, monkeypatch):
    own = Encoder(hermes_llama)
    texts = every_word(own.tokenizer)
    words = own.tokenizer.get_vocab(with_added_tokens=False).values()
    assert len(texts) == -(-len(words) // 64)
    for change in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "Whitespace"}}):
        data = json.loads((hermes_llama / "tokenizer.json").read_text(encoding="utf-8"))
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | change), encoding="utf-8")
        assert Encoder(tmp_path).gigatoken is None
    encode = Gigatoken.encode_batch
    wrong = lambda self, texts, **options: encode(self, [texts[0] + "a", *texts[1:]], **options)  # noqa: E731
    monkeypatch.setattr(Gigatoken, "encode_batch", wrong)
    assert Encoder(hermes_llama).gigatoken is None


@pytest.fixture
def sharded(base, tmp_path) -> Path:
    """The base model in two files, as large ones are saved."""
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    add_shard(tmp_path, 1, {name: weights[name] for name in names[::2]})
    add_shard(tmp_path, 2, {name: weights[name] for name in names[1::2]})
    for file in ("config.json", "chat_template.jinja"):
        shutil.copy(base / file, tmp_path)
    check_model(tmp_path)
    return tmp_path


def add_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> None:
    file, index = f"model-{number}.safetensors", folder / INDEX
    save_file(tensors, folder / file)
    before = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    index.write_text(json.dumps({"weight_map": before | dict.fromkeys(tensors, file)}))


HARMS = [
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat_template.jinja"),
    (lambda folder: (folder / INDEX).unlink(), "no model.safetensors.*hermes3 consolidate"),
    (lambda folder: (folder / "model-2.safetensors").unlink(), "model-2.safetensors: .*again"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge-lora.*merged"),
    (lambda folder: add_shard(folder, 3, {"q.base_layer.weight": torch.zeros(1)}), "adapter inside .q.base_layer"),
    (lambda folder: save_file({}, folder / "model-2.safetensors"), "model-2.safetensors holds .* and it does not"),
    (lambda folder: os.truncate(folder / "model-1.safetensors", 100_000), "model-1.safetensors: .*again"),
]


@pytest.mark.parametrize(("harm", "message"), HARMS)
def test_a_folder_that_is_no_whole_model_is_refused(harm, message, sharded):
    harm(sharded)
    with pytest.raises(ValueError, match=message):
        check_model(sharded)
