"""All that `hermes3 plan` says of one recipe: as numbers, and as text for people."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.plan.checkpoints import Checkpoints, checkpoints
from hermes3.plan.cost import Cost, Schedule, batches, cost, schedule
from hermes3.plan.memory import HOST_SHARE, REPLICATED, SETTINGS, Memory, fewest, memory, setting_of
from hermes3.plan.network import Traffic, traffic
from hermes3.plan.shapes import Shape, shape_of, work_of
from hermes3.recipe.hardware import Gpu, gpu_of, hardware_of
from hermes3.recipe.read import read

BANDWIDTH = 2e9  # bytes/s that a node writes to shared storage: assumed
TIGHT = 0.05  # headroom below which fragments alone may end a run


@dataclass(frozen=True)
class Plan:
    """`settings`: memory at each way of sharding, the recipe's own first, saves in one piece or in parts as its own.

    By setting: `network`, what a step sends at the recipe's MFU; and, None for none, `nodes_needed`, the fewest that
    hold a step, and `nodes_to_run`, that also make the batch. `choices`: hours and GPU-hours by number of nodes.
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
    network: dict[str, Traffic]
    choices: dict[int, tuple[float, float]]
    nodes_needed: dict[str, int | None]
    nodes_to_run: dict[str, int | None]
    cost: Cost
    checkpoints: Checkpoints
    warnings: list[str]

    @property
    def own(self) -> Memory:
        return self.settings[0]

    def best(self, quickest: bool) -> int | None:
        """The number of nodes that takes the fewest hours, or GPU-hours; of those within 1 % the fewest nodes."""
        by_nodes = {nodes: each[0 if quickest else 1] for nodes, each in self.choices.items()}
        return min((nodes for nodes, hours in by_nodes.items() if hours <= 1.01 * min(by_nodes.values())), default=None)

    def as_json(self) -> dict[str, Any]:
        """Numbers in bytes, seconds, hours, USD, with `fits` and `headroom` of each setting."""
        page = asdict(self)
        by_setting = {key: page.pop(key) for key in ("nodes_needed", "nodes_to_run", "network")}
        page |= {"cheapest_nodes": self.best(quickest=False), "quickest_nodes": self.best(quickest=True)}
        for one, row in zip(self.settings, page["settings"], strict=True):
            row |= {"setting": one.setting.name, "fits": one.fits, "headroom": one.headroom}
            row |= {key: nodes[one.setting.name] for key, nodes in by_setting.items()}
        return page


