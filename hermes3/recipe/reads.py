"""Which of a recipe's keys nothing reads, or only another way through Axolotl, from `reads.json` (`make reads`)."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hermes3.files import read_json, read_yaml
from hermes3.recipe.read import ERROR, NOTE, Finding

OURS = "hermes3/train"
HERE = Path(__file__)
# - `keys`: key -> way -> the first line that reads it, {} for none. A way is "SFT" or "DPO, adapter"; for keys of
#   `datasets` the type of the entry; "all" of these; a plugin's package; or "elsewhere", where neither SFT nor DPO goes
# - `known`: names that the schema lets pass
# - `deepspeed`: keys at the top of a DeepSpeed file; `deepspeed_auto`: those whose "auto" transformers fills
READS = SimpleNamespace(**read_json(HERE.with_suffix(".json")), **read_yaml(HERE.with_suffix(".yml")))


def readers(recipe: dict[str, Any]) -> dict[str, str | None]:
    """For each key with a value, `datasets.KEY` and `fsdp_config.KEY` too, the first line that reads it, or None."""
    lines, way, pair_types = {}, _way(recipe), READS.pair_types if recipe.get("rl") else {}
    for key, value in recipe.items():
        if value is not None:
            lines[key] = _reader(key, recipe, [way])
        for part in (value if isinstance(value, list) else [value or {}]) if key in READS.parts else []:
            kind = str(part.get("type") or "tokens").partition(".")[0]
            kind = pair_types.get(kind, kind)
            ways = [way, kind if kind in READS.tried_types else None] if READS.parts[key] == "datasets" else [way]
            set_here = [name for name, inner in part.items() if inner is not None]
            lines |= {f"{key}.{name}": _reader(f"{READS.parts[key]}.{name}", recipe, ways) for name in set_here}
    return lines


def _reader(key: str, recipe: dict[str, Any], ways: list[str | None]) -> str | None:
    if (lines := READS.keys.get(key)) is None:
        return "unknown here"  # a key of somebody else's plugin; any other that is unknown the schema refuses
    if None in ways:
        return next(iter(lines.values()), None)
    packages = [name.rpartition(".")[0].replace(".", "/") for name in recipe.get("plugins") or []]
    packages += [OURS for name in packages if name.startswith(OURS)]
    return next((lines[way] for way in ("all", *ways, *READS.built_in, *packages) if way in lines), None)


def _way(recipe: dict[str, Any]) -> str | None:
    """None: one that was not tried."""
    if recipe.get("rl") not in (None, "dpo", "ipo") or any(recipe.get(key) for key in READS.untried):
        return None
    return ("DPO" if recipe.get("rl") else "SFT") + (", adapter" if recipe.get("adapter") else "")


def findings(recipe: dict[str, Any]) -> Iterator[Finding]:
    """An error for each key that is set and never read; a note where another Axolotl or foreign plugin may read it."""
    installed, way = version("axolotl"), _way(recipe) or f"rl: {recipe.get('rl')}"
    foreign = any(not name.startswith(("axolotl.", "hermes3.")) for name in recipe.get("plugins") or [])
    if installed != READS.axolotl:
        wrong = f"{installed} is installed, and which keys are read is known of {READS.axolotl}"
        yield Finding("axolotl", wrong, "`make reads` looks at the installed one", NOTE)
    level = NOTE if foreign or installed != READS.axolotl else ERROR
    for key in [key for key, line in readers(recipe).items() if line is None]:
        part, _, name = key.rpartition(".")
        lines = list(READS.keys[f"{READS.parts[part]}.{name}" if part else name].values())
        elsewhere = f"elsewhere: {', '.join(lines[:2])}" if lines else "nothing in Axolotl reads it"
        yield Finding(key, f"set, and never read under {way} ({elsewhere})", "leave it out", level)
