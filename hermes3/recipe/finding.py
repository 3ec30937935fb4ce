"""What a check finds: one thing wrong with one key, and what to do about it."""

from dataclasses import dataclass

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
