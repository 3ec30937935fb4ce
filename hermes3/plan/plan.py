"""All that `hermes3 plan` says of one recipe: as numbers, and as text for people."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.page.shell import environment
from hermes3.plan.cost import Checkpoints, Cost, Schedule, batches, checkpoints, cost, schedule
from hermes3.plan.memory import HOST_SHARE, REPLICATED, SETTINGS, Memory, memory, runnable, setting_of
from hermes3.plan.network import Traffic, traffic
from hermes3.plan.shapes import Shape, shape_of, work_of
from hermes3.recipe.hardware import Gpu, gpu_of, hardware_of
from hermes3.recipe.read import read

BANDWIDTH = 2e9  # bytes/s that a node writes to shared storage: assumed
TIGHT = 0.05  # headroom below which fragments alone may end a run


@dataclass(frozen=True)
class Plan:
    recipe: str
    shape: Shape
    gpu: Gpu
    gpus: int
    nodes: int
    accumulation: int
    trained: int  # parameters
    schedule: Schedule
    settings: list[Memory]  # by way of sharding, the recipe's own first; all save in one piece, or none, as it does
    network: dict[str, Traffic]  # by setting: what a step sends at the recipe's MFU
    choices: dict[int, tuple[float, float]]  # hours and GPU-hours by number of nodes, the recipe's own way
    nodes_to_run: dict[str, int | None]  # by setting: the fewest that hold a step and make the batch, None for none
    cost: Cost
    checkpoints: Checkpoints
    warnings: list[str]

    @property
    def own(self) -> Memory:
        return self.settings[0]

    def best(self) -> dict[str, int | None]:
        """The cheapest and the quickest number of nodes; of those within 1 % the fewest. None where none holds it."""
        best = {}
        for name, place in (("cheapest", 1), ("quickest", 0)):
            least = 1.01 * min((each[place] for each in self.choices.values()), default=0)
            best[name] = min((nodes for nodes, each in self.choices.items() if each[place] <= least), default=None)
        return best

    def as_json(self) -> dict[str, Any]:
        """Numbers in bytes, seconds, hours, USD, with `fits` and `headroom` of each setting."""
        page = asdict(self)
        by_setting = {key: page.pop(key) for key in ("nodes_to_run", "network")}
        page |= {f"{name}_nodes": nodes for name, nodes in self.best().items()}
        for one, row in zip(self.settings, page["settings"], strict=True):
            row |= {"setting": one.setting.name, "fits": one.fits, "headroom": one.headroom}
            row |= {key: nodes[one.setting.name] for key, nodes in by_setting.items()}
        return page


def plannable(path: Path) -> dict[str, Any]:
    """The recipe at `path`. `UserError` when it lacks what a plan starts from, or holds what is not planned for."""
    recipe = read(path)
    if not isinstance(recipe.get("sequence_len"), int):
        raise UserError(f"{path}: sequence_len is missing or no number; give the tokens of a sequence")
    if quantized := [key for key in ("load_in_4bit", "load_in_8bit") if recipe.get(key)]:
        remedy = "quantized weights are not planned for; take it out to plan it in bf16"
        raise UserError(f"{path}: {quantized[0]}: {remedy}")
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
    network: float | None = None,
) -> Plan:
    """Plan the recipe at `path`, on its own hardware unless `gpus` or `gpu` say other. `UserError` if it cannot.
    `bandwidth`: bytes/s; `host_memory`: bytes; `network`: Gb/s per node. Not `packed`: SFT's steps by the paper."""
    recipe = plannable(path)
    hardware = hardware_of(path, recipe)
    device = gpu_of(gpu or hardware.gpu)
    link = (network or hardware.network or 8e-9 * device.network) / 8e-9
    device = replace(device, host_memory=host_memory or device.host_memory, network=link)
    n = gpus or hardware.gpus
    per_node = min(hardware.gpus_per_node if gpus is None else 8, n)
    if n % per_node:
        raise UserError(f"--gpus {n}: nodes have {per_node}; give a multiple")
    nodes = n // per_node
    shape, own = shape_of(path, recipe), setting_of(path, recipe)
    work, warnings = work_of(recipe)
    batch, accumulation = batches(path, recipe, n)
    recipe |= {"hardware": {"nodes": nodes, "gpus_per_node": per_node}, "gradient_accumulation_steps": accumulation}
    work = replace(work, accumulation=accumulation)
    planned, assumed = schedule(path, recipe, batch, mix, packed)
    others = [] if device.is_cpu else [one for one in SETTINGS if one.name != own.name]
    others = [replace(one, group=per_node if one.group else 0) for one in others]
    ways = [own, *(one.gathering() if own.gathered else one for one in others)]
    settings = [memory(shape, work, way, device, nodes, per_node) for way in ways]
    rate = device.price if price is None else price
    run, estimated = cost(shape, work, planned, settings[0], device, n, mfu, rate)
    arithmetic = planned.tokens * run.flops_per_token / (run.mfu * device.flops * n) / planned.steps
    sent = {way.name: traffic(shape, work, way, device, nodes, per_node, arithmetic) for way in ways}
    held = {way.name: runnable(shape, work, way, device, per_node, accumulation * n) for way in ways}
    choices = {}
    for one in held[own.name]:
        count = one.nodes * per_node
        share = replace(work, accumulation=accumulation * n // count)
        there, _ = cost(shape, share, planned, one, device, count, mfu, rate)
        choices[one.nodes] = (there.hours, there.gpu_hours)
    saved = checkpoints(recipe, planned, shape, work, settings[0], run, n, bandwidth or BANDWIDTH)
    autocast = own.engine == REPLICATED and own.fp32 and work.width == 2
    assumed_link = network is None and hardware.network is None and not device.is_cpu
    every = recipe.get("restart_steps") or recipe.get("save_steps") or max(planned.steps_per_epoch)
    best, spare = saved.interval_steps or every, settings[0].headroom
    on_host = f"{device.host_memory / 1e12:.3g} TB per node, {HOST_SHARE:.0%} of it free"
    copies = f"their bf16 copies ({2 * shape.parameters / 1e9:,.0f} GB) and residuals in fp32"
    interrupted = f"a run that is interrupted ({run.interruption_chance:.0%}) cannot be resumed and starts from nothing"
    notes = {
        f"price: {device.price} USD per GPU-hour is assumed; give --price": price is None and not device.is_cpu,
        f"storage: {BANDWIDTH / 1e9:.0f} GB/s per node are assumed; give --bandwidth": bandwidth is None,
        f"network: {8e-9 * device.network:,.0f} Gb/s per node are assumed; give --network": assumed_link,
        f"host: {on_host}, are assumed; give --host-memory": host_memory is None and not device.is_cpu,
        f"autocast on fp32 weights: {copies} are not counted": autocast,
        f"{spare:.0%} of a GPU is left: fragments of the allocator may take more": settings[0].fits and spare < TIGHT,
        f"save_only_model: {interrupted}": recipe.get("save_only_model") and run.interruption_chance > 0.01,
        f"a restart point each {every:,} steps is rare: about {best:,} are best": every > 3 * best,
    }
    warnings += [*assumed, *estimated, *(text for text, holds in notes.items() if holds)]
    fewest = {name: fits[0].nodes if fits else None for name, fits in held.items()}
    facts = str(path), shape, device, n, nodes, accumulation, work.trained(shape), planned
    return Plan(*facts, settings, sent, choices, fewest, run, saved, warnings)


def size(count: float) -> str:
    """Bytes with the unit that leaves one to three digits."""
    unit, scale = next((each for each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= each[1]), ("kB", 1e3))
    return f"{count / scale:,.{0 if count >= 100 * scale and scale > 1e3 else 1}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as seconds, minutes, hours or, from two days on, days."""
    units = (("days", 172_800, 86_400), ("h", 3600, 3600), ("min", 60, 60), ("s", 0, 1))
    unit, scale = next((unit, scale) for unit, least, scale in units if seconds >= least)
    return f"{seconds / scale:,.1f} {unit}"


def show(plan: Plan) -> None:
    """Print a head, a table of the settings, the parts of the recipe's own, and what was assumed."""
    template = Path(__file__).with_name("plan.txt.jinja")
    filters: dict[str, Any] = {"size": size, "duration": duration}
    filters["total"] = lambda parts: size(sum(parts.values())) if parts else ""
    filters["count"] = lambda number, digits=0: f"{number:,.{digits}f}"
    filters["percent"] = lambda share, digits=1: f"{share:.{digits}%}"
    print(environment(template, filters).get_template(template.name).render(plan=plan), end="")
