"""The quick engine's ids are the tokenizer's own."""

import json
import random

import pytest
from conftest import ROOT, real_rows

from hermes3.chat.encode import Encoder, as_tiktoken

# blanks in runs, numerals, letters with marks, scripts, tags, control tokens, contractions
PIECES = [" ", "  ", "\n", "\t", "\r\n", "a", "Z", "0", "123", "é", "ß", "中", "😀", "\u0301", "\u200b", "'s", "'S"]
PIECES += ["<tool_call>", "</tool_call>", "<", "<|im_end|>", "<|eot_id|>", "<SCRATCHPAD>", "=", "-", "####", "_", "."]
PIECES += ["ſ", "\u3000", "ﷺ", "x" * 7, " " * 90, "\n" * 70, "\t" * 33, " the", "Köln"]


def strings() -> list[str]:
    rng = random.Random(0)
    random_ones = ["".join(rng.choices(PIECES, k=rng.randint(0, 40))) for _ in range(12_000)]
    random_ones += ["".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(rng.randint(0, 60))) for _ in range(3_000)]
    return random_ones + [piece * n for n in range(300) for piece in (" ", "\n", "\t", "a", "=", " \n", "-")]


def assert_equal(folder, texts: list[str]) -> None:
    quick, own = Encoder.load(folder), Encoder.load(folder)
    own._tiktoken = None
    assert (quick.engine, own.engine) == ("tiktoken", "tokenizers")
    for ours, theirs in zip(quick(texts), own(texts), strict=True):
        assert (ours == theirs).all()


def test_llama_3_1_ids_are_equal_on_17_000_random_strings(hermes_llama):
    assert_equal(hermes_llama, strings())


@pytest.mark.skipif(not (ROOT.parent / "shared/data").is_dir(), reason="needs the real files")
def test_llama_3_1_ids_are_equal_on_real_conversations(hermes_llama):
    texts = [message["content"] for row in real_rows() for message in row["messages"]]
    assert len(texts) > 20_000
    assert_equal(hermes_llama, texts)


def test_a_vocabulary_that_is_not_tiktoken_s_keeps_its_own_engine(base, hermes_llama):
    assert Encoder.load(base).engine == "tokenizers"
    data = json.loads((hermes_llama / "tokenizer.json").read_text(encoding="utf-8"))
    assert as_tiktoken(data, {}) is not None
    merges = data["model"]["merges"]
    assert as_tiktoken(data | {"model": data["model"] | {"merges": merges[:-1]}}, {}) is None
    assert as_tiktoken(data | {"model": data["model"] | {"merges": [merges[1], merges[0], *merges[2:]]}}, {}) is None
    assert as_tiktoken(data | {"normalizer": {"type": "NFC"}}, {}) is None
    ids = Encoder.load(hermes_llama).ids
    assert (ids["<|im_start|>"], ids["<|im_end|>"], ids["<tool_call>"]) == (128002, 128003, 128012)
