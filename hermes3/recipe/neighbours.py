"""The recipes beside a recipe, and what two of them must not share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hermes3.recipe.finding import Finding


@dataclass(frozen=True)
class Neighbour:
    """Another recipe as written: its file, what it writes and all that it says."""

    path: Path
    output_dir: str
    recipe: dict[str, Any]


def neighbours(path: Path) -> list[Neighbour]:
    """The recipes in the folder of the one at `path`, above and below it, and the repository's; not its own copies.

    A file of the same name elsewhere is a copy, which takes the place of the other.
    """
    folders = dict.fromkeys([path.resolve().parent, Path("recipes").resolve(), Path("recipes/experiments").resolve()])
    found = {other.path: other for folder in folders if folder.is_dir() for other in _in_folder(folder)}
    return [other for other in found.values() if other.path.name != path.name]


@lru_cache
def _in_folder(folder: Path) -> list[Neighbour]:
    found = []
    for file in sorted({*folder.glob("*.yml"), *folder.glob("experiments/*.yml"), *folder.parent.glob("*.yml")}):
        try:
            other = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError):
            continue
        if isinstance(other, dict) and isinstance(other.get("output_dir"), str):
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            found.append(Neighbour(shown, other["output_dir"], other))
    return found


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """One error if another recipe writes where the one at `path` does."""
    output = recipe.get("output_dir")
    for other in neighbours(path):
        if isinstance(output, str) and Path(other.output_dir) == Path(output):
            wrong = f"{output} is where {other.path} writes too, and the later run would take up its checkpoints"
            yield Finding("output_dir", wrong, "give this recipe a folder of its own")
            return
