"""Duplicates: rows that say the same after normalisation, and near-duplicates by MinHash (Broder 1997) and LSH.

The row that comes first in the given order stays, so the caller's order is the rule of which row is better. rensa makes
the signatures; bands are compared with numpy, because a removed row has to name the row that it repeats, and only pairs
whose estimated similarity reaches the threshold count.
"""

import hashlib

import numpy as np

from hermes3.mix.ngrams import Words
from hermes3.mix.spec import NearDuplicates

BUCKET = 32  # rows kept in a bucket: of thousands that share a template but differ, not every pair is compared


def content_hash(said: bytes) -> bytes:
    """SHA-256 of what a row says (its messages and tools as JSON), whatever its source, letter case and blanks."""
    text = said.decode().replace("\\n", " ").replace("\\t", " ")
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


def near_duplicates(signed: np.ndarray, threshold: float) -> dict[int, int]:
    """{row: the earlier row that it repeats} over signatures uint32[n_rows, permutations] in order of preference."""
    n_bands = bands(threshold, signed.shape[1])
    per_band = signed.shape[1] // n_bands
    weights = np.random.default_rng(0).integers(1, 2**63, per_band, np.uint64) | np.uint64(1)

    def keys(band: int, rows: slice | np.ndarray) -> np.ndarray:
        columns = signed[rows, band * per_band : (band + 1) * per_band].astype(np.uint64)
        with np.errstate(over="ignore"):
            return (columns * weights).sum(1, dtype=np.uint64)

    shared = np.zeros(len(signed), bool)  # rows that have a band in common with another: few, so the rest is no loop
    for band in range(n_bands):
        _, inverse, counts = np.unique(keys(band, slice(None)), return_inverse=True, return_counts=True)
        shared |= counts[inverse] > 1
    rows = np.flatnonzero(shared & signed.any(1))
    buckets_of = np.stack([keys(band, rows) for band in range(n_bands)], axis=1)

    kept: dict[tuple[int, int], list[int]] = {}  # rows that stay, by band and key
    repeats: dict[int, int] = {}
    for row, row_keys in zip(rows.tolist(), buckets_of.tolist(), strict=True):
        buckets = [kept.setdefault(bucket, []) for bucket in enumerate(row_keys)]
        candidates = sorted({other for bucket in buckets for other in bucket})
        if candidates:
            similar = (signed[candidates] == signed[row]).mean(1) >= threshold
            if similar.any():
                repeats[row] = candidates[int(similar.argmax())]
                continue
        for bucket in buckets:
            if len(bucket) < BUCKET:
                bucket.append(row)
    return repeats
