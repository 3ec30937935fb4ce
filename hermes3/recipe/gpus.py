"""Devices as data (`gpus.yml`): memory, peak speed, and the host that they sit in."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Gpu:
    """One device and its eighth of a node. Bytes, FLOP/s (dense bf16) and bytes/s."""

    name: str
    memory: float
    flops: float
    interconnect: float
    host_memory: float  # a node
    host_bandwidth: float  # a node

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


@lru_cache
def gpus() -> dict[str, Gpu]:
    """Every device of `gpus.yml` by name."""
    given = yaml.safe_load(Path(__file__).with_name("gpus.yml").read_text(encoding="utf-8"))
    return {name: Gpu(name=name, **values) for name, values in given.items()}


def gpu_of(name: str) -> Gpu:
    """`ValueError` with the known names when there is none of that name."""
    if name not in gpus():
        raise ValueError(
            f"gpu: {name} is unknown; use one of {', '.join(gpus())}, or add it to hermes3/recipe/gpus.yml"
        )
    return gpus()[name]
