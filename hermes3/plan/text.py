"""A plan for people: a head, one table of settings, the parts of the recipe's own, and what was assumed."""

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

from hermes3.plan.memory import Memory
from hermes3.plan.plan import Plan
from hermes3.plan.settings import REPLICATED


def show(plan: Plan, console: Console | None = None) -> None:
    """Print the plan."""
    (console or Console()).print(Group(_head(plan), "", _settings(plan), "", _parts(plan.own), "", *_assumed(plan)))


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


def _head(plan: Plan) -> Table:
    run, cost, saved = plan.schedule, plan.cost, plan.checkpoints
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def line(name: str, text: str) -> None:
        table.add_row(name, text)

    trained = "" if plan.trained == plan.shape.parameters else f", {plan.trained:,} trained"
    line("recipe", plan.recipe)
    line("model", f"{plan.shape.name}: {plan.shape.parameters:,} parameters{trained}")
    nodes = f"{plan.nodes} node{'s' * (plan.nodes > 1)}"
    line("hardware", f"{plan.gpus} x {plan.gpu.name}, {nodes}; accumulation {plan.accumulation}")
    an_epoch = f"{run.steps_per_epoch[0]:,} an epoch, {run.steps:,} in all ({run.epochs:g} epochs)"
    packed = f", {run.packing:.1%} full" if run.packing else ""
    line("steps", f"{an_epoch}, batch {run.global_batch} {run.unit}{packed}; from {run.source}")
    line("tokens", f"{run.tokens:,.0f} read, {cost.tokens_per_second:,.0f} a second")
    host = f", of which {cost.host_gpu_hours:,.0f} for Adam on the host" if cost.host_gpu_hours else ""
    line(
        "time",
        f"{duration(cost.hours * 3600)}, {cost.step_seconds:,.2f} s a step; MFU {cost.mfu:.1%} ({cost.mfu_source})",
    )
    if plan.gpu.is_cpu:
        line("cost", "no price and no rate of interruptions of CPUs")
    else:
        line("GPU-hours", f"{cost.gpu_hours:,.0f}{host}; {cost.usd:,.0f} USD at {cost.price:g} a GPU-hour")
        line("interruption", f"{cost.interruption_chance:.1%} chance of one in the run, at Llama 3 405B's rate")
    whole = saved.weights_seconds is not None
    how = f"saved in {duration(saved.weights_seconds)}" if whole else "once a checkpoint's parts are joined"
    line("weights", f"{size(saved.weights)}, {how}")
    line("checkpoint", f"{size(saved.state)}{'' if whole else ' in parts'}, saved in {duration(saved.state_seconds)}")
    end = " and the final weights" * whole
    line("storage", f"{size(saved.storage)} at most: {saved.kept} checkpoints at once{end}")
    if saved.interval_seconds:
        every = f"{duration(saved.interval_seconds)}, {saved.interval_steps:,} steps"
        line("save every", f"{every} (Young): {saved.lost_share:.1%} of the time goes to saves and repeated work")
    return table


def _settings(plan: Plan) -> Table:
    table = Table(title="Memory at the peak of a step, each setting", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("setting")
    for name in ("a GPU", "spare", "a host", "fits", "nodes", "run"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in plan.settings:
        needed = (found[one.setting.name] for found in (plan.nodes_needed, plan.nodes_to_run))
        table.add_row(
            "*" if one is plan.own else "",
            one.setting.name,
            size(sum(one.gpu.values())),
            f"{one.headroom:.0%}",
            size(sum(one.host.values())) if one.host else "",
            "yes" if one.fits else "[red]no[/red]",
            *(f"{nodes:,}" if nodes else "none" for nodes in needed),
        )
    own = plan.own.setting
    saved = "; weights are gathered by rank 0 to save" if own.gathered else "; weights are saved in parts"
    table.caption = (
        f"* the recipe's own{saved if own.engine != REPLICATED else ''}. nodes: the fewest that hold a step; "
        f"run: the fewest whose GPUs also make the batch of {plan.schedule.global_batch:,}"
    )
    table.caption_justify = "left"
    return table


def _parts(own: Memory) -> Table:
    host = f"; of a host, {own.host_peak}" if own.host else ""
    title = f"{own.setting.name}: parts at the peak of a GPU, {own.peak}{host}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, min_width=60)
    table.add_column("part")
    table.add_column("a GPU", justify="right")
    table.add_column("a host", justify="right")
    for part in dict.fromkeys([*own.gpu, *own.host]):
        table.add_row(part, *(size(held[part]) if part in held else "" for held in (own.gpu, own.host)))
    table.add_section()
    table.add_row("total", size(sum(own.gpu.values())), size(sum(own.host.values())) if own.host else "")
    table.add_row("there is", size(own.gpu_room), size(own.host_room))
    return table


def _assumed(plan: Plan) -> list[str]:
    return [f"[yellow]note:[/yellow] {warning}" for warning in plan.warnings]
