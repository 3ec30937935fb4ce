"""A training run: curves of the trainer's own log (`trainer_state.json`), GPU-hours, its recipe, its chosen epoch."""

import json
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from hermes3.files import UserError
from hermes3.plan.plan import plan
from hermes3.recipe.paper import paper_of
from hermes3.results.lm_eval import scale_of

# Column of the report -> key of log_history. Preference runs have accuracy and margin; perf/* is our plugin's.
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "tokens_per_second_per_gpu": "perf/tokens_per_second_per_gpu",  # tokens without padding, by the time of steps alone
    "mfu": "perf/mfu",
    "packing_efficiency": "perf/packing_efficiency",
    "memory_gb": "perf/memory_gb",
}
HELD_OUT = {"step": "step", "loss": "eval_loss"}
PERFORMANCE = ("tokens_per_second_per_gpu", "mfu", "packing_efficiency", "memory_gb")
PACKED, PAIRS = "tokens/total", "num_tokens"  # Axolotl's count over all ranks with padding; TRL's, without
RECIPES = Path("recipes")


def read_run(name: str, folder: Path) -> dict[str, Any]:
    """Curves of the run in `folder`, from its `trainer_state.json` or that of its highest-numbered checkpoint.

    `points` holds one dict per logged step; the loss is the mean since the log entry before. Values that JSON has no
    form for (nan, inf) become None and are counted. `UserError` names `folder` where there is no log.
    """
    path = _find_log(folder)
    history = read_history(path)
    points = [_row(entry, COLUMNS) for entry in history if "loss" in entry]
    if not points:
        raise UserError(f"{path}: log_history of run {name!r} has no loss; set logging_steps and train again")
    logged = {key: [point[key] for point in points if point.get(key) is not None] for key in PERFORMANCE}
    return {
        "name": name,
        "folder": str(folder),
        "log": str(path.relative_to(folder)),
        "kind": "preference" if any("margin" in point for point in points) else "sft",
        "steps": points[-1]["step"],
        "epochs": points[-1].get("epoch"),
        "first_step": points[0]["step"],
        "first_loss": points[0]["loss"],
        "last_loss": points[-1]["loss"],
        "not_finite": sum(point["loss"] is None for point in points),
        # median of the logged steps, memory's highest
        "performance": {k: max(v) if k == "memory_gb" else median(v) for k, v in logged.items() if v},
        "points": points,
        "evaluations": [_row(entry, HELD_OUT) for entry in history if "eval_loss" in entry],
    }


def read_history(path: Path) -> list[dict[str, Any]]:
    """Entries of the log; `UserError` names the file when it is cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (ValueError, KeyError):
        raise UserError(f"{path}: no whole log of the trainer: the file is cut short; train again") from None


def _find_log(folder: Path) -> Path:
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    checkpoints.sort(key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for candidate in (folder, *checkpoints):
        if (path := candidate / "trainer_state.json").is_file():
            return path
    raise UserError(f"{folder}: no trainer_state.json in it or in a checkpoint-N of it; train first")


def _row(entry: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    row = {column: entry[key] for column, key in columns.items() if key in entry}
    return {column: value if isfinite(value) else None for column, value in row.items()}


def gpu_hours(history: list[dict[str, Any]]) -> float | None:
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
    measured = gpu_hours(read_history(_find_log(folder)))
    row: dict[str, Any] = {"run": name, "measured": measured, "planned": None, "paper": None, "gpu": None}
    notes = [] if measured else ["the log has no token rates (perf/*)"]
    if recipe is None:
        return row | {"notes": [*notes, "no recipe names this folder as its output_dir"]}
    if (paper := paper_of(recipe)) is not None:
        row["paper"] = paper.gpu_hours
        notes += ["the paper gives no GPU-hours for this phase"] if paper.gpu_hours is None else []
    try:
        planned = plan(recipe, packed=False)  # packing the mix again takes minutes
    except ValueError as error:
        return row | {"notes": [*notes, f"no plan: {error}"]}
    if planned.gpu.is_cpu:
        return row | {"notes": [*notes, "planned are GPUs only"]}
    gpu = f"{planned.gpus} x {planned.gpu.name}, {planned.schedule.source}"
    return row | {"planned": planned.cost.gpu_hours, "gpu": gpu, "notes": notes}


def recipe_of(folder: Path) -> Path | None:
    """The recipe whose `output_dir` is `folder`; None if there is none, or if two claim it."""
    claiming = [path for path in sorted(RECIPES.rglob("*.yml")) if _output(path) == folder.resolve()]
    return claiming[0] if len(claiming) == 1 else None


def _output(recipe: Path) -> Path | None:
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    out = settings.get("output_dir") if isinstance(settings, dict) else None
    return Path(out).resolve() if out else None


def read_selection(name: str, folder: Path) -> dict[str, Any] | None:
    """The table that `hermes3 select` left as `folder`/select.json: epochs, a row per group, normalised means, choice.

    None where there is none; `UserError` names the file when it is cut short.
    """
    path = folder / "select.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        groups = record["scores"].items()
        return {
            "run": name,
            "suite": record["suite"],
            "epochs": [int(epoch) for epoch in record["totals"]],
            "rows": [{"name": key, "values": list(of.values()), "scale": scale_of(key)} for key, of in groups],
            "totals": list(record["totals"].values()),
            "chosen": record["epoch"],
            "notes": record["notes"],
        }
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{path}: no whole record of `hermes3 select`; run it again") from None
