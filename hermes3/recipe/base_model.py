"""The model that a recipe starts from must be the one that it is meant for, and a whole one.

An adapter loads as random linear layers, or not at all.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hermes3.model_folder import check_model
from hermes3.recipe.finding import Finding, from_error, note
from hermes3.recipe.marks import NONE, marks_of
from hermes3.recipe.neighbours import neighbours
from hermes3.recipe.paper import paper_of
from hermes3.recipe.read import on_hub

SIZE = re.compile(r"(?<![\w.])\d+b(?![a-z0-9])")  # 8b of outputs/8b/base and of meta-llama/Llama-3.1-8B
BEST = "best"  # in a run's folder: the link to the epoch that `hermes3 select` chose


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with the `base_model` of the recipe at `path`; a note if it is not there yet."""
    base = recipe.get("base_model")
    if not isinstance(base, str):
        yield Finding("base_model", "missing", "name the folder of the model to start from")
        return
    yield from _other_size(path, base)
    yield from _untrained(path, recipe, base)
    folder = Path(base)
    for output, other in sorted(_adapters(path).items()):
        if folder in (Path(output), Path(output) / BEST):
            yield Finding(
                "base_model",
                f"{base} is what {other} writes, an adapter and no whole model",
                f"run `axolotl merge-lora {other}` and set {output}/merged",
            )
    if folder.is_dir():
        try:
            check_model(folder)
        except ValueError as error:
            yield from_error(error, "base_model")
    elif on_hub(base) and folder.parts[0] not in _output_roots(path, recipe):
        wrong = f"{base} is a Hub id, which was not looked at"
        yield note("base_model", wrong, f"`hermes3 tokenizer build {base} FOLDER` gives it the Hermes tokenizer")
    else:
        yield note("base_model", f"{base} is not built yet", "see the comment on its line")


def _other_size(path: Path, base: str) -> Iterator[Finding]:
    """The 70B in a recipe that is held to the paper's 8B by its name."""
    if paper_of(path):
        size, given = path.stem.partition("_")[0], SIZE.findall(base.lower())
        if given and size not in given:
            yield Finding(
                "base_model",
                f"{base} is a {given[0].upper()}, and {path.name} is named after the paper's {size.upper()}",
                f"set a model of {size.upper()}, or begin the file's name with {given[0]}_",
            )


def _untrained(path: Path, recipe: dict[str, Any], base: str) -> Iterator[Finding]:
    """Preferences are learnt by a model that can chat, and it is the reference too; an experiment may do otherwise."""
    if not recipe.get("rl") or marks_of(path).get("base_model", NONE).whose == "experiment":
        return
    for other in neighbours(path):
        if other.recipe.get("base_model") == base and not other.recipe.get("rl"):
            yield Finding(
                "base_model",
                f"{base} is what {other.path} starts from, and so has not learnt to chat",
                f"set {other.output_dir}/{BEST}, the epoch of that recipe's run that `hermes3 select` chose",
            )
            return


def _output_roots(path: Path, recipe: dict[str, Any]) -> set[str]:
    """The folders under which this recipe and its neighbours write."""
    given = [recipe.get("output_dir"), *(other.output_dir for other in neighbours(path))]
    return {Path(output).parts[0] for output in given if isinstance(output, str) and output}


def _adapters(path: Path) -> dict[str, Path]:
    """output_dir -> recipe, of the neighbours that train an adapter."""
    return {other.output_dir: other.path for other in neighbours(path) if other.recipe.get("adapter")}
