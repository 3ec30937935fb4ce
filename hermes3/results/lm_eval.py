"""The reader of what lm-eval 0.4.11 writes with `--output_path DIR --log_samples`.

Layout: anywhere below DIR `<model>/results_<date>.json` and beside it, with the same date, one
`samples_<task>_<date>.jsonl` per task. A suite leaves one results file per number of shots; the newest file that holds
a task counts.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes3.files import UserError
from hermes3.results.comparable import refuse_mixture
from hermes3.stats import mean_of, normal, ratio_of, wilson

if TYPE_CHECKING:
    from hermes3.results.groups import Group

ScoreKey = tuple[str, str, str]  # task, metric, filter
MT_BENCH = "mt_bench"
POINTS = (MT_BENCH, "MT-Bench")  # the task that counts points, and its group in the suites


@dataclass(frozen=True)
class Score:
    """One metric of one task. `value`, `low` and `high` (95 % interval) are fractions, or MT-Bench's points."""

    value: float
    n: int
    low: float | None
    high: float | None
    interval: str  # "wilson", "t", "mover" of a group, "normal", or "none" where lm-eval gave no standard error
    higher_is_better: bool
    outcomes: dict[int, float] | None  # doc_id -> a number whose mean is `value`; None where there is none
    binary: bool = False  # outcomes are 0 or 1


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model: a stage of the report, one of its seeds, or an epoch of a run."""

    name: str
    folder: Path
    results_files: list[Path] = field(default_factory=list)
    scores: dict[ScoreKey, Score] = field(default_factory=dict)
    docs: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)  # task -> doc_id -> document, prompt hash
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> version, n_shot, samples, questions, ...
    harness: dict[str, str | None] = field(default_factory=dict)
    subtasks: dict[str, list[str]] = field(default_factory=dict)  # lm-eval's group -> its tasks or groups
    skipped: list[str] = field(default_factory=list)

    def keys(self, group: "Group") -> list[ScoreKey]:
        """The keys of the group's members here. A task with another number of shots than the group's has another."""
        return [(self._name(task, group.shots), metric, filter_key) for task, metric, filter_key in group.members]

    def _name(self, task: str, shots: int | None) -> str:
        facts = self.tasks.get(task)
        return task if shots is None or facts is None or facts["n_shot"] == shots else _with_shots(task, shots)

    def score(self, key: ScoreKey) -> Score | None:
        """The score under `key`; for metrics joined by `+`, the mean of them for each document."""
        task, metric, filter_key = key
        if key in self.scores or "+" not in metric:
            return self.scores.get(key)
        parts = [self.scores.get((task, one, filter_key)) for one in metric.split("+")]
        if any(part is None or part.outcomes is None for part in parts) or parts[0].n < 2:
            return None
        outcomes = {doc: sum(part.outcomes[doc] for part in parts) / len(parts) for doc in parts[0].outcomes}
        n, value = len(outcomes), sum(part.value for part in parts) / len(parts)
        # Student's interval has no width where all are wrong, or all right
        same = set(outcomes.values()) in ({0}, {1})
        low, high = wilson(value * n, n) if same else mean_of(list(outcomes.values()))
        return Score(value, parts[0].n, low, high, "t", parts[0].higher_is_better, outcomes)

    def group_scores(self, group: "Group") -> list[Score | None]:
        """The scores of the group's members; None for what was not measured."""
        return [self.score(key) for key in self.keys(group)]


