"""Reading what lm-eval wrote (0.4.11, `--output_path DIR --log_samples`): scores, intervals and single outcomes.

Layout: `DIR/<model>/results_<date>.json` and, beside it, one `samples_<task>_<date>.jsonl` a task with the same date.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermes3.report.stats import normal, wilson

ScoreKey = tuple[str, str, str]  # task, metric, filter


@dataclass(frozen=True)
class Score:
    """One metric of one task. `value`, `low` and `high` are fractions; `low` and `high` are the 95 % interval."""

    value: float
    n: int
    low: float | None
    high: float | None
    interval: str  # "wilson", "normal", or "none" where lm-eval gave no standard error
    higher_is_better: bool
    outcomes: dict[int, int] | None  # doc_id -> 0 or 1; None where samples take other values


@dataclass(frozen=True)
class Stage:
    """One evaluated model: its scores, the hash of every document by task, and what the harness says of itself."""

    name: str
    folder: Path
    results_file: Path
    scores: dict[ScoreKey, Score]
    docs: dict[str, dict[int, str]]  # task -> doc_id -> doc_hash
    tasks: dict[str, dict[str, Any]]  # task -> version, n_shot
    harness: dict[str, str | None]
    skipped: list[str] = field(default_factory=list)


def read_stage(name: str, folder: Path) -> Stage:
    """Read the newest results under `folder` and their samples.

    Raises ValueError, naming the folder or file, when there are no results, no samples, or when the two disagree.
    """
    found = sorted(folder.rglob("results_*.json"), key=lambda path: path.name)
    if not found:
        raise ValueError(f"{folder}: no results_*.json for stage {name!r}; run lm-eval with --output_path {folder}")
    path = found[-1]
    results = json.loads(path.read_text(encoding="utf-8"))
    skipped = [f"{older.relative_to(folder)}: older than {path.name}" for older in found[:-1]]
    scores: dict[ScoreKey, Score] = {}
    docs: dict[str, dict[int, str]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for task, metrics in results["results"].items():
        if task not in results["n-samples"]:
            skipped.append(f"{task}: a group of tasks, shown by its members")
            continue
        samples = _read_samples(path, task)
        docs[task] = {sample["doc_id"]: sample["doc_hash"] for rows in samples.values() for sample in rows}
        tasks[task] = {"version": results["versions"].get(task), "n_shot": results["n-shot"].get(task)}
        directions = results["higher_is_better"].get(task, {})
        for key, value in metrics.items():
            metric, comma, filter_key = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                skipped.append(f"{task} {key}: {value} is not a fraction")
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_key}")
            rows = samples.get(filter_key, [])
            better = directions.get(metric, True) is not False
            scores[task, metric, filter_key] = _score(path, task, metric, rows, float(value), stderr, better)
    if not scores:
        raise ValueError(f"{path}: no metric is a fraction; nothing to show for stage {name!r}")
    return Stage(name, folder, path, scores, docs, tasks, _harness(results), skipped)


def _read_samples(results_file: Path, task: str) -> dict[str, list[dict[str, Any]]]:
    """Samples of `task` by filter: lm-eval logs every document once for each filter."""
    date = results_file.stem.removeprefix("results_")
    path = results_file.with_name(f"samples_{task}_{date}.jsonl")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run lm-eval with --log_samples, which stage comparisons need")
    by_filter: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            sample = json.loads(line)
            by_filter[sample["filter"]].append(sample)
    return by_filter


def _score(
    path: Path, task: str, metric: str, rows: list[dict[str, Any]], value: float, stderr: Any, higher_is_better: bool
) -> Score:
    n = len(rows)
    values = [row.get(metric) for row in rows]
    if not values or any(value not in (0, 1) for value in values):
        has_stderr = isinstance(stderr, int | float)
        low, high = normal(value, stderr) if has_stderr else (None, None)
        return Score(value, n, low, high, "normal" if has_stderr else "none", higher_is_better, None)
    k = sum(int(value) for value in values)
    outcomes = {row["doc_id"]: int(row[metric]) for row in rows}
    if len(outcomes) != n or abs(k / n - value) > 1e-6:
        raise ValueError(
            f"{path}: {task} {metric} is {value:.4f}, but its samples file holds {k} of {n} right over {len(outcomes)} "
            "documents; the two are not of one run, or the file is cut short: evaluate again"
        )
    low, high = wilson(k, n)
    return Score(value, n, low, high, "wilson", higher_is_better, outcomes)


def _harness(results: dict[str, Any]) -> dict[str, str | None]:
    config = results.get("config", {})
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    values = {key: results.get(key) for key in ("lm_eval_version", "transformers_version", "git_hash")}
    values |= {"model": config.get("model"), "model_args": arguments}
    values |= {"limit": config.get("limit"), "chat_template_sha": results.get("chat_template_sha")}
    return {key: None if value is None else str(value) for key, value in values.items()}
