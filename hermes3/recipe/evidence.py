"""The lines of installed source that read a configuration key: the evidence for what a trial cannot reach."""

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# The schema reads keys in order to judge them; these write documents about them, or send them away
NOT_READERS = (
    "axolotl/utils/schemas/",
    "axolotl/telemetry/",
    "axolotl/cli/config_options.py",
    "axolotl/cli/agent_docs",
)
# Modules that `axolotl train` does not take: other commands
OTHER_COMMANDS = tuple(
    f"axolotl/{name}"
    for name in ("cli/inference", "cli/evaluate", "cli/merge", "cli/quantize", "cli/vllm", "cli/cloud", "evaluate.py")
)
PLUGINS = "axolotl/integrations/"


@lru_cache
def sources(package: str) -> list[tuple[str, list[str]]]:
    """The modules of an installed package that may read keys: (`axolotl/train.py`, its lines), shallow ones first."""
    locations = find_spec(package).submodule_search_locations if package else None
    if not locations:
        return []
    root = Path(locations[0])
    files = sorted(root.rglob("*.py"), key=lambda file: (len(file.parts), file))
    named = [(f"{package.replace('.', '/')}/{file.relative_to(root).as_posix()}", file) for file in files]
    return [
        (name, file.read_text(encoding="utf-8").splitlines())
        for name, file in named
        if not name.startswith(NOT_READERS)
    ]


def lines_that_read(key: str, of: str = "cfg", package: str = "axolotl") -> list[str]:
    """`axolotl/utils/trainer.py:606` for each line that reads `key` of the configuration, or of its part `of`.

    Attribute, item, `get` and `getattr` count, and a name in the trainer builder's lists of arguments; an assignment
    does not.
    """
    item = rf"""["']{re.escape(key)}["']"""
    name = re.escape(key)
    read = re.compile(rf"\b{of}(\.{name}\b(?!\s*=[^=])|\.get\(\s*{item}|\[{item}\](?!\s*=[^=])|,\s*{item})")
    listed = re.compile(rf"^\s*{item},$")
    return [
        f"{module}:{number}"
        for module, lines in sources(package)
        for number, line in enumerate(lines, 1)
        if key in line
        and not line.lstrip().startswith("#")
        and (read.search(line) or (of == "cfg" and "/core/builders/" in module and listed.search(line)))
    ]


def on_path(lines: list[str], recipe: dict, plugins: list[str]) -> list[str]:
    """Those of the lines that the recipe's training can come by: not another trainer's, command's or plugin's."""
    builder = "axolotl/core/builders/causal.py" if recipe.get("rl") else "axolotl/core/builders/rl.py"
    packages = tuple(name.rpartition(".")[0].replace(".", "/") for name in plugins)
    return [
        line
        for line in lines
        if not line.startswith((builder, *OTHER_COMMANDS))
        and (not line.startswith(PLUGINS) or line.startswith(packages))
    ]


def lines_that_fill(key: str) -> list[str]:
    """Where transformers fills an "auto" of a DeepSpeed JSON; `key` as in `zero_optimization.reduce_bucket_size`."""
    name = "transformers/integrations/deepspeed.py"
    text = Path(find_spec("transformers").submodule_search_locations[0], "integrations/deepspeed.py").read_text("utf-8")
    return [f"{name}:{number}" for number, line in enumerate(text.splitlines(), 1) if f'"{key}"' in line]
