"""Duplicates: rows that say the same, and near-duplicates by MinHash (Broder 1997), LSH and a comparison of the texts.

A row repeats another only where all of its parts do: what is asked (user turns), what is trained (answers, or both
answers of a preference pair) and the tool calls, each call as a whole. Signatures find candidates alone: the similarity
that decides and is recorded is counted on the texts.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from hermes3.mix.ngrams import Words, beyond_ascii, mix, written
from hermes3.mix.spec import NearDuplicates

Repeat = tuple[int, int, dict[str, float]]  # a row, the better one that it repeats, Jaccard similarity by part
RowAt = Callable[[int], dict[str, Any]]  # what the row of this number says
PARTS = ("asked", "trained", "rejected", "calls")
NEAREST = 16  # rows before it with which a row is compared in each band, besides the best one of the band
BUCKET = 1 << 20  # rows that are sorted at a time, in 100 MB; or written, for it is pyarrow's row group
BLOCK = 50_000  # pairs whose signatures are compared at a time: 50 MB; also rows that are left out
COMPARED = 200  # pairs whose texts are: a megabyte of text takes 40 MB of sums and powers
DEVIATIONS = 4  # of the estimate, by which a pair may seem less alike than the threshold
# blanks at the end of a line, then of a text, in JSON, for RE2, which keeps groups; in one, n lines take n^2 steps
TRAILING = (r"(\\\\)|(?: |\\[tr])+(\\n)", r'(\\\\)|(?: |\\[trn])+(")')


def content_hashes(conversations: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """SHA-256 of what each row says (messages and tools as JSON), whatever its source, line ends and trailing blanks.

    The second is the same whatever letter case and blanks: the order is drawn by it, and respelling moves no row."""
    texts = pa.array(conversations, pa.binary())
    for pattern in TRAILING:
        texts = pc.replace_substring_regex(texts, pattern, r"\1\2")
    texts = texts.to_pylist()
    data = np.frombuffer(bytearray(b"\0").join(map(_folded, texts)), np.uint8)  # no JSON holds this byte
    escape = (data[:-1] == ord("\\")) & ((data[1:] == ord("n")) | (data[1:] == ord("t")))
    data[:-1][escape] = data[1:][escape] = data[data == ord("\n")] = ord(" ")
    blank = data == ord(" ")
    words = data[np.append(True, ~(blank[1:] & blank[:-1]))].tobytes().split(b"\0")  # one blank for many
    return [hashlib.sha256(text).digest() for text in texts], [hashlib.sha256(text).digest() for text in words]


def _folded(text: bytes) -> bytes:
    """`text` in lower case, each blank beyond ASCII as a common one."""
    chars = beyond_ascii(text)
    if any(char.casefold() != char for char in chars):
        text = text.decode().casefold().encode()
    for blank in filter(str.isspace, chars):
        text = text.replace(blank.encode(), b" ")
    return text.lower()


def _parts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(part, text) of each message of a row that counts; system prompts and tool output repeat by design."""
    is_pair = "chosen" in row
    messages = [(message, "asked" if is_pair else "trained") for message in row["messages"]]
    messages += [(row["chosen"], "trained"), (row["rejected"], "rejected")] if is_pair else []
    for message, part in messages:
        if message["role"] in ("user", "assistant"):
            untrained = message["role"] == "user" or message.get("train") is False
            yield "asked" if untrained else part, message["content"]
            for call in message.get("tool_calls", []):
                yield "calls", json.dumps(call["function"], sort_keys=True, ensure_ascii=False)


