"""Words of many texts as arrays: their n-grams are hashed by prefix sums of polynomials modulo 2^64, without a loop.

A word is a run of letters, marks and digits; of a script that is written without blanks (Chinese, Japanese, Thai ...)
each character is one.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_WORD, _SIGN = 1, 2
# of bytes: a part of a word, a sign, or neither
_KINDS = bytes(_WORD if i > 127 or chr(i).isalnum() else _SIGN if 32 < i < 127 else 0 for i in range(256))
_ASCII = bytes(range(128))
_INDENT = re.compile(rb"\n[ \t]++(?![\r\n])")  # a lookbehind takes five times as long
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[ntr])")
# scripts, by the names of their characters
_WITHOUT_BLANKS = ("CJK ", "HIRAGANA ", "KATAKANA ", "HALFWIDTH KATAKANA ", "BOPOMOFO ", "YI SYLLABLE ", "THAI ")
_WITHOUT_BLANKS += ("LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")


def beyond_ascii(text: bytes) -> set[str]:
    """The different characters beyond ASCII in UTF-8, found six times as fast as in a loop over them all."""
    return {*text.translate(None, _ASCII).decode("utf-8", "surrogatepass")}


def _spelling(signs: str, hidden: str) -> Callable[[str], str]:
    """What rewrites characters beyond ASCII: `signs`, those of no width as `hidden`, those of some scripts apart."""

    @cache
    def spelt(char: str) -> str:
        kind = unicodedata.category(char)
        if kind == "Cf" or "\ufe00" <= char <= "\ufe0f":  # of no width: joiners, soft hyphens, directions, variants
            return hidden
        if kind[0] in "LMN":
            return f" {char} " if unicodedata.name(char, "").startswith(_WITHOUT_BLANKS) else char
        return signs.format(char) if kind[0] in "PS" else " "

    def spell(text: str) -> str:
        for char in beyond_ascii(text.encode("utf-8", "surrogatepass")):
            if (other := spelt(char)) != char:  # most stay as they are
                text = text.replace(char, other)
        return text

    return spell


_FOLDED, _FOLDED_APART = _spelling(" ", ""), _spelling(" ", " ")
written = _spelling(" {} ", "")  # each sign as a word of its own


def folded(text: str) -> list[str]:
    """The words of `text` in lower case after NFKC, escapes of JSON and HTML as what they stand for.

    A hidden character may stand within a word or for a blank: one spelling takes it out, another splits there."""
    if "\\" in text:
        text = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else " ", text)
    if "&" in text:
        text = html.unescape(text)
    if text.isascii():
        return [text.lower()]
    text = unicodedata.normalize("NFKC", text).casefold()
    return list(dict.fromkeys([_FOLDED(text), _FOLDED_APART(text)]))


@cache
def _powers(base: int, n: int) -> np.ndarray:
    return np.concatenate(([np.uint64(1)], np.cumprod(np.full(n - 1, base, np.uint64))))


def mix(x: np.ndarray) -> np.ndarray:
    """Spread a hash over all of its 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _runs(values: np.ndarray) -> Callable[[Any, Any], np.ndarray]:
    """What hashes the runs of `values` (whole numbers) from their starts to their ends: arrays of places, or slices."""
    size = 1 << int(len(values)).bit_length()  # few sizes, so that few tables of powers are kept
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(np.multiply(values, _powers(_BASE, size)[: len(values)], out=sums[1:]), out=sums[1:])
    return lambda start, end: mix((sums[end] - sums[start]) * _powers(_INVERSE, size)[start])


class Words:
    """The words of `texts`: `text_of` int64[n_words], the text of each; `start`, `end` int64[n_words], in bytes.

    `signs`: every sign counts as a word, and so does the indentation of a line."""

    def __init__(self, texts: list[str], signs: bool = False):
        encoded = [text.encode("utf-8", "replace") for text in texts]
        self.joined = b"\n".join([b"", *encoded, b""])
        kinds = np.frombuffer(self.joined.translate(_KINDS), np.uint8)
        inside = kinds == _WORD
        starts_here = np.append(False, inside[1:] > inside[:-1])
        ends_here = np.append(False, inside[1:] < inside[:-1])
        if signs:
            alone = kinds == _SIGN
            starts_here |= alone
            ends_here[1:] |= alone[:-1]
            indents = [indent.span() for indent in _INDENT.finditer(self.joined)]
            starts_here[[start + 1 for start, _ in indents]] = ends_here[[end for _, end in indents]] = True
        self.start, self.end = np.flatnonzero(starts_here), np.flatnonzero(ends_here)  # words do not overlap
        self.hash = _runs(_runs(np.frombuffer(self.joined, np.uint8))(self.start, self.end))  # by their numbers
        first = np.searchsorted(self.start, np.cumsum([1, *(1 + len(text) for text in encoded)]))
        self.counts = np.diff(first)  # words of each text
        self.text_of = np.repeat(np.arange(len(texts)), self.counts)

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each run of n words within one text begins, int64[n_grams], and its hash, uint64[n_grams]."""
        size = max(0, len(self.start) + 1 - n)
        hashes = self.hash(slice(size), slice(n, n + size))
        within = self.text_of[:size] == self.text_of[n - 1 :][:size]
        return np.flatnonzero(within), hashes[within]

    def at(self, at: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the word numbers `at` from which n words follow within one text, and the hashes of these words."""
        at = at[at + n <= len(self.start)]
        at = at[self.text_of[at] == self.text_of[at + n - 1]]
        return at, self.hash(at, at + n)

    def shingles(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Each text's runs of n words, or all words of a shorter one: its number int64[n_runs], hash uint64[n_runs]."""
        at, hashes = self.ngrams(n)
        short = np.flatnonzero((self.counts > 0) & (self.counts < n))
        begin = (np.cumsum(self.counts) - self.counts)[short]
        whole = self.hash(begin, begin + self.counts[short])
        return np.concatenate([self.text_of[at], short]), np.concatenate([hashes, whole])

    def phrase(self, at: int, n: int) -> str:
        """The n words from number `at` on, as they are compared."""
        words = (self.joined[self.start[i] : self.end[i]] for i in range(at, at + n))
        return b" ".join(words).decode("utf-8", "replace")


def edges(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of True begins and ends."""
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    return edges[::2], edges[1::2]
