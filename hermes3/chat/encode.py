"""Texts to token ids, by the quickest engine that gives the tokenizer's own ids: tiktoken, three times as fast, where
the merges of a byte-level BPE are all the ways to build its tokens, as in Llama 3's vocabulary; else the own one."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hermes3.files import UserError

FEW = 1_000_000  # characters: of fewer, tiktoken takes longer to make (1.2 s) than it saves


class Encoder:
    """The tokenizer of a folder as it trains: a control token that a person typed is text, a tag is one token."""

    def __init__(self, folder: Path):
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

    @cached_property
    def tiktoken(self) -> Any:
        """tiktoken's form of the tokenizer, or None."""
        tags = {token: i for token, i in self.ids.items() if token in self.tags}
        return as_tiktoken(json.loads(self.tokenizer.to_str()), tags)

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids one after another, int32[n_tokens], and how many are each text's, int64[n_texts]."""
        self.n_characters += sum(map(len, texts))
        if (self.n_characters > FEW or "tiktoken" in vars(self)) and self.tiktoken:
            encode, none = self.tiktoken._core_bpe.encode_to_tiktoken_buffer, frozenset()
            buffers = [memoryview(encode(text, self.tags if "<" in text else none)) for text in texts]
            ids = np.frombuffer(b"".join(buffers), np.uint32).astype(np.int32)
            return ids, np.fromiter((buffer.nbytes // 4 for buffer in buffers), np.int64, len(buffers))
        encoded = [one.ids for one in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter((i for ids in encoded for i in ids), np.int32, int(lengths.sum())), lengths


def as_tiktoken(data: dict[str, Any], tags: dict[str, int]) -> Any:
    """tiktoken's form of a `tokenizer.json`, `tags` as its special tokens; None unless the ids are sure to be equal."""
    model, steps = data["model"], (data.get("pre_tokenizer") or {}).get("pretokenizers", [])
    bytewise = (
        data.get("normalizer") is None
        and model["type"] == "BPE"
        and model.get("ignore_merges")
        and not any(model.get(key) for key in ("dropout", "byte_fallback", "continuing_subword_prefix", "fuse_unk"))
        and [step["type"] for step in steps] == ["Split", "ByteLevel"]
        and (steps[0]["behavior"], steps[0]["invert"]) == ("Isolated", False)
        and not (steps[1]["add_prefix_space"] or steps[1]["use_regex"])
    )
    if not bytewise or any(token["normalized"] or token["lstrip"] or token["rstrip"] for token in data["added_tokens"]):
        return None
    # the GPT-2 alphabet: the byte that each character of a byte-level vocabulary stands for
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted({*range(256)} - {*visible})
    alphabet = dict(zip([*visible, *range(256, 256 + len(hidden))], visible + hidden, strict=True))

    def as_bytes(token: str) -> bytes:
        return token.translate(alphabet).encode("latin-1")

    ranks = {as_bytes(token): i for token, i in model["vocab"].items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += sorted(halves, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    own = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    if merges != [(as_bytes(left), as_bytes(right)) for left, right in own]:
        return None
    from tiktoken import Encoding

    return Encoding("hermes", pat_str=steps[0]["pattern"]["Regex"], mergeable_ranks=ranks, special_tokens=tags)