def shingles(rows: list[dict[str, Any]], ngram: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each shingle its row int64[n], its part (place in `PARTS`) int64[n], and its hash uint64[n].

    A text has its runs of `ngram` words and signs, or itself where it is shorter; a call is one shingle."""
    every = [(i, PARTS.index(part), text) for i, row in enumerate(rows) for part, text in _parts(row)]
    row_of, part_of = (np.array([one[k] for one in every], np.int64) for k in (0, 1))
    words = Words([written(text) for _, _, text in every], signs=True)
    is_call = part_of == PARTS.index("calls")
    (text, hashes), (call, whole) = words.shingles(ngram), words.shingles(1 << 62)  # the latter: every text as one
    runs, calls = ~is_call[text], is_call[call]
    text = np.concatenate([text[runs], call[calls]])
    return row_of[text], part_of[text], np.concatenate([hashes[runs], whole[calls]])


def signatures(rows: list[dict[str, Any]], settings: NearDuplicates) -> np.ndarray:
    """MinHash of each row's shingles, uint32[n_rows, permutations]; zeros where a row has none."""
    from rensa import RMinHash

    row, part, hashes = shingles(rows, settings.ngram)
    hashes = mix(hashes + part.astype(np.uint64))  # the same words asked and trained are two things
    counts = np.bincount(row, minlength=len(rows))
    out = np.zeros((len(rows), settings.permutations), np.uint32)
    if len(row):
        offsets = np.append(0, np.cumsum(counts[counts > 0])).astype(np.uint64)
        by_row = hashes[np.argsort(row, kind="stable")]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(by_row, offsets, settings.permutations, 42)
        out[counts > 0] = [array("I", one) for one in matrix.to_rows()]  # plain lists take numpy five times as long
    return out


def bands(threshold: float, permutations: int) -> int:
    """The fewest bands that find a pair at the threshold with probability 0.95 or more: 1 - (1 - t^r)^b."""
    sizes = (b for b in range(1, permutations + 1) if permutations % b == 0)
    return next(b for b in sizes if 1 - (1 - threshold ** (permutations // b)) ** b >= 0.95)


def on_disk(parts: Iterable[Any], kind: Any = np.int64, folder: Path | None = None) -> np.ndarray:
    """The parts one after the other, mapped from a file in `folder` that goes with the array, or with the process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, kind))
        return np.asarray(np.memmap(file, kind, "r+")) if file.tell() else np.empty(0, kind)


def buckets(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places in order, their keys) of the lowest uint64 keys, then of higher ones; they are hashes, so evenly many."""
    bits = min(8, (len(keys) // BUCKET).bit_length())
    highest = keys.view(np.uint8)[7::8] >> (8 - bits)
    for bucket in range(1 << bits):
        places = np.flatnonzero(highest == bucket)
        yield places, keys[places]


def numbers(column: pa.ChunkedArray, kind: str) -> list[np.ndarray]:
    """Views of a fixed-size binary column, one per chunk: `kind`[n_rows, bytes of a row / bytes of a number]."""
    views, width = [], column.type.byte_width
    for chunk in column.chunks:
        data = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)[chunk.offset * width :][: len(chunk) * width]
        views.append(data.view(kind).reshape(len(chunk), width // np.dtype(kind).itemsize))
    return views


def near_duplicates(
    signed: pa.ChunkedArray, order: np.ndarray, settings: NearDuplicates, row_at: RowAt, disk: Callable = on_disk
) -> Iterator[Repeat]:
    """Near-duplicates by `signatures`, one per row, as bytes; `disk`: `on_disk` in a folder.

    `order`: rows from best to worst. A row goes when each part of it is similar to that of a better one that stays."""
    gone = np.zeros(len(signed), bool)
    for pairs in batched(_candidates(signed, order, settings.threshold, disk), COMPARED):
        numbered = sorted({number for pair in pairs for number in pair})
        parts = dict(zip(numbered, _sets([row_at(number) for number in numbered], settings.ngram), strict=True))
        for row, other in pairs:
            if not gone[row] and not gone[other]:
                both = [(a, b, np.intersect1d(a, b, True)) for a, b in zip(parts[row], parts[other], strict=True)]
                sizes = [(len(common), len(a) + len(b) - len(common)) for a, b, common in both]
                alike = {name: n / either for name, (n, either) in zip(PARTS, sizes, strict=True) if either}
                if min(alike.values()) >= settings.threshold:
                    gone[row] = True
                    yield row, other, alike


def _sets(rows: list[dict[str, Any]], ngram: int) -> list[list[np.ndarray]]:
    """The shingles of each part of each row, each once."""
    row, part, hashes = shingles(rows, ngram)
    order = np.lexsort((hashes, owner := row * len(PARTS) + part))
    owner, hashes = owner[order], hashes[order]
    first = (np.diff(owner, prepend=-1) != 0) | (np.diff(hashes, prepend=hashes[:1]) != 0)
    owner, hashes = owner[first], hashes[first]
    each = np.split(hashes, np.searchsorted(owner, np.arange(1, len(rows) * len(PARTS))))
    return [each[i : i + len(PARTS)] for i in range(0, len(each), len(PARTS))]


def _candidates(signed: pa.ChunkedArray, order: np.ndarray, threshold: float, disk: Callable) -> Iterator[list[int]]:
    """(row, better row) of every pair that shares a band and may reach the threshold, in `order` of both.

    A pair whose parts all reach the threshold reaches it in all shingles together, which signatures estimate."""
    views, permutations = numbers(signed, "<u4"), signed.type.byte_width // 4
    width = permutations // bands(threshold, permutations)
    least = threshold - DEVIATIONS * (threshold * (1 - threshold) / permutations) ** 0.5
    weights = np.random.default_rng(0).integers(1, 2**63, width, np.uint64) | np.uint64(1)
    order = disk([order[np.concatenate([view[:, 0] for view in views])[order] > 0]])  # zeros: without shingles

    def sharing() -> Iterator[np.ndarray]:  # pairs as numbers: place in `order`, times all, plus the better row's
        for first in range(0, permutations, width):
            by_row = disk((view[:, first : first + width] @ weights for view in views), np.uint64)
            for places, keys in buckets(disk([by_row[order]], np.uint64)):
                by_key = np.argsort(keys, kind="stable")  # within a group of equal keys, best first
                same = np.diff(keys[by_key], prepend=keys[by_key][:1] + np.uint64(1)) == 0
                place, by_key = np.arange(len(keys)), places[by_key]
                begin = np.maximum.accumulate(np.where(same, 0, place))[same]  # where the place's group begins
                later = place[same]  # all but the best of each group
                yield by_key[later] * len(order) + by_key[begin]
                # of a large group, whose rows share a template, each is compared with the best and the nearest
                for back in range(1, NEAREST + 1):
                    later, begin = later[later - back > begin], begin[later - back > begin]
                    yield by_key[later] * len(order) + by_key[later - back]

    pairs, rows = disk(sharing()), ds.dataset(pa.table([signed], ["signature"]))
    pairs.sort()  # in its file; a pair is in it once for each band that it shares, and twice does no harm
    for start in range(0, len(pairs), BLOCK):
        both = order[np.stack(np.divmod(np.unique(pairs[start : start + BLOCK]), len(order)), axis=1)]
        one, other = (numbers(rows.take(own)["signature"], "<u4")[0] for own in both.T)
        yield from both[(one == other).mean(1) >= least].tolist()
