"""All that `hermes3 plan` says of one recipe."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hermes3.plan.cost import Checkpoints, Cost, checkpoints, cost
from hermes3.plan.memory import HOST_SHARE, Memory, fewest, memory
from hermes3.plan.schedule import Schedule, batches, schedule
from hermes3.plan.settings import PAPER, PAPER_MODEL, PAPER_NODES, REPLICATED, SETTINGS, setting_of
from hermes3.plan.shapes import Shape, published, shape_of
from hermes3.plan.work import work_of
from hermes3.recipe.hardware import Gpu, gpu_of, hardware_of
from hermes3.recipe.read import read as read_recipe

BANDWIDTH = 2e9  # bytes/s that a node writes to shared storage: assumed
PRICE = 2.5  # USD a GPU-hour: assumed
TIGHT = 0.05  # headroom below which fragments alone may end a run


@dataclass(frozen=True)
class Plan:
    """`settings`: memory at each way of sharding, the recipe's own first, saves in one piece or in parts as its own.

    By setting, None for none: `nodes_needed`, the fewest that hold a step; `nodes_to_run`, that also make the batch.
    """

    recipe: str
    shape: Shape
    gpu: Gpu
    gpus: int
    nodes: int
    accumulation: int
    trained: int  # parameters
    schedule: Schedule
    settings: list[Memory]
    nodes_needed: dict[str, int | None]
    nodes_to_run: dict[str, int | None]
    cost: Cost
    checkpoints: Checkpoints
    warnings: list[str]

    @property
    def own(self) -> Memory:
        return self.settings[0]

    def as_json(self) -> dict[str, Any]:
        """Numbers in bytes, seconds, hours, USD, with `fits` and `headroom` of each setting."""
        found = asdict(self)
        for one, given in zip(self.settings, found["settings"], strict=True):
            given["setting"] = one.setting.name
            given |= {"fits": one.fits, "headroom": one.headroom}
            given |= {key: found[key][one.setting.name] for key in ("nodes_needed", "nodes_to_run")}
        del found["nodes_needed"], found["nodes_to_run"]
        return found


def read(path: Path) -> dict[str, Any]:
    """The recipe as written. `ValueError` when it is no mapping or lacks what a plan starts from."""
    recipe = read_recipe(path)
    if not isinstance(recipe.get("sequence_len"), int):
        raise ValueError(f"{path}: sequence_len is missing or no number; give the tokens of a sequence")
    for key in ("load_in_4bit", "load_in_8bit"):
        if recipe.get(key):
            raise ValueError(f"{path}: {key}: quantized weights are not planned for; take it out to plan it in bf16")
    return recipe


def plan(
    path: Path,
    gpus: int | None = None,
    gpu: str | None = None,
    mix: Path | None = None,
    mfu: float | None = None,
    price: float | None = None,
    bandwidth: float | None = None,
    host_memory: float | None = None,
    packed: bool = True,
) -> Plan:
    """Plan the recipe at `path`, on its own hardware unless `gpus` or `gpu` say other. `ValueError` if it cannot.

    `packed` False: the mix is not packed, which takes Axolotl and seconds; the steps of SFT are then the paper's.
    """
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    device = gpu_of(gpu or hardware.gpu)
    device = replace(device, host_memory=host_memory or device.host_memory)
    n = gpus or hardware.gpus
    per_node = min(hardware.gpus_per_node if gpus is None else 8, n)
    if n % per_node:
        raise ValueError(f"--gpus {n}: nodes have {per_node}; give a multiple")
    nodes = n // per_node
    shape, own = shape_of(path, recipe), setting_of(path, recipe)
    work, warnings = work_of(recipe)
    batch, accumulation = batches(path, recipe, n)
    work = replace(work, accumulation=accumulation)
    planned, assumed = schedule(path, recipe, batch, mix, packed)
    warnings += assumed
    ways = [own]
    if not device.is_cpu:
        others = [one for one in SETTINGS if one.name != own.name]
        ways += [one.gathering() for one in others] if own.gathered else others
    if replace(shape, name=PAPER_MODEL) == published()[PAPER_MODEL] and not work.rank and not device.is_cpu:
        ways.append(PAPER)
        warnings.append(
            f'"{PAPER.name}": fp32 states on the hosts, and on one the whole model in bf16 beside them. The paper says '
            f"only that {PAPER_NODES} nodes were the fewest (docs/planning.md)"
        )
    held = [memory(shape, work, way, device, nodes, per_node) for way in ways]
    made, assumed = cost(shape, work, planned, own, device, n, nodes, mfu, PRICE if price is None else price)
    warnings += assumed
    saved = checkpoints(recipe, shape, work, planned, held[0], made, device, n, bandwidth or BANDWIDTH)
    if price is None and not device.is_cpu:
        warnings.append(f"price: {PRICE} USD a GPU-hour is assumed; give --price")
    if bandwidth is None:
        warnings.append(f"storage: {BANDWIDTH / 1e9:.0f} GB/s a node are assumed; give --bandwidth")
    if host_memory is None and not device.is_cpu:
        warnings.append(
            f"host: {device.host_memory / 1e12:.3g} TB a node, {HOST_SHARE:.0%} of it free, are assumed; "
            "give --host-memory"
        )
    if own.engine == REPLICATED and own.fp32 and work.width == 2:
        warnings.append(
            f"autocast on fp32 weights: their bf16 copies ({2 * shape.parameters / 1e9:,.0f} GB) and residuals in fp32 "
            "are not counted"
        )
    warnings += _risks(recipe, held[0], made, planned, saved)
    needed = {way.name: fewest(shape, work, way, device, per_node, accumulation * n) for way in ways}
    return Plan(
        recipe=str(path),
        shape=shape,
        gpu=device,
        gpus=n,
        nodes=nodes,
        accumulation=accumulation,
        trained=work.trained(shape),
        schedule=planned,
        settings=held,
        nodes_needed={name: held for name, (held, _) in needed.items()},
        nodes_to_run={name: run for name, (_, run) in needed.items()},
        cost=made,
        checkpoints=saved,
        warnings=warnings,
    )


def _risks(recipe: dict[str, Any], own: Memory, made: Cost, planned: Schedule, saved: Checkpoints) -> list[str]:
    found = []
    if own.fits and own.headroom < TIGHT:
        found.append(f"{own.headroom:.0%} of a GPU is left: fragments of the allocator may take more")
    if recipe.get("save_only_model") and made.interruption_chance > 0.01:
        found.append(
            f"save_only_model: a run that is interrupted ({made.interruption_chance:.0%}) cannot be resumed and starts "
            "from nothing"
        )
    every = recipe.get("restart_steps") or recipe.get("save_steps") or max(planned.steps_per_epoch)
    if saved.interval_steps and every > 3 * saved.interval_steps:
        found.append(f"a restart point each {every:,} steps is rare: about {saved.interval_steps:,} are best")
    return found
