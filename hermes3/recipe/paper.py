"""What each recipe stands for: the hardware it is written for and the values that the paper states (`paper.yml`)."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Run:
    """One recipe's row of `paper.yml`; None: the paper does not say.

    `global_batch`: packed sequences (SFT) or pairs (DPO) a step. `values`: the recipe keys that the paper states.
    """

    gpu: str  # "H100", or "cpu"
    nodes: int
    gpus_per_node: int
    base: str | None = None
    global_batch: int | None = None
    gpu_hours: int | None = None
    epoch_kept: int | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


# What a recipe of one's own, which has no row, is checked against
ONE_NODE = Run(gpu="H100", nodes=1, gpus_per_node=8)


@lru_cache
def runs() -> dict[str, Run]:
    """The rows of `paper.yml` by recipe name, e.g. `405b_sft`."""
    rows = yaml.safe_load(Path(__file__).with_name("paper.yml").read_text(encoding="utf-8"))
    return {name: Run(**row) for name, row in rows.items()}


def run_of(recipe: Path) -> Run:
    """The row of a recipe file; one node of eight H100 when it has none."""
    return runs().get(recipe.stem, ONE_NODE)
