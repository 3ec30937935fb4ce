"""Duplicates: rows that say the same after normalisation, and near-duplicates by MinHash (Broder 1997) and LSH.

The row that comes first in the given order stays, so the caller's order is the rule of which row is better. rensa makes
the signatures; bands are compared with numpy, because a removed row has to name the row that it repeats, and only pairs
whose estimated similarity reaches the threshold count.
"""

import hashlib

import numpy as np

from hermes3.mix.ngrams import Words
from hermes3.mix.spec import NearDuplicates

NEAREST = 4  # rows before it with which a row is compared in each band, besides the best one of the band
BLOCK = 50_000  # pairs compared at a time: 50 MB of signatures


def content_hash(conversation: bytes) -> bytes:
    """SHA-256 of what a row says (its messages and tools as JSON), whatever its source, letter case and blanks."""
    text = conversation.decode().replace("\\n", " ").replace("\\t", " ")
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()


def signatures(words: Words, row_of: np.ndarray, n_rows: int, settings: NearDuplicates) -> np.ndarray:
    """MinHash of each row's word n-grams, uint32[n_rows, permutations]; zeros where a row has none.

    `row_of`: int64[n_texts], the row of each text of `words`, ascending; -1 for a text that does not count.
    """
    from rensa import RMinHash

    at, hashes = words.ngrams(settings.ngram)
    rows = row_of[words.text_of[at]]
    rows, hashes = rows[rows >= 0], hashes[rows >= 0]
    counts = np.bincount(rows, minlength=n_rows)
    out = np.zeros((n_rows, settings.permutations), np.uint32)
    filled = np.flatnonzero(counts)
    if len(filled):
        offsets = np.append(0, np.cumsum(counts[filled])).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, settings.permutations, 42)
        out[filled] = matrix.to_rows()
    return out


def bands(threshold: float, permutations: int) -> int:
    """The fewest bands that find a pair at the threshold with probability 0.95 or more: 1 - (1 - t^r)^b."""
    sizes = [b for b in range(1, permutations + 1) if permutations % b == 0]
    return next(b for b in sizes if 1 - (1 - threshold ** (permutations // b)) ** b >= 0.95)


def near_duplicates(signed: np.ndarray, order: np.ndarray, threshold: float) -> dict[int, int]:
    """{row: the better row that it repeats} over signatures uint32[n_rows, permutations].

    `order`: rows from best to worst. A row goes when it is similar to a better one that stays.
    """
    order = order[signed[order, 0] > 0]  # a row without n-grams has a signature of zeros
    later, earlier = _alike(signed, order, threshold)
    repeats: dict[int, int] = {}
    for row, other in zip(order[later].tolist(), order[earlier].tolist(), strict=True):
        if row not in repeats and other not in repeats:
            repeats[row] = other
    return repeats


def _alike(signed: np.ndarray, order: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in `order` of every pair that shares a band and reaches the threshold, sorted: the later, the earlier."""
    n_bands = bands(threshold, signed.shape[1])
    width = signed.shape[1] // n_bands
    weights = np.random.default_rng(0).integers(1, 2**63, width, np.uint64) | np.uint64(1)
    candidates = [np.empty((0, 2), np.int64)]
    for band in range(n_bands):
        with np.errstate(over="ignore"):
            columns = signed[:, band * width : (band + 1) * width]
            keys = sum((columns[:, i].astype(np.uint64) * weights[i] for i in range(width)), np.uint64(0))[order]
        by_key = np.argsort(keys, kind="stable")  # within a group of equal keys, best first
        same = keys[by_key][1:] == keys[by_key][:-1]
        place = np.arange(len(by_key))
        begin = np.maximum.accumulate(np.where(np.append(False, same), 0, place))  # where the place's group begins
        # of a large group, whose rows share a template, each is compared with the best and the nearest, not with all
        nearest = [np.maximum(place - back, begin) for back in range(1, NEAREST + 1)]
        pairs = np.concatenate([np.stack([by_key, by_key[other]], axis=1) for other in (begin, *nearest)])
        candidates.append(np.unique(pairs[pairs[:, 0] > pairs[:, 1]], axis=0))
    pairs = np.unique(np.concatenate(candidates), axis=0)
    similar = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), BLOCK):
        part = order[pairs[start : start + BLOCK]]
        similar[start : start + BLOCK] = (signed[part[:, 0]] == signed[part[:, 1]]).mean(1) >= threshold
    return pairs[similar, 0], pairs[similar, 1]
