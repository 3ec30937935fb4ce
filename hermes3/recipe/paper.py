"""What the paper states of the model and phase that a recipe is for (`paper.yml`)."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Paper:
    """One row of `paper.yml`; None or absent: the paper does not say.

    `global_batch`: packed sequences a step. `values`: recipe keys as a recipe must spell them. `words`: what the paper
    says of a key that has no value to compare.
    """

    base: str
    values: dict[str, Any]
    gpus: int | None = None
    global_batch: int | None = None
    gpu_hours: int | None = None
    epoch_kept: int | None = None
    words: dict[str, str] = field(default_factory=dict)
    unstated: tuple[str, ...] = ()


@lru_cache
def rows() -> dict[str, Paper]:
    """The rows by size and phase, e.g. `405b_sft`."""
    given = yaml.safe_load(Path(__file__).with_name("paper.yml").read_text(encoding="utf-8"))
    return {name: _row(**row) for name, row in given.items()}


def _row(values: dict[str, dict[str, Any]], unstated: list[str], **rest: Any) -> Paper:
    merged = {key: value for keys in values.values() for key, value in keys.items()}
    return Paper(values=merged, unstated=tuple(unstated), **rest)


def paper_of(recipe: Path) -> Paper | None:
    """The row that a recipe is for, by its file's name: `8b_sft_lora.yml` is for `8b_sft`; None: the paper has none."""
    return next((row for name, row in rows().items() if f"{recipe.stem}_".startswith(f"{name}_")), None)
