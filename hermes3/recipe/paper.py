"""What the paper states of each model and phase (`paper.yml`), and whether a recipe that reproduces one keeps to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes3.files import read_yaml
from hermes3.recipe.hardware import Hardware
from hermes3.recipe.read import NOTE, Finding

OR = "or leave out `reproduces`"
SIZE = re.compile(r"(?<![\w.])\d+b(?![a-z0-9])")  # 8b of outputs/8b/base and of meta-llama/Llama-3.1-8B


@dataclass(frozen=True)
class Paper:
    """One row of `paper.yml`; None: the paper does not say."""

    base: str
    values: dict[str, Any]  # recipe keys as a recipe must spell them; null: must be absent
    gpus: int | None = None
    global_batch: int | None = None  # packed sequences per step
    gpu_hours: int | None = None


PAGE = read_yaml(Path(__file__).with_name("paper.yml"))
ROWS = {name: Paper(**row) for name, row in PAGE.items() if not name.startswith("_")}  # by size and phase, `405b_sft`


def paper_of(recipe: Path) -> Paper | None:
    """The row that a recipe is for, by its file's name: `8b_sft_lora.yml` is for `8b_sft`; None: the paper has none."""
    return next((row for name, row in ROWS.items() if f"{recipe.stem}_".startswith(f"{name}_")), None)


def findings(recipe: dict[str, Any], hardware: Hardware, name: str) -> Iterator[Finding]:
    """Where the recipe is not what the paper states of `name`, e.g. `8b_sft`; its GPUs are the user's choice."""
    if not (paper := ROWS.get(name)):
        yield Finding("reproduces", f"{name} is not in the paper", f"use one of {', '.join(ROWS)}")
        return
    for key, stated in paper.values.items():
        value = recipe.get(key)
        if stated is None and value is not None:
            yield Finding(key, f"{value}; the paper's {name} does without it", f"leave it out, {OR}")
        elif value != stated or isinstance(value, bool) != isinstance(stated, bool):
            wrong = f"{'missing' if value is None else value}; the paper states {stated} for {name}"
            yield Finding(key, wrong, f"set {stated}, {OR}")
    size, sizes = name.partition("_")[0], SIZE.findall(str(recipe.get("base_model")).lower())
    if sizes and size not in sizes:
        wrong = f"{recipe['base_model']} is a {sizes[0].upper()}, and the recipe reproduces {name}"
        yield Finding("base_model", wrong, f"set a model of {size.upper()}, {OR}")
    steps = [recipe.get(key) for key in ("micro_batch_size", "gradient_accumulation_steps")]
    micro, accumulation = (value if isinstance(value, int) else 1 for value in steps)
    gpus, wanted = hardware.gpus, paper.global_batch
    if wanted and (batch := micro * accumulation * gpus) != wanted:
        wrong = f"is {micro} x {accumulation} x {gpus} = {batch}, and the paper's {wanted}"
        wrong = f"the global batch, micro_batch_size x gradient_accumulation_steps x GPUs, {wrong}"
        whole, rest = divmod(wanted, micro * gpus)
        divide = f"choose hardware whose GPUs divide {wanted}, {OR}"
        remedy = divide if rest else f"set gradient_accumulation_steps: {whole}"
        yield Finding("gradient_accumulation_steps", wrong, remedy)
    if wanted and gpus != paper.gpus:
        yield Finding("hardware", f"{gpus} GPUs, the paper's {paper.gpus}", "equal where the global batch is", NOTE)
