"""The hardware that a recipe declares (its key `hardware`), and the devices that it can name (`gpus.yml`)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from hermes3.files import UserError, read_yaml, wrong_keys

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


GPUS = {name: Gpu(name, **row) for name, row in read_yaml(Path(__file__).with_name("gpus.yml")).items()}


def gpu_of(name: str) -> Gpu:
    """`UserError` with the known names when there is none of that name."""
    if name not in GPUS:
        remedy = f"use one of {', '.join(GPUS)}, or add it to hermes3/recipe/gpus.yml"
        raise UserError(f"gpu: {name} is unknown; {remedy}")
    return GPUS[name]


class Hardware(BaseModel, extra="forbid"):
    """`hardware: {gpu: h100-80gb, nodes: 6, gpus_per_node: 8}`, as a recipe declares it."""

    gpu: str  # a name of `gpus.yml`, or cpu, of which processes are counted
    nodes: PositiveInt
    gpus_per_node: PositiveInt
    network: PositiveFloat | None = None  # Gb/s per node, of all its adapters, if not that of `gpus.yml`

    @property
    def gpus(self) -> int:
        """Ranks of the job: Axolotl trains with one process per GPU."""
        return self.nodes * self.gpus_per_node


class HermesArgs(BaseModel):
    """The keys that our plugin adds to a recipe. Axolotl merges them into its own schema."""

    hardware: Hardware | None = None  # what the recipe is written for; another number of processes is refused
    reproduces: str | None = None  # the paper's size and phase that `hermes3 check` compares with, e.g. 8b_sft
    restart_steps: PositiveInt | None = None  # save a checkpoint to restart from every so many steps; keep the newest
    token_weighted_loss: bool | None = None  # mean over the trained tokens of all ranks, not over the ranks' means


def hardware_of(path: Path, recipe: dict[str, Any]) -> Hardware:
    """The hardware that the recipe at `path` declares. `UserError` names the file, the key and the remedy."""
    if recipe.get("hardware") is None:
        wrong = "missing, and nothing says for how many GPUs the batch is meant"
        raise UserError(f"{path}: hardware: {wrong}; add e.g. hardware: {{gpu: h100-80gb, nodes: 1, gpus_per_node: 8}}")
    try:
        hardware = Hardware.model_validate(recipe["hardware"])
        gpu_of(hardware.gpu)
    except ValidationError as error:
        key = "." if error.errors()[0]["loc"] else ": "
        wrong = f"hardware{key}{wrong_keys(error)[0]}"
        raise UserError(f"{path}: {wrong}; hardware has gpu, nodes, gpus_per_node and network") from None
    except UserError as error:
        raise UserError(f"{path}: hardware.{error}") from None
    return hardware


def check_world_size(hardware: dict[str, Any]) -> None:
    """`UserError` when this run has another number of processes than declared: its global batch would be another."""
    declared, running = Hardware.model_validate(hardware), int(os.environ.get("WORLD_SIZE", "1"))
    if running != declared.gpus:
        processes = f"{declared.nodes} x {declared.gpus_per_node} = {declared.gpus} processes"
        wrong = f"hardware: the recipe is for {processes}, this run has {running}, and so another global batch"
        product = "micro_batch_size x gradient_accumulation_steps x GPUs"
        raise UserError(f"{wrong}; launch {declared.gpus}, or set hardware so that {product} stays the same")
