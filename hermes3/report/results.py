"""Reading what lm-eval wrote (0.4.11, `--output_path DIR --log_samples`): scores, intervals and single outcomes.

Layout: anywhere under DIR `<model>/results_<date>.json` and, beside it, one `samples_<task>_<date>.jsonl` a task with
the same date. A suite leaves several results files, one a shot setting; the newest that holds a task speaks for it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermes3.report.samples import Samples, read_samples
from hermes3.stats import mean_of, normal, ratio_of, wilson

ScoreKey = tuple[str, str, str]  # task, metric, filter
MT_BENCH = "mt_bench"
POINTS = (MT_BENCH, "MT-Bench")  # the task that counts points, and the suites' group of it


@dataclass(frozen=True)
class Score:
    """One metric of one task. `value`, `low` and `high` are fractions, or MT-Bench's points; 95 % interval."""

    value: float
    n: int
    low: float | None
    high: float | None
    interval: str  # "wilson", "t", "mover" of a group, "normal", or "none" where lm-eval gave no standard error
    higher_is_better: bool
    outcomes: dict[int, float] | None  # doc_id -> a number whose mean is `value`; None where there is none
    binary: bool = False  # outcomes are 0 or 1


@dataclass(frozen=True)
class Stage:
    """One evaluated model: its scores, the hashes of every document by task, and what the harness says of itself."""

    name: str
    folder: Path
    results_files: list[Path]
    scores: dict[ScoreKey, Score]
    docs: dict[str, dict[int, tuple[str, str]]]  # task -> doc_id -> hash of the document, hash of its prompt
    tasks: dict[str, dict[str, Any]]  # task -> version, n_shot, questions, and the facts of `harness` that it ran under
    harness: dict[str, str | None]
    subtasks: dict[str, list[str]]  # lm-eval's group -> its tasks or groups
    skipped: list[str] = field(default_factory=list)


def read_stage(name: str, folder: Path) -> Stage:
    """Read the newest results of every task under `folder`, and their samples.

    Raises ValueError, naming the folder or file, when there are no results or no samples, when the two disagree, when a
    file is cut short, or when the folder holds results of two models, chat templates or versions of lm-eval.
    """
    found = sorted(folder.rglob("results_*.json"), key=lambda path: path.name, reverse=True)
    if not found:
        raise ValueError(f"{folder}: no results_*.json for stage {name!r}; run lm-eval with --output_path {folder}")
    files = {path: _load(path) for path in found}
    own = {path: results for path, results in files.items() if not _served(results)} or files
    _refuse_mixture(folder, {path: {"model": _harness(results)["model_name"]} for path, results in own.items()})
    scores: dict[ScoreKey, Score] = {}
    docs: dict[str, dict[int, tuple[str, str]]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    used: list[Path] = []
    subtasks: dict[str, list[str]] = {}
    for path, results in files.items():
        older = []
        for task in results["results"]:
            if task not in results["n-samples"]:  # a group of tasks, which its members make up
                continue
            facts = _facts(results, task)
            key = task
            if task in tasks and tasks[task]["n_shot"] != facts["n_shot"]:
                key = with_shots(task, facts["n_shot"])
            if key in tasks:
                older.append(key)
                continue
            samples = _samples(path, results, task)
            docs[key] = {doc: hashes for one in samples.values() for doc, hashes in one.docs.items()}
            tasks[key] = facts
            found_here = _scores(path, results, task, samples, skipped)
            scores |= {(key, metric, filter_key): score for (metric, filter_key), score in found_here.items()}
            if path not in used:
                used.append(path)
        if older:
            shown = ", ".join(older[:4]) + (", ..." if len(older) > 4 else "")
            skipped.append(f"{path.relative_to(folder)}: newer results hold {shown}")
        subtasks |= {group: members for group, members in results.get("group_subtasks", {}).items() if members}
    if not scores:
        raise ValueError(f"{found[0]}: no metric is a fraction; nothing to show for stage {name!r}")
    shared = ("lm_eval_version", "chat_template_sha", "system_instruction_sha")
    speaking = [path for path in used if path in own]
    _refuse_mixture(folder, {path: {key: _harness(files[path])[key] for key in shared} for path in speaking})
    return Stage(name, folder, used, scores, docs, tasks, _harness(files[(speaking or used)[0]]), subtasks, skipped)


def _served(results: dict[str, Any]) -> bool:
    """Whether `hermes3 mt-bench` asked an endpoint: what it calls the model there is no folder, and is taken for it."""
    return bool(results.get(MT_BENCH, {}).get("answered_by", {}).get("endpoint"))


def scale_of(name: str) -> int:
    """What a score of the task or group is shown times: 100, a fraction's, or 1, of points. Never told from values:
    an answer that the judge rated 1 is no 100 %."""
    return 1 if name in POINTS else 100


def with_shots(task: str, shots: int) -> str:
    """The name of a task's results where those of another number of shots have its own."""
    return f"{task} ({shots}-shot)"


WORDS = {
    "model": "two models",
    "lm_eval_version": "two versions of lm-eval",
    "chat_template_sha": "two chat templates",
    "system_instruction_sha": "two system instructions",
}


def _refuse_mixture(folder: Path, facts: dict[Path, dict[str, str | None]]) -> None:
    first, *others = facts
    for path in others:
        for key, value in facts[path].items():
            if value != facts[first][key]:
                raise ValueError(
                    f"{folder}: results of {WORDS[key]} in one folder: {value} in {path.relative_to(folder)}, "
                    f"{facts[first][key]} in {first.relative_to(folder)}; move one of them to a folder of its own"
                )


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("results", "n-samples", "versions", "n-shot") if key not in results]
    except ValueError:
        raise ValueError(f"{path}: no whole JSON; the file is cut short: evaluate again") from None
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing; it is no results file of lm-eval 0.4.11")
    return results


