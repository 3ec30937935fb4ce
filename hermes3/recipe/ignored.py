"""Keys that a recipe sets and nothing reads, each with what reads it elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hermes3.recipe.evidence import lines_that_read, on_path
from hermes3.recipe.finding import Finding, note
from hermes3.recipe.reads import Trace

# Parts of a recipe whose keys are read one by one; any other mapping is handed on whole
ENTRIES = ("datasets", "test_datasets")
SHARDING = "fsdp_config"
# What stops a trial and no run: rows, kernels or a network that only the run has, or too slow a machine
LIMITS = re.compile(
    r"^NotImplementedError|\b(CUDA|GPUs?|triton|bitsandbytes|offline mode|trial ended)\b", re.IGNORECASE
)
ENTRY = r"(?:ds_cfg|dataset_config|dataset_cfg|dataset|ds|d)"  # what Axolotl calls an entry of `datasets`


@dataclass(frozen=True)
class Reader:
    """The first line that reads `key`. `seen`: in the trial; else in the source, where the trial cannot go."""

    key: str
    line: str | None
    seen: bool


def readers(recipe: dict[str, Any], trace: Trace) -> list[Reader]:
    """One for each key of the recipe, in its order; `datasets.KEY` and `fsdp_config.KEY` too."""
    found = []
    for key, value in recipe.items():
        found.append(_reader(key, key, trace, recipe))
        if key in ENTRIES:
            inner = dict.fromkeys(name for entry in value for name, given in entry.items() if given is not None)
            found += [_reader(f"{key}.{name}", f"datasets.{name}", trace, recipe) for name in inner]
        elif key == SHARDING and isinstance(value, dict):
            found += [_shard_reader(f"{key}.{name}", recipe) for name in value]
    return found


def _reader(label: str, name: str, trace: Trace, recipe: dict[str, Any]) -> Reader:
    """A key that was left out of the trial may have been asked for there, in vain."""
    seen = trace.readers.get(name)
    if seen and name not in trace.left_out:
        return Reader(label, seen[0], True)
    if name not in trace.switched_off and not trace.stopped:
        return Reader(label, None, False)
    return _shard_reader(label, recipe)


def _shard_reader(label: str, recipe: dict[str, Any]) -> Reader:
    lines = on_path(_lines(label, recipe), recipe, recipe.get("plugins") or [])
    return Reader(label, lines[0] if lines else None, False)


def _lines(label: str, recipe: dict[str, Any]) -> list[str]:
    """Lines of Axolotl and of the recipe's plugins that read `KEY`, `datasets.KEY` or `fsdp_config.KEY`."""
    part, _, name = label.rpartition(".")
    of = {"": "cfg", SHARDING: SHARDING}.get(part, ENTRY)
    modules = dict.fromkeys(plugin.rpartition(".")[0] for plugin in recipe.get("plugins") or [])
    packages = ["axolotl", *(module.rpartition(".")[0] for module in modules if not module.startswith("axolotl."))]
    return [line for package in packages for line in lines_that_read(name, of, package)]


def findings(recipe: dict[str, Any], trace: Trace) -> Iterator[Finding]:
    """An error for each key that is set and never read; mere notes when the trial did not come to its end.

    That is an error itself, but for what no CPU can try.
    """
    if trace.stopped:
        what = f"stopped on the throw-away model: {trace.stopped}"
        if LIMITS.search(trace.stopped):
            yield note("the trial", what, "it was looked up in the source who reads the other keys")
        else:
            yield Finding("the trial", what, "change what it names, for a run would stop there too")
    for reader in readers(recipe, trace):
        if reader.line is None:
            lines = _lines(reader.key, recipe)
            elsewhere = f"elsewhere: {', '.join(lines[:2])}" if lines else "nothing in Axolotl reads it"
            finding = note if trace.stopped else Finding
            yield finding(reader.key, f"set, and never read under {_path(recipe)} ({elsewhere})", "leave it out")


def _path(recipe: dict[str, Any]) -> str:
    words = [f"rl: {recipe['rl']}" if recipe.get("rl") else "SFT"]
    words += [f"adapter: {recipe['adapter']}"] if recipe.get("adapter") else []
    words += ["sample_packing"] if recipe.get("sample_packing") else []
    return ", ".join(words)
