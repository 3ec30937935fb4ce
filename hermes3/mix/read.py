"""Reading files in chunks of raw JSON rows, which stay bytes until a worker parses them: an oddity costs one row."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from hermes3.files import UserError
from hermes3.messages import BadRow

CHUNK_ROWS = 8_000
CHUNK_BYTES = 16_000_000
BLOCK = 1 << 20  # bytes (of a JSON list: characters) read at a time

ALIKE = bytes.maketrans(b"123456789", b"000000000")  # every digit as 0
GAP = re.compile(r"[\s,]*")
FORMAT = re.compile(r"\.(?:(jsonl|ndjson|json)(?:\.(gz|zst))?|(parquet))$", re.IGNORECASE)
SUPPORTED = ".jsonl, .ndjson, .json (each also with .gz, .zst), .parquet"


@dataclass(frozen=True)
class File:
    name: str  # path within the source, for messages and the manifest
    path: Path
    revision: str | None = None  # commit of the Hub dataset that it came from
    state: tuple[int, int, int] | None = None  # see hermes3/mix/lock.py; how it was before it was read
    share: tuple[int, int] = (0, 1)  # (i, n): every n-th of its chunks from the i-th is wanted


@dataclass(frozen=True)
class Chunk:
    source: str
    file: str
    first: int  # row number in the file, from 1, of lines[0]; lines[i] is row first + i
    lines: list[bytes]  # one JSON text each


def format_of(name: str) -> tuple[str, str]:
    """(format, compression or "") from the ending of a file's name. `UserError` if it is not supported."""
    if not (match := FORMAT.search(name)):
        raise UserError(f"{name}: not a supported format: {SUPPORTED}")
    return (match[1] or match[3]).lower(), (match[2] or "").lower()


def chunks(source: str, files: list[File], rows: int = CHUNK_ROWS, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """All rows of `files`, in chunks of at most `rows` rows and `size` bytes (or one row); one ends at a blank line."""
    for file in files:
        lines: list[bytes] = []
        first = number = total = 0
        try:
            for number, line in _rows(file):
                if lines and (number != first + len(lines) or len(lines) == rows or total + len(line) > size):
                    yield Chunk(source, file.name, first, lines)
                    lines = []
                if not lines:
                    first, total = number, 0
                lines.append(line)
                total += len(line)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"source {source}: {file.path} cannot be read past row {number}: {error}; download it again and "
                f"compare `sha256sum` with its publisher's"
            ) from None
        if lines:
            yield Chunk(source, file.name, first, lines)


def _rows(file: File) -> Iterator[tuple[int, bytes]]:
    """(row number from 1, JSON text) of a file."""
    import pyarrow.parquet

    kind, compression = format_of(file.name)
    if kind == "parquet":
        with pyarrow.parquet.ParquetFile(file.path) as table:
            rows = (row for batch in table.iter_batches(batch_size=1_000) for row in batch.to_pylist())
            yield from enumerate((orjson.dumps(row, default=_plain) for row in rows), 1)
        return
    # Arrow's readers notice a file that is cut off, as zstandard's own does not
    codec = {"gz": "gzip", "zst": "zstd"}.get(compression)
    with io.BufferedReader(pyarrow.input_stream(str(file.path), compression=codec), BLOCK) as stream:
        if kind == "json" and stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from _list_rows(stream)
            return
        # also of a .json file: many on the Hub hold one row per line
        yield from ((number, line.strip()) for number, line in enumerate(stream, 1) if not line.isspace())


def _list_rows(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Rows of one JSON list, holding a block of it at a time. Commas that lack or abound lose no row."""
    # ijson is faster, but turns a lone surrogate into `?` and gives up at NaN, a bad byte or an integer beyond 64 bits
    decoder = json.JSONDecoder(strict=False)
    characters = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    text, number = characters.read(BLOCK), 0
    at = text.index("[") + 1
    while True:
        try:
            begin = GAP.match(text, at).end()
            if text[begin] == "]":
                break
            end = decoder.raw_decode(text, begin)[1]
            text[GAP.match(text, end).end()]  # a number may go on in the next block
        except (IndexError, ValueError) as error:
            if not (block := characters.read(max(BLOCK, len(text) - at))):
                raise ValueError(f"the list breaks there ({error})") from None
            text, at = text[at:] + block, 0
            continue
        number += 1
        yield number, text[begin:end].encode("utf-8", "surrogateescape")
        at = end
    if (text[begin + 1 :] + characters.read(BLOCK)).strip():
        raise ValueError("text follows the list")


def _plain(value: Any) -> Any:
    """What JSON lacks: decimals as numbers, binary as text, times of more than a microsecond's precision as text."""
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def parse(line: bytes) -> Any:
    """The row in `line`, integers exact. `BadRow` if it is no JSON; lone surrogates and NaN, as Python writes, pass."""
    try:
        if b"0" * 19 not in line.translate(ALIKE):  # orjson makes floats of integers beyond 64 bits
            return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", str(error)) from None


def selected(row: Any, where: dict[str, Any]) -> bool:
    """Whether every column of `where` has its value, or one of its list."""
    for column, wanted in where.items():
        if not isinstance(row, dict) or column not in row:
            return False
        if row[column] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True
