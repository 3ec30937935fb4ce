"""Where rows come from: local files and files of Hub datasets, read in chunks of raw JSON rows.

A row stays the bytes that its file holds until a worker parses it: what is odd in one row (a lone surrogate, NaN, a bad
byte) costs that row and not its file.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from hermes3.files import sha256
from hermes3.messages import BadRow
from hermes3.mix import hub
from hermes3.mix.spec import Source

CHUNK_ROWS = 8_000
CHUNK_BYTES = 16_000_000
BLOCK = 1 << 20  # bytes (of a JSON list: characters) read at a time
ROW_LIMIT = (
    1 << 24
)  # characters of one row of a JSON list; where a list breaks, no more than this is read in search of an end

TEXT = (".jsonl", ".ndjson", ".json")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
SUPPORTED = f"{', '.join(TEXT)} (each also with {', '.join(COMPRESSIONS)}), .parquet"


@dataclass(frozen=True)
class File:
    name: str  # path within the source, for messages and the manifest
    path: Path
    revision: str | None = None  # commit of the Hub dataset that it came from


@dataclass(frozen=True)
class Chunk:
    source: str
    file: str
    first: int  # row number in the file, from 1, of lines[0]; lines[i] is row first + i
    lines: list[bytes]  # one JSON text each


def files_of(source: Source, data_root: Path, lock: dict[str, Any] | None, spec_path: Path) -> list[File]:
    """The files of `source`, downloaded if they are the Hub's, and held to the hashes of `lock` if there is one.

    `ValueError` where there is no such file, where its format is not `SUPPORTED`, or where a hash differs. A locked
    Hub source needs no network once its files are in the Hub cache.
    """
    locked = lock["sources"][source.name] if lock else None
    if source.path:
        files = local_files(source, data_root, spec_path)
    else:
        revision, names = (locked["revision"], locked["files"]) if locked else hub.files(source)
        for name in names:
            _format(name)
        files = [File(name, hub.download(source, name, revision), revision) for name in names]
    if locked:
        _verify(source, files, locked["files"], spec_path)
    return files


def local_files(source: Source, data_root: Path, spec_path: Path) -> list[File]:
    """What the source's path or glob names under `data_root`, sorted by name."""
    assert source.path
    exact = (data_root / source.path).is_file()  # also where its name holds a * or [
    names = [source.path] if exact else sorted(glob.glob(source.path, root_dir=data_root, recursive=True))
    files = [File(name, data_root / name) for name in names if (data_root / name).is_file()]
    if not files:
        raise ValueError(
            f"{spec_path}: source {source.name}: no file {data_root / source.path}; "
            f"mind --data-root (now {data_root.absolute()})"
        )
    for file in files:
        _format(file.name)
    return files


def _verify(source: Source, files: list[File], locked: dict[str, Any], spec_path: Path) -> None:
    if differing := {file.name for file in files} ^ set(locked):
        raise ValueError(
            f"source {source.name}: {min(differing)} is new or gone since the lock; "
            f"run `hermes3 mix lock {spec_path}` again"
        )
    for file in files:
        if (found := sha256(file.path)) != (said := locked[file.name]["sha256"]):
            raise ValueError(
                f"source {source.name}: {file.name} has sha256 {found}, the lock says {said}; bring back the file that "
                f"was locked, or take this one with `hermes3 mix lock {spec_path}`"
            )


def _format(name: str) -> tuple[str, str]:
    """(format, compression or "") from the ending of a file's name."""
    suffixes = Path(name.lower()).suffixes or [""]
    compression = suffixes.pop() if suffixes[-1] in COMPRESSIONS else ""
    last = suffixes[-1] if suffixes else ""
    if last in TEXT or (last == ".parquet" and not compression):
        return last, compression
    raise ValueError(f"{name}: not a supported format: {SUPPORTED}")


def estimate(files: list[File]) -> int:
    """Bytes on disk of all files, compressed as they are."""
    return sum(file.path.stat().st_size for file in files)


