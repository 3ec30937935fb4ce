"""Which of a recipe's keys nothing reads, from `reads.json`: what `make reads` saw of one version of Axolotl.

Axolotl takes many keys that nothing reads afterwards, or that another way through it reads.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hermes3.recipe.finding import Finding, note

OURS = "hermes3/train"
PART = {"datasets": "datasets", "test_datasets": "datasets", "fsdp_config": "fsdp_config"}  # whose keys are read singly
# Keys that take a recipe through code that was not tried, so that any reader counts
UNTRIED = ("pretraining_dataset", "streaming", "reward_model", "process_reward_model", "diffusion")
# Plugins that Axolotl registers unasked
BUILT_IN = ("axolotl/integrations/context_parallel", "axolotl/integrations/expert_parallel")


@dataclass(frozen=True)
class Reads:
    """`keys`: key -> way -> the first line that reads it, `{}` for none; `known`: names that the schema lets pass.

    `deepspeed`: keys at the top of a DeepSpeed file; `deepspeed_auto`: those whose "auto" transformers fills.

    A way: "SFT", "DPO, adapter", for keys of `datasets` the type of the entry; "all" of these; a plugin's package;
    "elsewhere" for code that no recipe of SFT or DPO takes.
    """

    axolotl: str
    known: dict[str, list[str]]
    deepspeed: list[str]
    deepspeed_auto: list[str]
    keys: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Reader:
    """The first line that reads `key`; None: nothing does."""

    key: str
    line: str | None


@lru_cache
def reads() -> Reads:
    return Reads(**json.loads(Path(__file__).with_name("reads.json").read_text(encoding="utf-8")))


def readers(recipe: dict[str, Any]) -> list[Reader]:
    """One for each key that has a value, in the recipe's order, `datasets.KEY` and `fsdp_config.KEY` too."""
    found = []
    for key, value in recipe.items():
        if value is None:
            continue
        found.append(_reader(key, key, recipe, _ways(recipe)))
        for entry in (value if isinstance(value, list) else [value]) if key in PART else []:
            ways = [*_ways(recipe), _entry_type(recipe, entry)]
            inner = [name for name, given in entry.items() if given is not None]
            found += [_reader(f"{key}.{name}", f"{PART[key]}.{name}", recipe, ways) for name in inner]
    return list({reader.key: reader for reader in found}.values())


def _reader(label: str, key: str, recipe: dict[str, Any], ways: list[str | None]) -> Reader:
    lines = reads().keys.get(key)
    if lines is None:  # a key of somebody else's plugin, or unknown, which the schema tells
        return Reader(label, "not known")
    packages = [name.rpartition(".")[0].replace(".", "/") for name in recipe.get("plugins") or []]
    wanted = ("all", *ways, *BUILT_IN, *(OURS if name.startswith(OURS) else name for name in packages))
    if None in ways:
        wanted = tuple(lines)
    return Reader(label, next((lines[way] for way in wanted if way in lines), None))


def _ways(recipe: dict[str, Any]) -> list[str | None]:
    """None: one that was not tried."""
    if recipe.get("rl") not in (None, "dpo", "ipo") or any(recipe.get(key) for key in UNTRIED):
        return [None]
    return [("DPO" if recipe.get("rl") else "SFT") + (", adapter" if recipe.get("adapter") else "")]


def _entry_type(recipe: dict[str, Any], entry: dict[str, Any]) -> str | None:
    kind = str(entry.get("type") or "tokens").partition(".")[0]
    names = {"passthrough": "text pairs", "chat_template": "chat pairs"} if recipe.get("rl") else {}
    tried = {"tokens", "chat_template", "completion", *names.values()}
    return names.get(kind, kind) if names.get(kind, kind) in tried else None


def findings(recipe: dict[str, Any]) -> Iterator[Finding]:
    """An error for each key that is set and never read; a note where another Axolotl or foreign plugin may read it."""
    installed = _installed()
    foreign = [name for name in recipe.get("plugins") or [] if not name.startswith(("axolotl.", "hermes3."))]
    if installed != reads().axolotl:
        what = f"{installed} is installed, and which keys are read is known of {reads().axolotl}"
        yield note("axolotl", what, "`make reads` looks at the installed one")
    way = _ways(recipe)[0] or f"rl: {recipe.get('rl')}"
    finding = note if foreign or installed != reads().axolotl else Finding
    for reader in readers(recipe):
        if reader.line is None:
            part, _, name = reader.key.rpartition(".")
            lines = list(reads().keys[f"{PART[part]}.{name}" if part else name].values())
            elsewhere = f"elsewhere: {', '.join(lines[:2])}" if lines else "nothing in Axolotl reads it"
            yield finding(reader.key, f"set, and never read under {way} ({elsewhere})", "leave it out")


@lru_cache
def _installed() -> str:
    try:
        return version("axolotl")
    except PackageNotFoundError:
        return "none"
