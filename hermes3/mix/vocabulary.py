"""Word lists and patterns of the rules on text: data_mixes/rules/*.yml, whose heads say how they are written."""

import re
from pathlib import Path
from typing import Any

from hermes3.files import read_yaml

FOLDER = Path(__file__).parents[2] / "data_mixes/rules"


class Vocabulary:
    """One file of rules; `data` is what it holds."""

    def __init__(self, name: str):
        self.data: dict[str, Any] = read_yaml(FOLDER / f"{name}.yml")
        self.parts: dict[str, str] = {}
        for part, text in self.data["parts"].items():
            self.parts[part] = self._expanded(text)

    def pattern(self, text: str, flags: int = 0) -> re.Pattern[str]:
        """The regular expression `text`: line breaks are left out, `@{name}` becomes the part of that name."""
        return re.compile(self._expanded(text), flags)

    def words(self, name: str) -> frozenset[str]:
        return frozenset(self.data["words"][name].split())

    def marks(self, name: str) -> tuple[str, ...]:
        """Literal texts; `~` stands for a line break."""
        return tuple(mark.replace("~", "\n") for mark in self.data["marks"][name])

    def _expanded(self, text: str) -> str:
        return re.sub(r"@\{(\w+)\}", lambda name: self.parts[name[1]], "".join(text.splitlines()))
