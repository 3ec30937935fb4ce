"""Words of many texts as arrays, so that their n-grams can be hashed and compared without a loop over words.

A word is a run of letters, digits and non-ASCII bytes of the lower-cased UTF-8 text. Hashes are polynomials modulo
2^64: prefix sums give the hash of every run of bytes, and again of every run of words, at memory speed.
"""

from functools import cache

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_IN_WORD = np.zeros(256, bool)
_IN_WORD[[*b"0123456789abcdefghijklmnopqrstuvwxyz", *range(128, 256)]] = True


@cache
def _powers(base: int, n: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.concatenate(([np.uint64(1)], np.cumprod(np.full(n - 1, base, np.uint64))))


def mix(x: np.ndarray) -> np.ndarray:
    """Spread a hash over all of its 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class _Runs:
    """Hashes of runs of `values`, which do not depend on where the run lies."""

    def __init__(self, values: np.ndarray):
        self.size = 1 << int(len(values)).bit_length()  # few sizes, so that few tables of powers are kept
        with np.errstate(over="ignore"):
            sums = np.cumsum(values * _powers(_BASE, self.size)[: len(values)], dtype=np.uint64)
        self.sums = np.concatenate(([np.uint64(0)], sums))

    def hash(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return mix((self.sums[end] - self.sums[start]) * _powers(_INVERSE, self.size)[start])


class Words:
    """The words of `texts`: `text_of` int32[n_words], the text of each; `start`, `end` int64[n_words], in bytes."""

    def __init__(self, texts: list[str]):
        lowered = [text.lower().encode("utf-8", "replace") for text in texts]
        self.joined = b"\n".join(lowered)
        data = np.frombuffer(self.joined, np.uint8)
        inside = _IN_WORD[data]
        edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
        self.start, self.end = edges[::2], edges[1::2]
        self.runs = _Runs(_Runs(data.astype(np.uint64)).hash(self.start, self.end))
        ends = np.cumsum([len(text) + 1 for text in lowered])
        self.text_of = np.searchsorted(ends, self.start, side="right").astype(np.int32)

    def __len__(self) -> int:
        return len(self.start)

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each run of n words within one text begins, int64[n_grams], and its hash, uint64[n_grams]."""
        return self.at(np.arange(len(self)), n)

    def at(self, at: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the word numbers `at` from which n words follow within one text, and the hashes of these words."""
        at = at[at + n <= len(self)]
        at = at[self.text_of[at] == self.text_of[at + n - 1]]
        return at, self.runs.hash(at, at + n)

    def phrase(self, at: int, n: int) -> str:
        """The n words from number `at` on, as they are compared."""
        words = (self.joined[self.start[i] : self.end[i]] for i in range(at, at + n))
        return b" ".join(words).decode("utf-8", "replace")
