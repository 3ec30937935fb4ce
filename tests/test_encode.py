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


def real_texts() -> list[str]:
    if not (ROOT.parent / "shared/data").is_dir():
        pytest.skip("needs the real files")
    return [message["content"] for row in real_rows() for message in row["messages"]]


@pytest.mark.parametrize("texts", [strings, real_texts])
def test_llama_3_1_ids_are_equal(texts, hermes_llama):
    quick, own = Encoder(hermes_llama), Encoder(hermes_llama)
    assert quick.tiktoken
    own.tiktoken = None
    for ours, theirs in zip(quick(texts()), own(texts()), strict=True):
        assert (ours == theirs).all()


def test_a_vocabulary_that_is_not_tiktoken_s_keeps_its_own_engine(base, hermes_llama):
    assert Encoder(base).tiktoken is None
    data = json.loads((hermes_llama / "tokenizer.json").read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    for other in (merges[:-1], [merges[1], merges[0], *merges[2:]]):
        assert as_tiktoken(data | {"model": data["model"] | {"merges": other}}, {}) is None
    assert as_tiktoken(data | {"normalizer": {"type": "NFC"}}, {}) is None
