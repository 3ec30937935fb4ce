"""One thing that `check` finds wrong with one key, and what to do about it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ERROR, NOTE = "error", "note"


@dataclass(frozen=True)
class Finding:
    """`key`: as in the file, `datasets.type` for a nested one. `wrong` and `remedy` are clauses without a full stop."""

    key: str
    wrong: str
    remedy: str
    level: str = ERROR  # a NOTE is something to know that does not make a recipe wrong

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}; {self.remedy}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not among the known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "leave it out"


def from_error(error: ValueError, key: str, path: Path | None = None) -> Finding:
    """The finding of an error that reads `FILE: KEY: what is wrong; what to do`; `key` if it names none."""
    wrong, separator, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
    wrong, remedy = (wrong, remedy) if separator else (remedy, "mend it")
    first, colon, rest = wrong.partition(": ")
    names_key = colon and first.replace("_", "").replace(".", "").isalnum()
    return Finding(first, rest, remedy) if names_key else Finding(key, wrong, remedy)
