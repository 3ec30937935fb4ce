"""The hardware that a recipe declares (its key `hardware`), and the devices that it can name (`gpus.yml`)."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from hermes3.files import UserError, wrong_keys

CPU = "cpu"


@dataclass(frozen=True)
class Gpu:
    """One device and its eighth of a node, as in `gpus.yml`. Bytes, FLOP/s (dense bf16), bytes/s, USD per hour."""

    name: str
    memory: float
    flops: float
    interconnect: float
    network: float  # per node
    host_memory: float  # per node
    host_bandwidth: float  # per node
    price: float
    compute: str | None  # NVIDIA's compute capability

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


@lru_cache
def gpus() -> dict[str, Gpu]:
    """Every device of `gpus.yml` by name."""
    rows = yaml.safe_load(Path(__file__).with_name("gpus.yml").read_text(encoding="utf-8"))
    return {name: Gpu(name=name, **values) for name, values in rows.items()}


def gpu_of(name: str) -> Gpu:
    """`UserError` with the known names when there is none of that name."""
    if name not in gpus():
        known = ", ".join(gpus())
        raise UserError(f"gpu: {name} is unknown; use one of {known}, or add it to hermes3/recipe/gpus.yml")
    return gpus()[name]


class Hardware(BaseModel):
    """`hardware: {gpu: h100-80gb, nodes: 6, gpus_per_node: 8}`. `gpu` is a name of `hermes3/recipe/gpus.yml`, or cpu.

    On CPUs `gpus_per_node` counts processes. `network`: Gb/s per node, of all its adapters, if not that of `gpus.yml`.
    """

    model_config = ConfigDict(extra="forbid")

    gpu: str
    nodes: PositiveInt
    gpus_per_node: PositiveInt
    network: PositiveFloat | None = None

    @property
    def gpus(self) -> int:
        """Ranks of the job: Axolotl trains with one process per GPU."""
        return self.nodes * self.gpus_per_node


def hardware_of(path: Path, recipe: dict[str, Any]) -> Hardware:
    """The hardware that the recipe at `path` declares. `UserError` names the file, the key and the remedy."""
    if recipe.get("hardware") is None:
        raise UserError(
            f"{path}: hardware: missing, and nothing says for how many GPUs the batch is meant; "
            "add e.g. hardware: {gpu: h100-80gb, nodes: 1, gpus_per_node: 8}"
        )
    try:
        hardware = Hardware.model_validate(recipe["hardware"])
        gpu_of(hardware.gpu)
    except ValidationError as error:
        wrong = wrong_keys(error)[0]
        key = f"hardware.{wrong}" if error.errors()[0]["loc"] else f"hardware: {wrong}"
        raise UserError(f"{path}: {key}; hardware has gpu, nodes, gpus_per_node and network") from None
    except UserError as error:
        raise UserError(f"{path}: hardware.{error}") from None
    return hardware


def check_world_size(hardware: dict[str, Any]) -> None:
    """`UserError` when this run has another number of processes than declared: its global batch would be another."""
    declared = Hardware.model_validate(hardware)
    running = int(os.environ.get("WORLD_SIZE", "1"))
    if running != declared.gpus:
        raise UserError(
            f"hardware: the recipe is for {declared.nodes} x {declared.gpus_per_node} = {declared.gpus} processes, "
            f"this run has {running}, and so another global batch; launch {declared.gpus}, or set hardware and "
            "gradient_accumulation_steps so that micro_batch_size x gradient_accumulation_steps x GPUs stays the same"
        )
