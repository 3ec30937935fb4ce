"""Read a recipe, and resolve it as Axolotl does; `ValueError` at the first thing that is wrong."""

from pathlib import Path
from typing import Any

from hermes3.files import read_yaml
from hermes3.recipe import rules, schema
from hermes3.recipe.finding import ERROR
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.prepared import check_prepared

# The form of the parts that are looked into
LISTS = {"plugins": str, "datasets": dict, "test_datasets": dict}


def read(path: Path) -> dict[str, Any]:
    """The recipe as written. `ValueError` when it is no YAML mapping, or a key is given twice or has a wrong form."""
    recipe = read_yaml(path)
    for key, kind in LISTS.items():
        value = recipe.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(part, kind) for part in value)):
            parts = "names" if kind is str else "mappings with path and type"
            raise ValueError(f"{path}: {key}: not a list of {parts}; begin each with '- ' on a line of its own")
    if not isinstance(recipe.get("fsdp_config") or {}, dict):
        raise ValueError(f"{path}: fsdp_config: not a mapping; write its keys below it")
    return recipe


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
