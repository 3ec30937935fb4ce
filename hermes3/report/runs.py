"""A training run: curves of the trainer's own log (`trainer_state.json`), GPU-hours, its recipe, its chosen epoch."""

import json
from contextlib import chdir
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from hermes3.files import ROOT, UserError
from hermes3.plan.plan import plan
from hermes3.recipe.paper import paper_of
from hermes3.report import names
from hermes3.results.lm_eval import scale_of

COLUMNS = names("log")
HELD_OUT = {"step": "step", "loss": "eval_loss"}
PERFORMANCE = ("tokens_per_second_per_gpu", "mfu", "packing_efficiency", "memory_gb")
PACKED, PAIRS = "tokens/total", "num_tokens"  # Axolotl's count over all ranks with padding; TRL's, without
Entry = dict[str, Any]


def read_run(name: str, folder: Path) -> dict[str, Any]:
    """Curves of the run in `folder`, from its `trainer_state.json` or that of its highest-numbered checkpoint.

    `points` holds one dict per logged step; the loss is the mean since the log entry before. Values that JSON has no
    form for (nan, inf) become None and are counted. `UserError` names `folder` where there is no log.
    """
    path, history = read_log(folder)
    points = [_row(entry, COLUMNS) for entry in history if "loss" in entry]
    if not points:
        raise UserError(f"{path}: log_history of run {name!r} has no loss; set logging_steps and train again")
    first, last = points[0], points[-1]
    kind = "preference" if any("margin" in point for point in points) else "sft"
    run = {"name": name, "folder": str(folder), "log": str(path.relative_to(folder)), "kind": kind}
    run |= {"steps": last["step"], "epochs": last.get("epoch"), "last_loss": last["loss"]}
    run |= {"first_step": first["step"], "first_loss": first["loss"]}
    logged = {key: [point[key] for point in points if point.get(key) is not None] for key in PERFORMANCE}
    # median of the logged steps, memory's highest
    performance = {key: max(v) if key == "memory_gb" else median(v) for key, v in logged.items() if v}
    run |= {"not_finite": sum(point["loss"] is None for point in points), "performance": performance}
    held_out = [_row(entry, HELD_OUT) for entry in history if "eval_loss" in entry]
    return run | {"points": points, "evaluations": held_out}


def read_log(folder: Path) -> tuple[Path, list[Entry]]:
    """The trainer's newest log in `folder`, and its entries. `UserError` where there is none, or it is cut short."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    checkpoints.sort(key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    logs = [log for one in (folder, *checkpoints) if (log := one / "trainer_state.json").is_file()]
    if not logs:
        raise UserError(f"{folder}: no trainer_state.json in it or in a checkpoint-N of it; train first")
    try:
        return logs[0], json.loads(logs[0].read_text(encoding="utf-8"))["log_history"]
    except (ValueError, KeyError):
        raise UserError(f"{logs[0]}: no whole log of the trainer: the file is cut short; train again") from None


def _row(entry: Entry, columns: dict[str, str]) -> Entry:
    return {column: entry[key] if isfinite(entry[key]) else None for column, key in columns.items() if key in entry}


def gpu_hours(history: list[Entry]) -> float | None:
    """GPU-hours of all logged steps: each entry's tokens over the rate at which one GPU trained them.

    So neither the number of GPUs nor interruptions matter: time that no step was made in does not count. Entries
    without a rate, as the first after a start, take the mean of the others. None where the log has no rates.
    """
    seconds, steps, before = 0.0, 0, {"step": 0}
    for entry in (one for one in history if "loss" in one):
        rate = entry.get(COLUMNS["tokens_per_second_per_gpu"])
        key = PACKED if PACKED in entry else PAIRS
        if rate and key in entry:
            share = entry.get(COLUMNS["packing_efficiency"], 1.0) if key == PACKED else 1.0
            seconds += (entry[key] - before.get(key, 0)) * share / rate
            steps += entry["step"] - before["step"]
        before = entry
    return seconds / 3600 * before["step"] / steps if steps else None


def gpu_hours_beside_plan(name: str, folder: Path, recipe: Path | None) -> dict[str, Any]:
    """GPU-hours measured, planned and the paper's; each None where it is not known, with the reason in `notes`."""
    measured = gpu_hours(read_log(folder)[1])
    notes = [] if measured else ["the log has no token rates (perf/*)"]
    paper, row = recipe and paper_of(recipe), {"run": name, "measured": measured, "planned": None, "gpu": None}
    if paper and paper.gpu_hours is None:
        notes.append("the paper gives no GPU-hours for this phase")
    try:
        with chdir(ROOT):  # what recipes name is relative to it
            planned = recipe and plan(recipe, packed=False)  # packing the mix again takes minutes
        if planned is None:
            notes.append("no recipe names this folder as its output_dir")
        elif planned.gpu.is_cpu:
            notes.append("planned are GPUs only")
        else:
            row["gpu"] = f"{planned.gpus} x {planned.gpu.name}, {planned.schedule.source}"
            row["planned"] = planned.cost.gpu_hours
    except ValueError as error:
        notes.append(f"no plan: {error}")
    return row | {"paper": paper and paper.gpu_hours, "notes": notes}


def recipe_of(folder: Path) -> Path | None:
    """The recipe (below the checkout) whose `output_dir` is `folder`; None if there is none, or if two claim it."""
    paths = sorted((ROOT / "recipes").rglob("*.yml"))
    recipes = {path.relative_to(ROOT): yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    outputs = {path: recipe.get("output_dir") for path, recipe in recipes.items() if isinstance(recipe, dict)}
    claiming = [path for path, out in outputs.items() if out and (ROOT / out).resolve() == folder.resolve()]
    return claiming[0] if len(claiming) == 1 else None


def read_selection(name: str, folder: Path) -> dict[str, Any] | None:
    """The table that `hermes3 select` left as `folder`/select.json: epochs, a row per group, normalised means, choice.

    None where there is none; `UserError` names the file when it is cut short.
    """
    path = folder / "select.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        groups, totals = record["scores"].items(), record["totals"]
        table = {"run": name, "suite": record["suite"], "chosen": record["epoch"], "notes": record["notes"]}
        table |= {"epochs": [int(epoch) for epoch in totals], "totals": list(totals.values())}
        rows = [{"name": key, "values": list(of.values()), "scale": scale_of(key)} for key, of in groups]
        return table | {"rows": rows}
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{path}: no whole record of `hermes3 select`; run it again") from None
