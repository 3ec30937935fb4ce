"""Resolve a recipe as Axolotl does; `ValueError` at the first thing that is wrong."""

from pathlib import Path
from typing import Any

from hermes3.recipe import rules, schema
from hermes3.recipe.finding import ERROR
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.prepared import check_prepared
from hermes3.recipe.read import read


def validate(path: Path) -> dict[str, Any]:
    """The recipe as Axolotl resolves it, defaults filled in, on the hardware that it declares.

    `ValueError` names the file, the key and the remedy: for what is missing, what `schema` finds, and stale
    prepared data. All else is `hermes3 check`'s alone.
    """
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    wrong, resolved = schema.findings(recipe, hardware)
    for finding in (*rules.basic(path, recipe), *wrong):
        if finding.level == ERROR:
            raise ValueError(f"{path}: {finding}")
    check_prepared(path, recipe)
    return resolved
