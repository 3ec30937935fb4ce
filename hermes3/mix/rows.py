"""The conversations of a file, one by one: what the verbs that look at single rows read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hermes3.messages import BadRow
from hermes3.mix import sources
from hermes3.mix.adapters import ADAPTERS, Row
from hermes3.mix.spec import Source


def read_rows(file: Path, adapter: str) -> Iterator[Row]:
    """The conversations in `file`. `ValueError`: no such file or adapter, or a row is of another shape."""
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter {adapter}: not one of {', '.join(ADAPTERS)}")
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    source = Source(name="rows", path=str(file), adapter=adapter, licence="")
    for chunk in sources.chunks(source, [sources.File(file.name, file)]):
        for number, line in enumerate(chunk.lines, chunk.first):
            try:
                yield ADAPTERS[adapter](sources.parse(line))
            except BadRow as bad:
                raise ValueError(f"{file}:{number}: {bad}") from None


def read_row(file: Path, number: int, adapter: str) -> Row:
    """The conversation in row `number` (from 1) of `file`. `ValueError` when there is no such file, row or adapter."""
    row = next(islice(read_rows(file, adapter), number - 1, None), None)
    if row is None:
        raise ValueError(f"{file}: no row {number}")
    return row
