"""What a check finds: one thing wrong with one key, and what to do about it."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ERROR, NOTE = "error", "note"


@dataclass(frozen=True)
class Finding:
    """`key`: as in the file, `datasets.type` for a nested one. `wrong` and `remedy` are clauses without a full stop."""

    key: str
    wrong: str
    remedy: str
    level: str = ERROR

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}; {self.remedy}"


def note(key: str, what: str, remedy: str) -> Finding:
    """Something to know that does not make a recipe wrong."""
    return Finding(key, what, remedy, NOTE)


def in_deepspeed(recipe: dict[str, Any], findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings with the name of the DeepSpeed file that they are about."""
    file = recipe["deepspeed"] if isinstance(recipe.get("deepspeed"), str) else "the mapping"
    for finding in findings:
        yield replace(finding, wrong=f"{file}: {finding.wrong}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not among the known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "leave it out"


def from_error(error: ValueError, key: str, path: Path | None = None) -> Finding:
    """The finding of an error that reads `FILE: KEY: what is wrong; what to do`; `key` if it names none."""
    what, cut, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
    what, remedy = (what, remedy) if cut else (remedy, "mend it")
    first, colon, rest = what.partition(": ")
    named = bool(colon) and first.replace("_", "").replace(".", "").isalnum()
    return Finding(first, rest, remedy) if named else Finding(key, what, remedy)
