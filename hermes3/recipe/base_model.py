"""The model that a recipe starts from must be a whole one: an adapter loads as random linear layers, or not at all."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hermes3.model_folder import check_model
from hermes3.recipe.finding import Finding, from_error, note


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with the `base_model` of the recipe at `path`; a note if it is not there yet."""
    base = recipe.get("base_model")
    if not isinstance(base, str):
        yield Finding("base_model", "missing", "name the folder of the model to start from")
        return
    folder = Path(base)
    for output, other in sorted(_adapters(path).items()):
        if Path(output) == folder:
            yield Finding(
                "base_model",
                f"{base} is what {other} writes, an adapter and no whole model",
                f"run `axolotl merge-lora {other}` and set {base}/merged",
            )
    if folder.is_dir():
        try:
            check_model(folder)
        except ValueError as error:
            yield from_error(error, "base_model")
    else:
        yield note("base_model", f"{base} is not built yet", "see the comment on its line")


@lru_cache
def _recipe_files(folder: Path) -> tuple[tuple[Path, str, str | None], ...]:
    """(file, output_dir, adapter) of the recipes beside a recipe, below and above it."""
    found = []
    for file in sorted({*folder.glob("*.yml"), *folder.glob("experiments/*.yml"), *folder.parent.glob("*.yml")}):
        try:
            other = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError):
            continue
        if isinstance(other, dict) and isinstance(other.get("output_dir"), str):
            found.append((file, other["output_dir"], other.get("adapter")))
    return tuple(found)


def _adapters(path: Path) -> dict[str, Path]:
    """output_dir -> recipe, of the neighbours that train an adapter and of the repository's."""
    folders = {path.resolve().parent, Path("recipes").resolve(), Path("recipes/experiments").resolve()}
    files = [entry for folder in sorted(folders) if folder.is_dir() for entry in _recipe_files(folder)]
    return {output: file for file, output, adapter in files if adapter and file.resolve() != path.resolve()}