@dataclass
class Samples:
    """The samples of one task under one filter.

    `docs`: doc_id -> (hash of the document, hash of its prompt). `values`: metric -> doc_id -> a number, or a list of 0
    and 1 (IFEval's instructions).
    """

    docs: dict[int, tuple[str, str]] = field(default_factory=dict)
    values: dict[str, dict[int, float | list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultsFile:
    """One `results_<date>.json` with the samples beside it."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ResultsFile":
        """`UserError` when the file is cut short or is not lm-eval's."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in ("results", "n-samples", "versions", "n-shot") if key not in content]
        except (ValueError, TypeError):
            raise UserError(f"{path}: not whole JSON: the file is cut short; evaluate again") from None
        if missing:
            raise UserError(f"{path}: {missing[0]} is missing: not a results file of lm-eval 0.4.11; move it away")
        return cls(path, content)

    @property
    def served(self) -> bool:
        """Whether `hermes3 mt-bench` asked an endpoint, which calls the model by a name that is no folder."""
        return bool(self.content.get(MT_BENCH, {}).get("answered_by", {}).get("endpoint"))

    @property
    def tasks(self) -> list[str]:
        """The tasks in the file, without groups of tasks."""
        return [task for task in self.content["results"] if task in self.content["n-samples"]]

    def leaves(self, task: str) -> list[str]:
        """The tasks of lm-eval's group `task`, or the task itself."""
        return leaves(self.content.get("group_subtasks", {}), task)

    @cached_property
    def _arguments(self) -> str:
        """lm-eval's `model_args` as on its command line; it records text or an object."""
        arguments = self.content.get("config", {}).get("model_args") or ""
        return arguments if isinstance(arguments, str) else ",".join(f"{k}={v}" for k, v in arguments.items())

    @cached_property
    def harness(self) -> dict[str, str | None]:
        keys = ("lm_eval_version", "transformers_version", "git_hash", "chat_template_sha", "system_instruction_sha")
        values = {key: self.content.get(key) for key in keys}
        values |= {"model": self.content.get("config", {}).get("model"), "model_args": self._arguments or None}
        values["model_name"] = self.content.get("model_name") or values["model_args"]
        return {key: None if value is None else str(value) for key, value in values.items()}

    def facts(self, task: str) -> dict[str, Any]:
        """What the results of `task` depend on, and how many questions were asked."""
        counts = self.content["n-samples"][task]
        facts = {"version": self.content["versions"].get(task), "n_shot": self.content["n-shot"].get(task)}
        facts |= {"samples": counts["effective"], "questions": counts["original"]}
        dtype = dict(part.partition("=")[::2] for part in self._arguments.split(",")).get("dtype")
        facts |= {"backend": self.content.get("config", {}).get("model"), "dtype": dtype}
        if MT_BENCH in self.content:
            facts["judge"] = self.content[MT_BENCH]["judge"]["model"]
        if self.served:
            endpoint = self.content[MT_BENCH]["answered_by"]["endpoint"]
            facts["served"] = f"{self.content.get('model_name')} at {endpoint}"
        return facts

    def samples(self, task: str) -> dict[str, Samples]:
        """Samples by filter. `UserError` when the file is missing, cut short, or of another run."""
        path = self.path.with_name(f"samples_{task}_{self.path.stem.removeprefix('results_')}.jsonl")
        by_filter = _read_samples(path)
        n = self.content["n-samples"][task]["effective"]
        for name, samples in by_filter.items():
            if len(samples.docs) != n:
                raise UserError(
                    f"{path}: {len(samples.docs)} documents under filter {name}, but {self.path.name} is over {n}: not "
                    "of one run, or cut short; evaluate again"
                )
        if not by_filter:
            raise UserError(f"{path}: empty, but {self.path.name} is over {n} documents; evaluate again")
        return by_filter

    def scores(self, task: str, samples: dict[str, Samples], skipped: list[str]) -> dict[tuple[str, str], Score]:
        """(metric, filter) -> score. What is not a number or not a fraction goes to `skipped`, in words."""
        metrics, n = self.content["results"][task], self.content["n-samples"][task]["effective"]
        directions = self.content.get("higher_is_better", {}).get(task) or {}
        scores = {}
        for key, value in metrics.items():
            metric, comma, filter_key = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if not isinstance(value, int | float):
                skipped.append(f"{task} {key}: {value} is no number")
                continue
            better = directions.get(metric, True) is not False
            logged = samples[filter_key].values.get(metric, {}) if filter_key in samples else {}
            score = self._from_samples(task, metric, logged, float(value), n, better)
            if score is None:
                stderr = metrics.get(f"{metric}_stderr,{filter_key}")
                known = isinstance(stderr, int | float)
                bounds = normal(float(value), stderr) if known else (None, None)
                score = Score(float(value), n, *bounds, "normal" if known else "none", better, None)
                if not 0 <= value <= 1:
                    skipped.append(f"{task} {key}: {value} is not a fraction")
                    continue
            scores[metric, filter_key] = score
        return scores

    def _from_samples(
        self, task: str, metric: str, outcomes: dict[int, Any], value: float, n: int, better: bool
    ) -> Score | None:
        """The score where its samples average to `value`, else None. `UserError` where samples of 0 and 1 do not."""
        if outcomes and all(isinstance(one, list) for one in outcomes.values()):
            outcomes = dict(zip(outcomes, ratio_of(list(outcomes.values())), strict=True))
        if len(outcomes) != n or any(isinstance(one, list) for one in outcomes.values()):
            return None
        mean = sum(outcomes.values()) / n
        agree = abs(mean - value) <= 1e-6 * max(1.0, abs(value))
        if scale_of(task) == 100 and all(one in (0, 1) for one in outcomes.values()):
            if not agree:
                raise UserError(
                    f"{self.path}: {task} {metric} is {value:.4f}, but its samples hold {mean * n:.0f} of {n} right: "
                    "not of one run; evaluate again"
                )
            whole = {doc: int(one) for doc, one in outcomes.items()}
            return Score(value, n, *wilson(sum(whole.values()), n), "wilson", better, whole, binary=True)
        if agree and n > 1:
            bounds = mean_of(list(outcomes.values()))
            return Score(value, n, *bounds, "t", better, {doc: float(one) for doc, one in outcomes.items()})
        return None


def read_evaluation(name: str, folder: Path) -> Evaluation:
    """The newest results of every task below `folder`, with their samples.

    `UserError` names the folder or file when there are no results or no samples, when the two disagree, when a file is
    cut short, or when the folder holds results of two models, chat templates or versions of lm-eval.
    """
    paths = sorted(folder.rglob("results_*.json"), key=lambda path: path.name, reverse=True)
    if not paths:
        raise UserError(f"{folder}: no results_*.json for {name!r}; run lm-eval with --output_path {folder}")
    files = [ResultsFile.read(path) for path in paths]
    own = [file for file in files if not file.served] or files
    refuse_mixture(folder, {file.path: {"model": file.harness["model_name"]} for file in own})
    one = Evaluation(name, folder)
    used: list[ResultsFile] = []
    for file in files:
        older = []
        for task in file.tasks:
            facts = file.facts(task)
            key = task
            if task in one.tasks and one.tasks[task]["n_shot"] != facts["n_shot"]:
                key = _with_shots(task, facts["n_shot"])
            if key in one.tasks:
                older.append(key)
                continue
            samples = file.samples(task)
            one.tasks[key] = facts
            one.docs[key] = {doc: hashes for part in samples.values() for doc, hashes in part.docs.items()}
            scores = file.scores(task, samples, one.skipped)
            one.scores.update({(key, metric, filter_key): score for (metric, filter_key), score in scores.items()})
            if file not in used:
                used.append(file)
        if older:
            shown = ", ".join(older[:4]) + (", ..." if len(older) > 4 else "")
            one.skipped.append(f"{file.path.relative_to(folder)}: newer results hold {shown}")
        groups = file.content.get("group_subtasks", {})
        one.subtasks.update({name: members for name, members in groups.items() if members})
    if not one.scores:
        raise UserError(f"{paths[0]}: no metric is a fraction: nothing to show for {name!r}; give another folder")
    shared = ("lm_eval_version", "chat_template_sha", "system_instruction_sha")
    speaking = [file for file in used if file in own]
    refuse_mixture(folder, {file.path: {key: file.harness[key] for key in shared} for file in speaking})
    one.results_files.extend(file.path for file in used)
    one.harness.update((speaking or used)[0].harness)
    return one


def leaves(subtasks: dict[str, list[str]], task: str) -> list[str]:
    """The tasks that `task` stands for, where `subtasks` maps lm-eval's groups to their members."""
    return [leaf for member in subtasks.get(task, []) for leaf in leaves(subtasks, member)] or [task]


def scale_of(name: str) -> int:
    """What a score of the task or group is multiplied by when it is shown: 100 for a fraction, 1 for points.

    Told by the name and never by values: a model that the judge rated 1 everywhere has not 100 %.
    """
    return 1 if name in POINTS else 100


def _with_shots(task: str, shots: int) -> str:
    """The name of a task's results where those of another number of shots have its own."""
    return f"{task} ({shots}-shot)"


def _read_samples(path: Path) -> dict[str, Samples]:
    """Samples by filter, read one line at a time: a line of MMLU-PRO holds ten prompts, 40 KB."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run lm-eval with --log_samples, which comparisons need")
    by_filter: dict[str, Samples] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = _record(line)
                doc, samples = record["doc_id"], by_filter.setdefault(record["filter"], Samples())
                hashes = (record["doc_hash"], record.get("prompt_hash", ""))
                values = {metric: record[metric] for metric in record["metrics"]}
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a whole record: the file is cut short; evaluate again") from None
            if doc in samples.docs:
                raise UserError(
                    f"{path}:{number}: document {doc} stands there twice: two runs wrote one file; evaluate again"
                )
            samples.docs[doc] = hashes
            for metric, value in values.items():
                if isinstance(value, bool | int | float) or (isinstance(value, list) and _is_flags(value)):
                    samples.values.setdefault(metric, {})[doc] = value
    return by_filter


def _record(line: bytes) -> dict[str, Any]:
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # lm-eval writes NaN and Infinity, which JSON does not have


def _is_flags(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, bool | int) for value in values)
