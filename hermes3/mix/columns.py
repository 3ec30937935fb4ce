"""Which columns and turn fields of a row its adapter reads, and which of the others may hold what should train."""

import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from typing import Any

from hermes3.messages import BadRow
from hermes3.mix import rules

_PATTERNS = rules.load("columns")["patterns"]
MAY_TRAIN = "unread, may train"


class Row(dict[str, Any]):
    """A row of a source that notes which of its columns are read, and which fields of its turns are not."""

    def __init__(self, value: Any, columns: dict[str, str] | None = None):
        """`columns`: the row's own name of a column: the name that the adapter knows. `BadRow` if it is no object."""
        if not isinstance(value, dict):
            raise BadRow("wrong_shape", f"a row is {type(value).__name__}, not an object")
        super().__init__(value)
        for own, known in (columns or {}).items():
            if own in self:
                if not is_empty(self.get(known)):
                    raise BadRow("wrong_shape", f"columns: {own} is to be read as {known}, which the row also has")
                self[known] = self.pop(own)
        self.read: set[str] = set()
        self.unread_fields: set[str] = set()  # of turns

    def take(self, key: str) -> Any:
        """The column `key`, None where there is none; it counts as read."""
        self.read.add(key)
        return self.get(key)

    def leave(self, item: dict[str, Any], read: Set[str]) -> None:
        """Note the fields of a turn (or of a document) that are none of `read`."""
        self.unread_fields |= {key for key in item.keys() - read if not is_empty(item[key])}

    def account(self) -> Iterator[tuple[str, str]]:
        """("read", "unread" or "unread, may train"; name) of each column and each unread turn field with a value."""
        for name, value in self.items():
            if name in self.read:
                yield "read", name
            elif not is_empty(value):
                yield _kind(name, isinstance(value, int | float)), name
        yield from ((_kind(name, False), name) for name in self.unread_fields)  # even a number may be a mark of a turn


def record(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """In how many rows each column or field stood, from how often each `WHAT: NAME` of `Row.account` came up."""
    parts: dict[str, dict[str, int]] = {"columns_read": {}, "columns_unread": {}}
    for key, n in sorted(counts.items()):
        what, colon, name = key.partition(": ")
        if colon:
            parts["columns_read" if what == "read" else "columns_unread"][name] = n
    return parts


def is_empty(value: Any, levels: int = 5) -> bool:
    """Whether a value says nothing: null, blank text, or a list or object of such values alone, a few levels deep."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(is_empty(item, levels - 1) for item in items)
    return value is None or (isinstance(value, str) and not value.strip())


@cache
def _kind(name: str, is_number: bool) -> str:
    """Whether the unread column or field `name` only describes its row."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower().strip("_")
    describes = is_number or _PATTERNS["describes"].fullmatch(words)
    return "unread" if describes and not _PATTERNS["marks"].fullmatch(words) else MAY_TRAIN
