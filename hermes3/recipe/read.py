"""The only reader of recipes and of the DeepSpeed files that they name; and what `check` finds wrong with a key."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_yaml

# Parts of a DeepSpeed file that are looked into
ZERO = "zero_optimization"
OBJECTS = (ZERO, "bf16", "fp16", f"{ZERO}.offload_optimizer", f"{ZERO}.offload_param")
# Keys whose values are looked into, and the form that these must have
LISTS = {"plugins": str, "datasets": dict, "test_datasets": dict}
ERROR, NOTE = "error", "note"


@dataclass(frozen=True)
class Finding:
    """`key`: as in the file, `datasets.type` for a nested one. `wrong` and `remedy` are clauses without a full stop."""

    key: str
    wrong: str
    remedy: str
    level: str = ERROR  # a NOTE is something to know that does not make a recipe wrong

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}; {self.remedy}"


def read(path: Path) -> dict[str, Any]:
    """The recipe as written; keys of `fsdp_config` lose the prefix `fsdp_`, as in Axolotl.
    `UserError` when it is no YAML mapping, or a key is given twice or has a wrong form."""
    recipe = read_yaml(path)
    for key, kind in LISTS.items():
        value = recipe.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(part, kind) for part in value)):
            parts = "names" if kind is str else "mappings with path and type"
            raise UserError(f"{path}: {key}: not a list of {parts}; begin each with '- ' on a line of its own")
    fsdp = recipe.get("fsdp_config") or {}
    if not isinstance(fsdp, dict):
        raise UserError(f"{path}: fsdp_config: not a mapping; write its keys below it")
    names = [key if key == "fsdp_version" else key.removeprefix("fsdp_") for key in fsdp]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: fsdp_config.{twice[0]}: given twice, with and without fsdp_; keep one of them")
    return recipe | ({"fsdp_config": dict(zip(names, fsdp.values(), strict=True))} if fsdp else {})


def deepspeed_config(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What the recipe's `deepspeed` names or holds, None if it has none.
    A part that is null counts as absent, as in DeepSpeed. `UserError` names the JSON file."""
    config = recipe.get("deepspeed")
    if not config:
        return None
    where, file = f"{path}: deepspeed: {_named(recipe)}", None if isinstance(config, dict) else Path(str(config))
    if file and not file.is_file():
        there = ", ".join(sorted(map(str, file.parent.glob("*.json"))))
        remedy = f"there are {there}" if there else "run from the root of the repository"
        raise UserError(f"{path}: deepspeed: no file {file} (relative to the working directory); {remedy}")
    try:
        text = file.read_text(encoding="utf-8") if file else json.dumps(config, default=str)
        config = json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}; mend it") from None
    if not isinstance(config, dict):
        raise UserError(f"{where}: no JSON object; write its keys in {{ }}")
    for part in OBJECTS:
        if not isinstance(value_at(config, part) or {}, dict):
            raise UserError(f"{where}: {part} is no JSON object; write its keys in {{ }}")
    return config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without its nulls. `ValueError` for a key that stands twice, as DeepSpeed refuses it."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key} is given twice")
    return {key: value for key, value in pairs if value is not None}


def _named(recipe: dict[str, Any]) -> str:
    return "the mapping" if isinstance(recipe["deepspeed"], dict) else recipe["deepspeed"]


def in_deepspeed(recipe: dict[str, Any], finding: Finding) -> Finding:
    """The finding with the name of the DeepSpeed file that it is about."""
    return replace(finding, key="deepspeed", wrong=f"{_named(recipe)}: {finding.wrong}")


def value_at(recipe: dict[str, Any], key: str) -> Any:
    """The value of a key such as `fsdp_config.offload_params`, None if there is none."""
    return reduce(lambda part, name: part.get(name) if isinstance(part, dict) else None, key.split("."), recipe)


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not among the known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "leave it out"


def from_error(error: ValueError, key: str, path: Path | None = None) -> Finding:
    """The finding of an error that reads `FILE: KEY: what is wrong; what to do`; `key` if it names none."""
    wrong, separator, remedy = str(error).removeprefix(f"{path}: ").rpartition("; ")
    wrong, remedy = (wrong, remedy) if separator else (remedy, "mend it")
    first, colon, rest = wrong.partition(": ")
    names_key = colon and first.replace("_", "").replace(".", "").isalnum()
    return Finding(first, rest, remedy) if names_key else Finding(key, wrong, remedy)