def chunks(source: Source, files: list[File], rows: int = CHUNK_ROWS, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """All rows in order, at most `rows` and, but for a longer single row, `size` bytes at a time.

    The cuts depend on the files and the two limits alone. A chunk also ends at a blank line, so that `first` numbers
    all of its rows. `ValueError` where a file breaks; a line that is not JSON is left for `parse`.
    """
    for file in files:
        lines: list[bytes] = []
        first = number = total = 0
        try:
            for number, line in _rows(file):
                if lines and (number != first + len(lines) or len(lines) == rows or total + len(line) > size):
                    yield Chunk(source.name, file.name, first, lines)
                    lines = []
                if not lines:
                    first, total = number, 0
                lines.append(line)
                total += len(line)
        except (OSError, EOFError, ValueError, TypeError, RuntimeError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"source {source.name}: {file.path} cannot be read past row {number}: {error}; download it again and "
                f"compare `sha256sum` with its publisher's"
            ) from None
        if lines:
            yield Chunk(source.name, file.name, first, lines)


def _rows(file: File) -> Iterator[tuple[int, bytes]]:
    """(row number from 1, JSON text) of a file."""
    kind, compression = _format(file.name)
    if kind == ".parquet":
        yield from _parquet_rows(file.path)
        return
    with _open(file.path, compression) as stream:
        if kind != ".json":
            yield from _lines(stream)
        elif stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from _list_rows(stream)
        else:  # many a .json on the Hub holds one row a line
            lines = _lines(stream)
            if first := next(lines, None):
                try:
                    parse(first[1])
                except BadRow:
                    raise ValueError("it holds neither a list of rows nor one row a line") from None
                yield first
                yield from lines


def _open(path: Path, compression: str) -> Any:
    if compression == ".zst":
        import pyarrow

        # zstandard's own reader takes a truncated file for a short one
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BLOCK)
    if compression:
        return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[compression](path, "rb")
    return path.open("rb", buffering=BLOCK)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, 1):
        if line := line.strip():
            yield number, line


def _list_rows(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Rows of one JSON list, holding a block of it at a time.

    The json module only finds where a row ends. ijson is faster (224 MB/s against 134 on rows of 470 bytes), but makes
    ? of a lone surrogate, and gives up the rest of the file at NaN, at a bad byte or at an integer beyond 64 bits.
    """
    decoder, spaces = json.JSONDecoder(strict=False), re.compile(r"[ \t\r\n]*")
    characters = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    text, at, number, mark = "", 0, 0, "["
    while True:
        try:
            begin = spaces.match(text, at).end()
            if text[begin] == "]" and mark == ",":
                break
            if text[begin] != mark:
                raise ValueError(f"{mark} expected, not {text[begin]}")
            begin = spaces.match(text, begin + 1).end()
            if text[begin] == "]" and mark == "[":
                break
            end = decoder.raw_decode(text, begin)[1]
            text[spaces.match(text, end).end()]  # a mark must be in sight: a number may go on in the next block
        except (IndexError, ValueError) as error:
            held = len(text) - at
            if held > ROW_LIMIT or not (block := characters.read(max(BLOCK, held))):
                raise ValueError(f"the list breaks there ({error})") from None
            text, at = text[at:] + block, 0
            continue
        number += 1
        yield number, text[begin:end].encode("utf-8", "surrogateescape")
        at, mark = end, ","
    if (text[begin + 1 :] + characters.read(BLOCK)).strip():
        raise ValueError("text follows the list")


def _parquet_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        rows = (row for batch in table.iter_batches(batch_size=1_000) for row in batch.to_pylist())
        yield from enumerate((orjson.dumps(row, default=_plain) for row in rows), 1)


def _plain(value: Any) -> Any:
    """What JSON lacks: decimals as numbers, binary as text, times of more than a microsecond's precision as text."""
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def parse(line: bytes) -> Any:
    """The row in `line`. `BadRow` if it is not JSON; lone surrogates and NaN, which Python writes, are let pass.

    Integers beyond 64 bits become floats.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRow("not_json", str(error)) from None


def selected(row: Any, where: dict[str, Any]) -> bool:
    """Whether every column (a dotted path reaches into objects) has the value, or one of the list of values."""
    for column, wanted in where.items():
        value = row
        for key in column.split("."):
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        if value not in wanted if isinstance(wanted, list) else value != wanted:
            return False
    return True