def _facts(results: dict[str, Any], task: str) -> dict[str, Any]:
    counts = results["n-samples"][task]
    facts = {"version": results["versions"].get(task), "n_shot": results["n-shot"].get(task)}
    facts |= {"samples": counts["effective"], "questions": counts["original"]}
    judge = ((results.get("configs", {}).get(task) or {}).get("metadata") or {}).get("judge")
    config = results.get("config", {})
    arguments = dict(part.partition("=")[::2] for part in _arguments(config).split(","))
    facts |= {"backend": config.get("model"), "dtype": arguments.get("dtype")}
    if _served(results):
        facts["served"] = f"{results.get('model_name')} at {results[MT_BENCH]['answered_by']['endpoint']}"
    return facts | ({"judge": judge["model"]} if judge else {})


def _samples(path: Path, results: dict[str, Any], task: str) -> dict[str, Samples]:
    date = path.stem.removeprefix("results_")
    file = path.with_name(f"samples_{task}_{date}.jsonl")
    found = read_samples(file)
    wanted = results["n-samples"][task]["effective"]
    for name, samples in found.items():
        if len(samples.docs) != wanted:
            raise ValueError(
                f"{file}: {len(samples.docs)} documents under filter {name}, but {path.name} is over {wanted}; the two "
                "are not of one run, or the file is cut short: evaluate again"
            )
    if not found:
        raise ValueError(f"{file}: empty, but {path.name} is over {wanted} documents: evaluate again")
    return found


def _scores(
    path: Path, results: dict[str, Any], task: str, samples: dict[str, Samples], skipped: list[str]
) -> dict[tuple[str, str], Score]:
    metrics, n, scores = results["results"][task], results["n-samples"][task]["effective"], {}
    directions = results.get("higher_is_better", {}).get(task) or {}
    for key, value in metrics.items():
        metric, comma, filter_key = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not isinstance(value, int | float):
            skipped.append(f"{task} {key}: {value} is no number")
            continue
        logged = samples[filter_key].values.get(metric, {}) if filter_key in samples else {}
        stderr = metrics.get(f"{metric}_stderr,{filter_key}")
        better = directions.get(metric, True) is not False
        score = _score(path, task, metric, logged, float(value), stderr, n, better)
        if score.outcomes is None and not 0 <= score.value <= 1:
            skipped.append(f"{task} {key}: {value} is not a fraction")
            continue
        scores[metric, filter_key] = score
    return scores


def _score(
    path: Path,
    task: str,
    metric: str,
    logged: dict[int, Any],
    value: float,
    stderr: Any,
    n: int,
    higher_is_better: bool,
) -> Score:
    outcomes = logged
    if logged and all(isinstance(one, list) for one in logged.values()):
        outcomes = dict(zip(logged, ratio_of(list(logged.values())), strict=True))
    if len(outcomes) == n and not any(isinstance(one, list) for one in outcomes.values()):
        mean = sum(outcomes.values()) / n
        agree = abs(mean - value) <= 1e-6 * max(1.0, abs(value))
        if scale_of(task) == 100 and all(one in (0, 1) for one in outcomes.values()):
            if not agree:
                raise ValueError(
                    f"{path}: {task} {metric} is {value:.4f}, but its samples hold {mean * n:.0f} of {n} right; "
                    "the two are not of one run: evaluate again"
                )
            whole = {doc: int(one) for doc, one in outcomes.items()}
            low, high = wilson(sum(whole.values()), n)
            return Score(value, n, low, high, "wilson", higher_is_better, whole, binary=True)
        if agree and n > 1:
            low, high = mean_of(list(outcomes.values()))
            return Score(value, n, low, high, "t", higher_is_better, {d: float(v) for d, v in outcomes.items()})
    has_stderr = isinstance(stderr, int | float)
    low, high = normal(value, stderr) if has_stderr else (None, None)
    return Score(value, n, low, high, "normal" if has_stderr else "none", higher_is_better, None)


def _harness(results: dict[str, Any]) -> dict[str, str | None]:
    config = results.get("config", {})
    arguments = _arguments(config) or None
    keys = ("lm_eval_version", "transformers_version", "git_hash", "chat_template_sha", "system_instruction_sha")
    values = {key: results.get(key) for key in keys}
    values |= {"model": config.get("model"), "model_args": arguments}
    values["model_name"] = results.get("model_name") or arguments
    return {key: None if value is None else str(value) for key, value in values.items()}


def _arguments(config: dict[str, Any]) -> str:
    """lm-eval's `model_args` as on its command line; it records a text or an object."""
    given = config.get("model_args") or ""
    return given if isinstance(given, str) else ",".join(f"{key}={value}" for key, value in given.items())
