"""A training run: curves of the trainer's own log (`trainer_state.json`), GPU-hours, its recipe, its chosen epoch."""

from contextlib import chdir, suppress
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from hermes3.files import ROOT, UserError, read_json, read_yaml
from hermes3.plan.plan import plan
from hermes3.recipe.paper import paper_of
from hermes3.report.tables import NAMES, Row
from hermes3.train.checkpoints import checkpoints

COLUMNS = NAMES["log"]
PACKED, PAIRS = "tokens/total", "num_tokens"  # Axolotl's count over all ranks with padding; TRL's, without


def read_run(name: str, folder: Path) -> dict[str, Any]:
    """Curves of the run in `folder`, a point per logged step; nan and inf become None. `UserError` without a log."""
    path, history = read_log(folder)
    points = [_row(entry, COLUMNS) for entry in history if "loss" in entry]
    if not points:
        raise UserError(f"{path}: log_history of run {name!r} has no loss; set logging_steps and train again")
    first, last = points[0], points[-1]
    logged = {key: [point[key] for point in points if point.get(key) is not None] for key in NAMES["performance"]}
    performance = {key: max(of) if key == "memory_gb" else median(of) for key, of in logged.items() if of}
    kind = "preference" if any("margin" in point for point in points) else "sft"
    run = {"name": name, "folder": str(folder), "log": str(path.relative_to(folder)), "kind": kind, "points": points}
    run |= {"steps": last["step"], "epochs": last.get("epoch"), "last_loss": last["loss"], "performance": performance}
    run |= {"first_step": first["step"], "first_loss": first["loss"]}
    run["not_finite"] = sum(point["loss"] is None for point in points)
    return run | {"evaluations": [_row(entry, NAMES["held_out"]) for entry in history if "eval_loss" in entry]}


def read_log(folder: Path) -> tuple[Path, list[Row]]:
    """The trainer's newest log in `folder` or a checkpoint of it, and its entries. `UserError` where there is none."""
    for place in (folder, *reversed(checkpoints(folder))):
        if (log := place / "trainer_state.json").is_file():
            return log, read_json(log, "log_history")["log_history"]
    raise UserError(f"{folder}: no trainer_state.json in it or in a checkpoint-N of it; train first")


def _row(entry: Row, columns: dict[str, str]) -> Row:
    return {column: entry[key] if isfinite(entry[key]) else None for column, key in columns.items() if key in entry}


def gpu_hours(history: list[Row]) -> float | None:
    """GPU-hours of all logged steps: each entry's tokens over the rate at which one GPU trained them.
    Entries without a rate, as the first after a start, take the mean of the others; None where there is no rate."""
    seconds, steps, before = 0.0, 0, {"step": 0}
    for entry in (one for one in history if "loss" in one):
        rate, key = entry.get(COLUMNS["tokens_per_second_per_gpu"]), PACKED if PACKED in entry else PAIRS
        if rate and key in entry:
            share = entry.get(COLUMNS["packing_efficiency"], 1.0) if key == PACKED else 1.0
            seconds += (entry[key] - before.get(key, 0)) * share / rate
            steps += entry["step"] - before["step"]
        before = entry
    return seconds / 3600 * before["step"] / steps if steps else None


def gpu_hours_beside_plan(name: str, folder: Path, recipe: Path | None) -> dict[str, Any]:
    """GPU-hours measured, planned and the paper's; each None where it is not known, with the reason in `notes`."""
    hours, paper = gpu_hours(read_log(folder)[1]), recipe and paper_of(recipe)
    notes = [] if hours else ["the log has no token rates (perf/*)"]
    if paper and paper.gpu_hours is None:
        notes.append("the paper gives no GPU-hours for this phase")
    row = {"run": name, "measured": hours, "planned": None, "gpu": None, "paper": paper and paper.gpu_hours}
    try:
        with chdir(ROOT):  # what recipes name is relative to it
            planned = recipe and plan(recipe, packed=False)  # packing the mix again takes minutes
    except ValueError as error:
        return row | {"notes": [*notes, f"no plan: {error}"]}
    if planned and not planned.gpu.is_cpu:
        gpu = f"{planned.gpus} x {planned.gpu.name}, {planned.schedule.source}"
        return row | {"gpu": gpu, "planned": planned.cost.gpu_hours, "notes": notes}
    why = "planned are GPUs only" if planned else "no recipe names this folder as its output_dir"
    return row | {"notes": [*notes, why]}


def recipe_of(folder: Path) -> Path | None:
    """The recipe in the checkout whose `output_dir` is `folder`; None if there is none, or if two claim it."""
    claiming = []
    for path in sorted({*(ROOT / "recipes").rglob("*.yml"), *ROOT.glob("*/*.yml")}):  # `hermes3 init` makes the latter
        with suppress(UserError):  # another kind of file
            out = read_yaml(path).get("output_dir")
            claiming += [path.relative_to(ROOT)] if out and (ROOT / out).resolve() == folder.resolve() else []
    return claiming[0] if len(claiming) == 1 else None


def read_selection(name: str, folder: Path) -> dict[str, Any] | None:
    """What `hermes3 select` left as `folder`/select.json, if it did: a row per group, means per epoch, the choice."""
    if not (path := folder / "select.json").is_file():
        return None
    record = read_json(path, "suite", "epoch", "notes", "totals", "scores", "scales")
    totals, scales = record["totals"], record["scales"]
    rows = [{"name": key, "values": [*of.values()], "scale": scales[key]} for key, of in record["scores"].items()]
    table = {"run": name, "suite": record["suite"], "chosen": record["epoch"], "notes": record["notes"], "rows": rows}
    return table | {"epochs": [int(epoch) for epoch in totals], "totals": [*totals.values()]}
