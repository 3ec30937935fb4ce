"""Which of a recipe's keys nothing reads, from `reads.json`: what `make reads` saw of one version of Axolotl.

Axolotl takes many keys that nothing reads afterwards, or that another way through it reads.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hermes3.recipe.finding import Finding, note

OURS = "hermes3/train"
# Keys whose own keys are read singly, and their name in `reads.json`
PARTS = {"datasets": "datasets", "test_datasets": "datasets", "fsdp_config": "fsdp_config"}
# Keys that take a recipe through code that was not tried, so that any reader counts
UNTRIED = ("pretraining_dataset", "streaming", "reward_model", "process_reward_model", "diffusion")
# Plugins that Axolotl registers unasked
BUILT_IN = ("axolotl/integrations/context_parallel", "axolotl/integrations/expert_parallel")
PAIR_TYPES = {"passthrough": "text pairs", "chat_template": "chat pairs"}
TRIED_TYPES = ("tokens", "chat_template", "completion", *PAIR_TYPES.values())


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


@lru_cache
def reads() -> Reads:
    return Reads(**json.loads(Path(__file__).with_name("reads.json").read_text(encoding="utf-8")))


def readers(recipe: dict[str, Any]) -> dict[str, str | None]:
    """For each key with a value, `datasets.KEY` and `fsdp_config.KEY` too, the first line that reads it, or None."""
    lines: dict[str, str | None] = {}
    way = _way(recipe)
    for key, value in recipe.items():
        if value is not None:
            lines[key] = _reader(key, recipe, [way])
        for part in (value if isinstance(value, list) else [value or {}]) if key in PARTS else []:
            ways = [way, _entry_type(recipe, part)] if PARTS[key] == "datasets" else [way]
            set_here = [name for name, inner in part.items() if inner is not None]
            lines |= {f"{key}.{name}": _reader(f"{PARTS[key]}.{name}", recipe, ways) for name in set_here}
    return lines


def _reader(key: str, recipe: dict[str, Any], ways: list[str | None]) -> str | None:
    lines = reads().keys.get(key)
    if lines is None:
        return "unknown here"  # a key of somebody else's plugin; any other that is unknown the schema refuses
    if None in ways:
        return next(iter(lines.values()), None)
    packages = [name.rpartition(".")[0].replace(".", "/") for name in recipe.get("plugins") or []]
    packages += [OURS for name in packages if name.startswith(OURS)]
    return next((lines[way] for way in ("all", *ways, *BUILT_IN, *packages) if way in lines), None)


def _way(recipe: dict[str, Any]) -> str | None:
    """None: one that was not tried."""
    if recipe.get("rl") not in (None, "dpo", "ipo") or any(recipe.get(key) for key in UNTRIED):
        return None
    return ("DPO" if recipe.get("rl") else "SFT") + (", adapter" if recipe.get("adapter") else "")


def _entry_type(recipe: dict[str, Any], entry: dict[str, Any]) -> str | None:
    kind = str(entry.get("type") or "tokens").partition(".")[0]
    kind = PAIR_TYPES.get(kind, kind) if recipe.get("rl") else kind
    return kind if kind in TRIED_TYPES else None


def findings(recipe: dict[str, Any]) -> Iterator[Finding]:
    """An error for each key that is set and never read; a note where another Axolotl or foreign plugin may read it."""
    installed = version("axolotl")
    foreign = [name for name in recipe.get("plugins") or [] if not name.startswith(("axolotl.", "hermes3."))]
    if installed != reads().axolotl:
        wrong = f"{installed} is installed, and which keys are read is known of {reads().axolotl}"
        yield note("axolotl", wrong, "`make reads` looks at the installed one")
    way = _way(recipe) or f"rl: {recipe.get('rl')}"
    finding = note if foreign or installed != reads().axolotl else Finding
    for key in [key for key, line in readers(recipe).items() if line is None]:
        part, _, name = key.rpartition(".")
        lines = list(reads().keys[f"{PARTS[part]}.{name}" if part else name].values())
        elsewhere = f"elsewhere: {', '.join(lines[:2])}" if lines else "nothing in Axolotl reads it"
        yield finding(key, f"set, and never read under {way} ({elsewhere})", "leave it out")
