"""Which columns and turn fields of a row its adapter reads, and which of the others may hold what should train.

An adapter that leaves a passage, a history or a mark unread trains answers to questions that nobody asked. So a source
stops the build where such a column holds something; names and numbers that describe a row do no harm.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from hermes3.messages import BadRow
from hermes3.mix import rules
from hermes3.mix.spec import Source

_PATTERNS = rules.load("columns")["patterns"]
MAY_TRAIN = "unread, may train: "


class Row(dict[str, Any]):
    """A row of a source that notes which of its columns are read, and which fields of its turns are not."""

    def __init__(self, value: Any, columns: dict[str, str] | None = None):
        """`columns`: the row's own name of a column: the name that the adapter knows. `BadRow` if it is no object."""
        if not isinstance(value, dict):
            raise BadRow("wrong_shape", f"a row is {type(value).__name__}, not an object")
        super().__init__(value)
        for own, known in (columns or {}).items():
            if not is_empty(self.get(known)) and own in self:
                raise BadRow("wrong_shape", f"columns: {own} is to be read as {known}, which the row also has")
            if own in self:
                self[known] = self.pop(own)
        self.read: set[str] = set()
        self.unread_fields: dict[str, Any] = {}  # of turns

    def take(self, key: str) -> Any:
        """The column `key`, None where there is none; it counts as read."""
        self.read.add(key)
        return self.get(key)

    def leave(self, item: dict[str, Any], read: frozenset[str]) -> None:
        """Note the fields of a turn (or of a document) that are none of `read`."""
        if not item.keys() <= read:
            self.unread_fields |= {key: item[key] for key in item.keys() - read if not is_empty(item[key])}

    def account(self) -> Iterator[tuple[str, str]]:
        """("read", "unread" or "unread, may train"; name) of each column and each unread turn field with a value."""
        for name, value in [*self.items(), *self.unread_fields.items()]:
            if name in self.read and name not in self.unread_fields:
                yield "read", name
            elif not is_empty(value):
                may_train = isinstance(name, str) and _may_train(name, isinstance(value, bool | int | float))
                yield "unread, may train" if may_train else "unread", str(name)


def record(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What the manifest says of a source: in how many rows each column or field stood that was read, or was not.

    `counts`: how often each text `WHAT: NAME` of `Row.account` came up.
    """
    pairs = [(*key.split(": ", 1), n) for key, n in sorted(counts.items()) if ": " in key]
    read = {name: n for what, name, n in pairs if what == "read"}
    return {"columns_read": read, "columns_unread": {name: n for what, name, n in pairs if what != "read"}}


def unread(counts: Mapping[str, int], source: Source) -> dict[str, int]:
    """The columns and fields of `source` that may hold what should train, and that nothing declares or reads."""
    known = {*source.ignore, *(column.split(".")[0] for column in source.where)}
    names = (key.removeprefix(MAY_TRAIN) for key in counts if key.startswith(MAY_TRAIN))
    return {name: counts[f"{MAY_TRAIN}{name}"] for name in sorted(set(names) - known)}


def is_empty(value: Any, levels: int = 5) -> bool:
    """Whether a value says nothing: null, blank text, or a list or object of such values alone, a few levels deep."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(is_empty(item, levels - 1) for item in items)
    return value is None


@cache
def _may_train(name: str, is_number: bool) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower().strip("_")
    if _PATTERNS["marks"].fullmatch(words):
        return True
    return not is_number and not _PATTERNS["describes"].fullmatch(words)
