"""The only reader of recipes: a recipe as written, and the DeepSpeed configuration that it names."""

import json
import re
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_yaml

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# Keys whose values are looked into, and the form that these must have
LISTS = {"plugins": str, "datasets": dict, "test_datasets": dict}


def read(path: Path) -> dict[str, Any]:
    """The recipe as written. `UserError` when it is no YAML mapping, or a key is given twice or has a wrong form.

    Keys of `fsdp_config` lose the prefix `fsdp_`, as in Axolotl.
    """
    recipe = read_yaml(path)
    for key, kind in LISTS.items():
        value = recipe.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(part, kind) for part in value)):
            parts = "names" if kind is str else "mappings with path and type"
            raise UserError(f"{path}: {key}: not a list of {parts}; begin each with '- ' on a line of its own")
    if fsdp := recipe.get("fsdp_config"):
        if not isinstance(fsdp, dict):
            raise UserError(f"{path}: fsdp_config: not a mapping; write its keys below it")
        recipe["fsdp_config"] = _without_prefix(path, fsdp)
    return recipe


def _without_prefix(path: Path, fsdp: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in fsdp.items():
        name = key if key == "fsdp_version" else key.removeprefix("fsdp_")
        if name in plain:
            raise UserError(f"{path}: fsdp_config.{name}: given twice, with and without fsdp_; keep one of them")
        plain[name] = value
    return plain


def deepspeed_config(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What the recipe's `deepspeed` names or holds, None if it has none. `UserError` names the JSON file.

    A part that is null counts as absent, as in DeepSpeed.
    """
    given = recipe.get("deepspeed")
    if not given:
        return None
    if isinstance(given, dict):
        file, config = "the mapping", given
    else:
        file = given
        if not Path(file).is_file():
            raise UserError(f"{path}: deepspeed: no file {file} (relative to the working directory)")
        try:
            config = json.loads(Path(file).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: deepspeed: {file} is not JSON: {error}; mend it") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: deepspeed: {file}: no JSON object; write its keys in {{ }}")
    return _without_nulls(config)


def _without_nulls(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if value is not None
    }


def on_hub(base: str) -> bool:
    """Whether `base` names a model of the Hub, owner/name, and no folder: not even one that is not made yet."""
    return bool(HUB_ID.fullmatch(base)) and not base.startswith("outputs/") and not Path(base).parent.exists()