def plannable(path: Path) -> dict[str, Any]:
    """The recipe at `path`. `UserError` when it lacks what a plan starts from, or holds what is not planned for."""
    recipe = read(path)
    if not isinstance(recipe.get("sequence_len"), int):
        raise UserError(f"{path}: sequence_len is missing or no number; give the tokens of a sequence")
    for key in ("load_in_4bit", "load_in_8bit"):
        if recipe.get(key):
            raise UserError(f"{path}: {key}: quantized weights are not planned for; take it out to plan it in bf16")
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

    `bandwidth` in bytes/s, `host_memory` in bytes, `network` in Gb/s per node. `packed` False: the mix is not packed,
    which takes Axolotl and seconds; the steps of SFT are then the paper's.
    """
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
    work = replace(work, accumulation=accumulation)
    planned, assumed = schedule(path, recipe, batch, mix, packed)
    warnings += assumed
    others = [] if device.is_cpu else [one for one in SETTINGS if one.name != own.name]
    others = [replace(one, group=per_node if one.group else 0) for one in others]
    ways = [own, *(one.gathering() if own.gathered else one for one in others)]
    settings = [memory(shape, work, way, device, nodes, per_node) for way in ways]
    rate = device.price if price is None else price
    run, assumed = cost(shape, work, planned, settings[0], device, n, mfu, rate)
    warnings += assumed
    arithmetic = planned.tokens * run.flops_per_token / (run.mfu * device.flops * n) / planned.steps
    sent = {way.name: traffic(shape, work, way, device, nodes, per_node, arithmetic) for way in ways}
    choices = {}
    for count in range(1, accumulation * n // per_node + 1):
        share, rest = divmod(accumulation * n, count * per_node)
        held = memory(shape, replace(work, accumulation=share), own, device, count, per_node)
        if not rest and held.fits:
            one, _ = cost(shape, replace(work, accumulation=share), planned, held, device, count * per_node, mfu, rate)
            choices[count] = (one.hours, one.gpu_hours)
    saved = checkpoints(recipe, planned, shape, work, settings[0], run, n, bandwidth or BANDWIDTH)
    if price is None and not device.is_cpu:
        warnings.append(f"price: {device.price} USD per GPU-hour is assumed; give --price")
    if bandwidth is None:
        warnings.append(f"storage: {BANDWIDTH / 1e9:.0f} GB/s per node are assumed; give --bandwidth")
    if network is None and hardware.network is None and not device.is_cpu:
        warnings.append(f"network: {8e-9 * device.network:,.0f} Gb/s per node are assumed; give --network")
    if host_memory is None and not device.is_cpu:
        memory_of_node = f"{device.host_memory / 1e12:.3g} TB per node, {HOST_SHARE:.0%} of it free"
        warnings.append(f"host: {memory_of_node}, are assumed; give --host-memory")
    if own.engine == REPLICATED and own.fp32 and work.width == 2:
        copies = f"their bf16 copies ({2 * shape.parameters / 1e9:,.0f} GB) and residuals in fp32"
        warnings.append(f"autocast on fp32 weights: {copies} are not counted")
    if settings[0].fits and settings[0].headroom < TIGHT:
        warnings.append(f"{settings[0].headroom:.0%} of a GPU is left: fragments of the allocator may take more")
    if recipe.get("save_only_model") and run.interruption_chance > 0.01:
        interrupted = f"a run that is interrupted ({run.interruption_chance:.0%}) cannot be resumed"
        warnings.append(f"save_only_model: {interrupted} and starts from nothing")
    every = recipe.get("restart_steps") or recipe.get("save_steps") or max(planned.steps_per_epoch)
    if saved.interval_steps and every > 3 * saved.interval_steps:
        warnings.append(f"a restart point each {every:,} steps is rare: about {saved.interval_steps:,} are best")
    counts = {way.name: fewest(shape, work, way, device, per_node, accumulation * n) for way in ways}
    return Plan(
        recipe=str(path),
        shape=shape,
        gpu=device,
        gpus=n,
        nodes=nodes,
        accumulation=accumulation,
        trained=work.trained(shape),
        schedule=planned,
        settings=settings,
        network=sent,
        choices=choices,
        nodes_needed={name: needed for name, (needed, _) in counts.items()},
        nodes_to_run={name: to_run for name, (_, to_run) in counts.items()},
        cost=run,
        checkpoints=saved,
        warnings=warnings,
    )


def size(count: float) -> str:
    """Bytes with the unit that leaves one to three digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.{0 if count >= 100 * scale else 1}f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def duration(seconds: float) -> str:
    """Seconds as seconds, minutes, hours or days."""
    for unit, scale in (("days", 86_400 * 2), ("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / min(scale, 86_400):,.1f} {unit}"
    return f"{seconds:,.1f} s"


def show(plan: Plan) -> None:
    """Print a head, a table of the settings, the parts of the recipe's own, and what was assumed."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(*(f"[bold]{name:12}[/bold] {escape(text)}" for name, text in _head(plan).items()), sep="\n")
    console.print("", _settings(plan), "", _parts(plan.own), "", sep="\n")
    for warning in plan.warnings:
        console.print(f"[yellow]note:[/yellow] {warning}")


def _table(title: str, *columns: str, caption: str | None = None) -> Any:
    """A table whose columns after the first are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=bool(place))
    return table


def _head(plan: Plan) -> dict[str, str]:
    run, cost, saved = plan.schedule, plan.cost, plan.checkpoints
    trained = "" if plan.trained == plan.shape.parameters else f", {plan.trained:,} trained"
    nodes = f"{plan.nodes} node{'s' * (plan.nodes > 1)}"
    per_epoch = f"{run.steps_per_epoch[0]:,} per epoch, {run.steps:,} in all ({run.epochs:g} epochs)"
    packed = f", {run.packing:.1%} full" if run.packing else ""
    mfu = f"MFU {cost.mfu:.1%} ({cost.mfu_source})"
    paper = f"; the paper's {cost.paper_gpu_hours:,} (MFU {cost.paper_mfu:.1%})" if cost.paper_gpu_hours else ""
    sent = f"{size(cost.network.bytes_per_node)} into each node per step, {cost.network.seconds:,.2f} s"
    nodes_of = {"cheapest": plan.best(quickest=False), "quickest": plan.best(quickest=True)}
    hours = {nodes: f"{one:,.1f} h, {gpu_hours:,.0f} GPU-hours" for nodes, (one, gpu_hours) in plan.choices.items()}
    choices = [f"{name} {count} ({hours[count]})" for name, count in nodes_of.items() if count]
    adam = f", of which {cost.host_gpu_hours:,.0f} for Adam on the host" if cost.host_gpu_hours else ""
    whole = saved.weights_seconds is not None
    how = f"saved in {duration(saved.weights_seconds)}" if whole else "once a checkpoint's parts are joined"
    in_parts, final = "" if whole else " in parts", " and the final weights" if whole else ""
    lines = {
        "recipe": plan.recipe,
        "model": f"{plan.shape.name}: {plan.shape.parameters:,} parameters{trained}",
        "hardware": f"{plan.gpus} x {plan.gpu.name}, {nodes}; accumulation {plan.accumulation}",
        "steps": f"{per_epoch}, batch {run.global_batch} {run.unit}{packed}; from {run.source}",
        "tokens": f"{run.tokens:,.0f} read, {cost.tokens_per_second:,.0f} per second",
        "time": f"{duration(cost.hours * 3600)}, {cost.step_seconds:,.2f} s per step; {mfu}",
        "GPU-hours": f"{cost.gpu_hours:,.0f}{adam}{paper}; {cost.usd:,.0f} USD at {cost.price:g} per GPU-hour",
        "network": f"{sent}, of which {cost.network.exposed:,.2f} s are not hidden behind arithmetic (modelled)",
        "nodes": ", ".join(choices) or "no number holds this run",
        "interruption": f"{cost.interruption_chance:.1%} chance of one in the run, at Llama 3 405B's rate",
        "weights": f"{size(saved.weights)}, {how}",
        "checkpoint": f"{size(saved.state)}{in_parts}, saved in {duration(saved.state_seconds)}",
        "storage": f"{size(saved.storage)} at most: {saved.kept} checkpoints at once{final}",
    }
    if plan.gpu.is_cpu:
        lines = {name: text for name, text in lines.items() if name not in ("interruption", "network", "nodes")}
        lines["GPU-hours"] = "no price and no rate of interruptions of CPUs"
    if saved.interval_seconds:
        every = f"{duration(saved.interval_seconds)}, {saved.interval_steps:,} steps (Young)"
        lines["save every"] = f"{every}: {saved.lost_share:.1%} of the time goes to saves and repeated work"
    return lines


def _settings(plan: Plan) -> Any:
    own = plan.own.setting
    saved = "; weights are gathered by rank 0 to save" if own.gathered else "; weights are saved in parts"
    caption = (
        f"* the recipe's own{saved if own.engine != REPLICATED else ''}. network: seconds per step, and those not "
        "hidden. nodes: the fewest that hold a step; run: the fewest whose GPUs also make the batch of "
        f"{plan.schedule.global_batch:,}"
    )
    title = "Memory at the peak of a step, each setting"
    table = _table(title, "setting", "per GPU", "spare", "per host", "network", "fits", "nodes", "run", caption=caption)
    for one in plan.settings:
        name = one.setting.name
        nodes = [f"{counts[name] or 'none'}" for counts in (plan.nodes_needed, plan.nodes_to_run)]
        fits = "yes" if one.fits else "[red]no[/red]"
        own_mark = "* " if one is plan.own else "  "
        sent = f"{plan.network[name].seconds:,.2f} ({plan.network[name].exposed:,.2f})"
        table.add_row(own_mark + name, _total(one.gpu), f"{one.headroom:.0%}", _total(one.host), sent, fits, *nodes)
    return table


def _parts(own: Memory) -> Any:
    host = f"; of a host, {own.host_peak}" if own.host else ""
    title = f"{own.setting.name}: parts at the peak of a GPU, {own.peak}{host}"
    table = _table(title, "part", "per GPU", "per host")
    for part in dict.fromkeys([*own.gpu, *own.host]):
        table.add_row(part, *(size(parts[part]) if part in parts else "" for parts in (own.gpu, own.host)))
    table.add_section()
    table.add_row("total", _total(own.gpu), _total(own.host))
    table.add_row("there is", size(own.gpu_room), size(own.host_room))
    return table


def _total(parts: dict[str, int]) -> str:
    return size(sum(parts.values())) if parts else ""
