"""Reading the trainer's own log (`trainer_state.json`, Hugging Face Trainer): the curves of one run."""

import json
from math import isfinite, log
from pathlib import Path
from statistics import median
from typing import Any

# Column of the report -> key of log_history. Preference runs have accuracy and margin; perf/* is our plugin's.
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "tokens_per_second_per_gpu": "perf/tokens_per_second_per_gpu",
    "mfu": "perf/mfu",
    "packing_efficiency": "perf/packing_efficiency",
    "memory_gb": "perf/memory_gb",
}
PERF = ("tokens_per_second_per_gpu", "mfu", "packing_efficiency", "memory_gb")
LN2 = log(2)


def read_run(name: str, folder: Path) -> dict[str, Any]:
    """Curves of the run in `folder`, from its `trainer_state.json` or that of its highest-numbered checkpoint.

    `points` holds one dict per logged step; the loss is the mean since the log entry before. Values that JSON has no
    form for (nan, inf) become None and are counted. Raises ValueError naming `folder` where there is no log.
    """
    path = find_log(folder)
    history = read_history(path)
    points = [_row(entry, COLUMNS) for entry in history if "loss" in entry]
    if not points:
        raise ValueError(f"{path}: log_history of run {name!r} has no loss; set logging_steps and train again")
    evaluations = [_row(entry, {"step": "step", "loss": "eval_loss"}) for entry in history if "eval_loss" in entry]
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
        "performance": _performance(points),
        "points": points,
        "evaluations": evaluations,
    }


def read_history(path: Path) -> list[dict[str, Any]]:
    """Entries of the log; `ValueError` naming the file when it is cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (ValueError, KeyError):
        raise ValueError(f"{path}: no whole log of the trainer; the file is cut short") from None


def find_log(folder: Path) -> Path:
    """`trainer_state.json` of the run, or of its highest-numbered checkpoint."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    checkpoints.sort(key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for candidate in (folder, *checkpoints):
        path = candidate / "trainer_state.json"
        if path.is_file():
            return path
    raise ValueError(f"{folder}: no trainer_state.json in it or in a checkpoint-N of it; train first")


def _row(entry: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    row = {column: entry[key] for column, key in columns.items() if key in entry}
    return {column: value if isfinite(value) else None for column, value in row.items()}


def _performance(points: list[dict[str, Any]]) -> dict[str, float]:
    """Median of what each logged step measured, memory's highest; without what the run did not log."""
    logged = {key: [point[key] for point in points if point.get(key) is not None] for key in PERF}
    return {key: max(values) if key == "memory_gb" else median(values) for key, values in logged.items() if values}
