"""What a reader needs to do it again: the commit, the lock, and the recipe of each run."""

from pathlib import Path
from typing import Any

import yaml

from hermes3.files import sha256
from hermes3.git import commit

LOCK = Path("requirements.txt")
RECIPES = Path("recipes")


def repository() -> dict[str, Any]:
    """`commit` (None outside a repository), whether tracked files differ from it, and the lock's sha256."""
    said = commit(Path())
    return {
        "commit": said and said.removesuffix("-dirty"),
        "changed": bool(said) and said.endswith("-dirty"),
        "lock": {"path": str(LOCK), "sha256": sha256(LOCK) if LOCK.is_file() else None},
    }


def recipe_of(folder: Path) -> Path | None:
    """The recipe whose `output_dir` is `folder`; None if there is none, or if two claim it."""
    found = [path for path in sorted(RECIPES.rglob("*.yml")) if _output(path) == folder.resolve()]
    return found[0] if len(found) == 1 else None


def _output(recipe: Path) -> Path | None:
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    out = given.get("output_dir") if isinstance(given, dict) else None
    return Path(out).resolve() if out else None


def recipe_facts(name: str, folder: Path) -> dict[str, Any]:
    """The run's recipe as it stands now, with its sha256; `path` is None where no recipe writes to `folder`."""
    path = recipe_of(folder)
    return {"run": name, "path": str(path) if path else None, "sha256": sha256(path) if path else None}
