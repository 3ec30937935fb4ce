"""Texts to token ids, by the quickest engine that gives the tokenizer's own ids: gigatoken, sixty times as fast
(docs/benchmarks.md), where it gives the same ids for texts of every word of the vocabulary; else the own one."""

import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hermes3.files import UserError

FEW = 4_000_000  # characters: of fewer, gigatoken takes longer to make and to test (1.5 s) than it saves


class Encoder:
    """The tokenizer of a folder as it trains: a control token that a person typed is text, a tag is one token."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(f"{path}: not a tokenizer ({error}); make it with `hermes3 tokenizer build`") from None
        self.tokenizer.encode_special_tokens = True
        added = dict(sorted(self.tokenizer.get_added_tokens_decoder().items()))
        self.ids = {token.content: i for i, token in added.items()}
        self.control = [token.content for token in added.values() if token.special]
        self.tags = frozenset(self.ids.keys() - self.control)
        self.n_characters = 0  # encoded so far

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, (self.folder,)

    @cached_property
    def gigatoken(self) -> Any:
        """gigatoken's form of the tokenizer; None where it cannot read it, or its ids differ in `every_word`."""
        from gigatoken import Tokenizer as Gigatoken

        data = json.loads(self.tokenizer.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if not token["special"]]
        try:
            quick = Gigatoken.from_json(json.dumps(data))
        except RuntimeError:
            return None
        texts = every_word(self.tokenizer)
        pairs = zip(_by_gigatoken(quick, texts), _by_tokenizers(self.tokenizer, texts), strict=True)
        return quick if all(np.array_equal(*pair) for pair in pairs) else None

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids one after another, int32[n_tokens], and how many are each text's, int64[n_texts]."""
        self.n_characters += sum(map(len, texts))
        if (self.n_characters > FEW or "gigatoken" in vars(self)) and self.gigatoken:
            return _by_gigatoken(self.gigatoken, texts)
        return _by_tokenizers(self.tokenizer, texts)


def every_word(tokenizer: Tokenizer) -> list[str]:
    """Texts of 64 words each that together hold every word of the vocabulary, in a drawn order."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    random.Random(0).shuffle(ids)
    return tokenizer.decode_batch([ids[start : start + 64] for start in range(0, len(ids), 64)])


def _by_gigatoken(quick: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = quick.encode_batch(texts, parallel=False).layout
    return np.asarray(encoded.content.data).astype(np.int32), np.diff(encoded.offsets.data)


def _by_tokenizers(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter((i for ids in encoded for i in ids), np.int32, int(lengths.sum())), lengths
