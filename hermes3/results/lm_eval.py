"""The reader of what lm-eval writes with `--output_path DIR`, and with `--log_samples` beside it.

Layout: anywhere below DIR `<model>/results_<date>.json` and beside it, with the same date, one
`samples_<task>_<date>.jsonl` per task. A suite leaves one results file per protocol; the newest file that holds a task
counts. Written by lm-eval 0.4.11; results of 0.4.0 and later, and those without samples, are read too.
"""

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

from hermes3.files import UserError
from hermes3.results.comparable import refuse_mixture
from hermes3.results.score import Score, ScoreKey, better_of, measure, unit_of
from hermes3.results.suite import Protocol
from hermes3.stats import Z, ratio_of, share_worth

if TYPE_CHECKING:
    from hermes3.results.groups import Group

MT_BENCH = "mt_bench"
PASSAGES = ("passage", "narrative", "story", "context", "article", "paragraph")  # columns that questions share
SHARED_ID = "Record ID"  # GPQA's: main holds diamond's questions, and extended holds main's
QUESTION = re.compile(r"\b(?:Q|Question):")
NO_METRICS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "prompt_hash"}
NO_METRICS |= {"target_hash"}


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model: a stage of the report, one of its seeds, or an epoch of a run.

    A task's results under a second protocol have a key of their own, as `hellaswag (10-shot)`.
    """

    name: str
    folder: Path
    results_files: list[Path] = field(default_factory=list)
    scores: dict[ScoreKey, Score] = field(default_factory=dict)
    docs: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)  # task -> doc_id -> document, prompt hash
    clusters: dict[str, dict[int, str]] = field(default_factory=dict)  # task -> doc_id -> the passage that it shares
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> `ResultsFile.facts`
    samples_files: dict[str, Path] = field(default_factory=dict)  # task -> its samples, whether they are there or not
    harness: dict[str, str | None] = field(default_factory=dict)
    subtasks: dict[str, list[str]] = field(default_factory=dict)  # lm-eval's group -> its tasks or groups
    skipped: list[str] = field(default_factory=list)

    def keys(self, group: "Group") -> list[ScoreKey]:
        """The keys of the group's members here, under the group's protocol or the nearest with as many shots."""
        return [(self._name(task, group.protocol), metric, filter_key) for task, metric, filter_key in group.members]

    def _name(self, task: str, wanted: Protocol | None) -> str:
        if wanted is None or (task in self.tasks and protocol_of(self.tasks[task]) == wanted):
            return task
        names = [name for name in self.tasks if name == task or name.startswith(f"{task} (")]
        alike = [name for name in names if self.tasks[name]["n_shot"] == wanted.shots]
        exact = [name for name in alike if protocol_of(self.tasks[name]) == wanted]
        return (exact or alike or [f"{task} ({wanted.shots}-shot)" if names else task])[0]

    def protocol(self, task: str) -> Protocol:
        """How a task was asked. lm-eval records templates since it has them, 0.4.3, so no record means none."""
        return protocol_of(self.tasks[task])

    def group_scores(self, group: "Group") -> list[Score | None]:
        """The scores of the group's members; None for what was not measured."""
        return [self.scores.get(key) for key in self.keys(group)]

    def names_of(self, key: ScoreKey) -> dict[int, Hashable]:
        """doc_id -> what the question stands or falls with: the passage that it shares, or itself."""
        shared = self.clusters.get(key[0], {})
        return {doc: shared.get(doc, (key[0], doc)) for doc in self.scores[key].outcomes or {}}


def protocol_of(facts: dict[str, Any]) -> Protocol:
    template = bool(facts.get("chat_template"))
    return Protocol.of(facts["n_shot"], template, facts.get("fewshot_as_turns") is not False)


@dataclass
class Samples:
    """The samples of one task under one filter.

    `docs`: doc_id -> (hash of the document, hash of its prompt). `values`: metric -> doc_id -> a number, or a list of 0
    and 1 (IFEval's instructions). `passages`: doc_id -> the passage that it asks about.
    """

    docs: dict[int, tuple[str, str]] = field(default_factory=dict)
    values: dict[str, dict[int, float | list[float]]] = field(default_factory=dict)
    passages: dict[int, str] = field(default_factory=dict)

    def shared(self) -> dict[int, str]:
        """`passages` where any is asked about twice; else nothing."""
        return self.passages if len(set(self.passages.values())) < len(self.passages) else {}


class ResultsFile:
    """One `results_<date>.json` with the samples beside it.

    `UserError` when the file is cut short or is not lm-eval's. `served`: whether `hermes3 mt-bench` asked an endpoint,
    which calls the model by a name that is no folder.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path}: not whole JSON: the file is cut short; evaluate again") from None
        for key in ("results", "versions"):
            if not isinstance(self.content, dict) or key not in self.content:
                raise UserError(f"{path}: {key} is missing: not a results file of lm-eval; move it away")
        self.counts: dict[str, dict[str, int]] = self.content.get("n-samples", {})
        self.judged: dict[str, Any] = self.content.get(MT_BENCH, {})
        self.served = bool(self.judged.get("answered_by", {}).get("endpoint"))

    @property
    def tasks(self) -> list[str]:
        """The tasks in the file, without groups of tasks."""
        groups = self.content.get("groups", {}).keys() | {name for name, members in self.subtasks.items() if members}
        return [
            task for task in self.content["results"] if (task in self.counts if self.counts else task not in groups)
        ]

    @property
    def subtasks(self) -> dict[str, list[str]]:
        return self.content.get("group_subtasks", {})

    @cached_property
    def harness(self) -> dict[str, str | None]:
        """What the whole file depends on. `model_args` is as on the command line; lm-eval records text or an object."""
        keys = ("lm_eval_version", "transformers_version", "git_hash", "chat_template_sha", "system_instruction_sha")
        config = self.content.get("config", {})
        arguments = config.get("model_args") or ""
        if not isinstance(arguments, str):
            arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
        values = {key: self.content.get(key) for key in keys}
        values |= {"model": config.get("model"), "model_args": arguments or None}
        values["model_name"] = self.content.get("model_name") or values["model_args"]
        return {key: None if value is None else str(value) for key, value in values.items()}

    def facts(self, task: str) -> dict[str, Any]:
        """What the results of `task` depend on, and how many questions were asked.

        `chat_template`: its hash, None without one; `has_samples`: whether samples stand beside the results.
        """
        shots = self.content.get("n-shot", {}).get(task, self.content.get("config", {}).get("num_fewshot"))
        facts = {"version": self.content["versions"].get(task), "n_shot": shots}
        counts = self.counts.get(task, {})
        facts |= {"samples": counts.get("effective"), "questions": counts.get("original")}
        arguments = dict(part.partition("=")[::2] for part in (self.harness["model_args"] or "").split(","))
        facts |= {"backend": self.harness["model"], "dtype": arguments.get("dtype")}
        facts["chat_template"] = self.harness["chat_template_sha"] or ("the server's" if self.judged else None)
        if self.judged:
            facts["judge"] = self.judged["judge"]["model"]
        if self.content.get("fewshot_as_multiturn") is not None:
            facts["fewshot_as_turns"] = self.content["fewshot_as_multiturn"]
        if self.served:
            facts["served"] = f"{self.content.get('model_name')} at {self.judged['answered_by']['endpoint']}"
        return facts | {"has_samples": self.samples_file(task).is_file()}

    def samples_file(self, task: str) -> Path:
        return self.path.with_name(f"samples_{task}_{self.path.stem.removeprefix('results_')}.jsonl")

    def samples(self, task: str) -> dict[str, Samples]:
        """Samples by filter. `UserError` when the file is missing, cut short, or of another run."""
        path, n = self.samples_file(task), self.counts.get(task, {}).get("effective")
        by_filter = _read_samples(path)
        for name, samples in by_filter.items():
            if n is not None and len(samples.docs) != n:
                raise UserError(
                    f"{path}: {len(samples.docs)} documents under filter {name}, but {self.path.name} is over {n}: not "
                    "of one run, or cut short; evaluate again"
                )
        if not by_filter:
            raise UserError(f"{path}: empty, but {self.path.name} is over {n} documents; evaluate again")
        return by_filter

    def scores(self, task: str, samples: dict[str, Samples], skipped: list[str]) -> dict[tuple[str, str], Score]:
        """(metric, filter) -> score. What is no number goes to `skipped`, in words."""
        metrics = self.content["results"][task]
        directions = self.content.get("higher_is_better", {}).get(task) or {}
        filters = any("," in key for key in metrics)  # before 0.4 metrics named none
        scores = {}
        for key, value in metrics.items():
            metric, comma, filter_key = key.partition(",")
            if metric.endswith("_stderr") or key == "alias" or (filters and not comma):
                continue
            filter_key = filter_key or "none"
            if isinstance(value, bool) or not isinstance(value, int | float):
                skipped.append(f"{task} {key}: {value} is no number")
                continue
            logged = samples.get(filter_key) or (samples.get("") if len(samples) == 1 else None) or Samples()
            better = better_of(task, metric, directions.get(metric))
            score = self._from_samples(task, metric, logged, float(value), better)
            if score is None:
                stderr = metrics.get(key.replace(metric, f"{metric}_stderr", 1))
                score = self._from_stderr(task, metric, float(value), stderr, better)
            scores[metric, filter_key] = score
        return scores

    def _from_samples(self, task: str, metric: str, logged: Samples, value: float, better: bool | None) -> Score | None:
        """The score where its samples average to `value`, else None. `UserError` where samples of 0 and 1 do not."""
        outcomes = logged.values.get(metric, {})
        lists = bool(outcomes) and all(isinstance(one, list) for one in outcomes.values())
        if lists:
            outcomes = dict(zip(outcomes, ratio_of(list(outcomes.values())), strict=True))
        n, unit = len(logged.docs), unit_of(task, metric)
        if not outcomes or len(outcomes) != n or any(isinstance(one, list) for one in outcomes.values()):
            return None
        mean, flags = sum(outcomes.values()) / n, set(outcomes.values()) <= {0, 1}
        unit = unit or ("share" if flags and 0 < mean < 1 else "points")
        if unit == "share" and not lists and not all(-1e-9 <= one <= 1 + 1e-9 for one in outcomes.values()):
            unit = "points"
        if abs(mean - value) > 1e-6 * max(1.0, abs(value)):
            if flags and unit == "share":
                raise UserError(
                    f"{self.path}: {task} {metric} is {value:.4f}, but its samples hold {mean * n:.0f} of {n} right: "
                    "not of one run; evaluate again"
                )
            return None
        if n == 1 and not flags:
            return None
        part, shared = 0.01 if unit == "percent" else 1, logged.shared()
        scaled = {doc: int(one) if flags and part == 1 else part * float(one) for doc, one in outcomes.items()}
        names = {doc: shared.get(doc, doc) for doc in outcomes}
        return measure([scaled], [names], [1], True, better, 1 if unit == "points" else 100)

    def _from_stderr(self, task: str, metric: str, value: float, stderr: Any, better: bool | None) -> Score:
        """The score with lm-eval's own standard error, which tells the number of questions where nothing else does."""
        part = 0.01 if (unit := unit_of(task, metric)) == "percent" else 1
        share = unit in ("share", "percent") and 0 <= part * value <= 1
        value, known = part * value, isinstance(stderr, int | float) and stderr == stderr
        stderr = part * stderr if known else 0.0
        worth = share_worth(value, stderr) if share else None
        n = self.counts.get(task, {}).get("effective") or (round(worth) + 1 if worth else 0)
        bounds = (value - Z * stderr, value + Z * stderr) if known else (None, None)
        interval, scale = "normal" if known else "none", 100 if share else 1
        return Score(value, n, *bounds, interval, better, None, scale=scale, effective_n=worth)


def read_evaluation(name: str, folder: Path) -> Evaluation:
    """The newest results of every task below `folder`, with their samples where they were logged.

    `UserError` names the folder or file when there are no results, when samples disagree with them, when a file is cut
    short, or when the folder holds results of two models, chat templates or versions of lm-eval. Results without a
    chat template may stand beside those with one.
    """
    paths = sorted(folder.rglob("results_*.json"), key=lambda path: path.name, reverse=True)
    if not paths:
        raise UserError(f"{folder}: no results_*.json for {name!r}; run lm-eval with --output_path {folder}")
    files = [ResultsFile(path) for path in paths]
    own = [file for file in files if not file.served] or files
    refuse_mixture(folder, {file.path: {"model": file.harness["model_name"]} for file in own})
    one = Evaluation(name, folder)
    used: list[ResultsFile] = []
    for file in files:
        older = []
        for task in file.tasks:
            facts, key = file.facts(task), task
            if task in one.tasks and protocol_of(one.tasks[task]) != (protocol := protocol_of(facts)):
                alike = protocol_of(one.tasks[task])[1:] == protocol[1:]
                key = f"{task} ({protocol.shots}-shot)" if alike else f"{task} ({protocol})"
            if key in one.tasks:
                older.append(key)
                continue
            samples = file.samples(task) if facts["has_samples"] else {}
            one.docs[key] = {doc: hashes for part in samples.values() for doc, hashes in part.docs.items()}
            one.clusters[key] = {doc: passage for part in samples.values() for doc, passage in part.shared().items()}
            scores = file.scores(task, samples, one.skipped)
            if facts["samples"] is None:
                facts["samples"] = len(one.docs[key]) or max((score.n for score in scores.values()), default=0)
            one.samples_files[key] = file.samples_file(task)
            one.tasks[key] = facts | {"questions": facts["questions"] or facts["samples"]}
            one.scores.update({(key, metric, filter_key): score for (metric, filter_key), score in scores.items()})
            if file not in used:
                used.append(file)
        if older:
            shown = ", ".join(older[:4]) + (", ..." if len(older) > 4 else "")
            one.skipped.append(f"{file.path.relative_to(folder)}: newer results hold {shown}")
        one.subtasks.update({name: members for name, members in file.subtasks.items() if members})
    if without := [task for task, facts in one.tasks.items() if not facts["has_samples"]]:
        one.skipped.append(f"no samples of {', '.join(without)}: no paired test, and intervals by the standard error")
    if not one.scores:
        raise UserError(f"{paths[0]}: no metric is a number: nothing to show for {name!r}; give another folder")
    speaking = [file for file in used if file in own]
    for fact in ("lm_eval_version", "chat_template_sha", "system_instruction_sha"):
        values = {file.path: {fact: file.harness[fact]} for file in speaking}
        templates = fact == "chat_template_sha"
        refuse_mixture(folder, {path: of for path, of in values.items() if of[fact] is not None or not templates})
    one.results_files.extend(file.path for file in used)
    one.harness.update((speaking or used)[0].harness)
    shas = (file.harness["chat_template_sha"] for file in speaking)
    one.harness["chat_template_sha"] = next(filter(None, shas), None)
    return one


def leaves(subtasks: dict[str, list[str]], task: str) -> list[str]:
    """The tasks that `task` stands for, where `subtasks` maps lm-eval's groups to their members."""
    return [leaf for member in subtasks.get(task, []) for leaf in leaves(subtasks, member)] or [task]


def scale_of(name: str) -> int:
    """What a score of a suite's group is multiplied by when it is shown: 100 for a share, 1 for MT-Bench's points."""
    return 1 if name in (MT_BENCH, "MT-Bench") else 100


def _read_samples(path: Path) -> dict[str, Samples]:
    """Samples by filter, read one line at a time: a line of MMLU-PRO holds ten prompts, 40 KB.

    Before November 2024 lm-eval named no filter: there is one, called "".
    """
    import orjson

    if not path.is_file():
        raise UserError(f"{path}: no such file; run lm-eval with --log_samples, which comparisons need")
    by_filter: dict[str, Samples] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                # lm-eval writes NaN and Infinity, which JSON and so orjson do not have
                record = json.loads(line) if b"NaN" in line or b"Infinity" in line else orjson.loads(line)
                doc, samples = record["doc_id"], by_filter.setdefault(record.get("filter", ""), Samples())
                hashes = (record["doc_hash"], record.get("prompt_hash", ""))
                values = {metric: record[metric] for metric in record.get("metrics", record.keys() - NO_METRICS)}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path}:{number}: not a whole record: the file is cut short; evaluate again") from None
            if doc in samples.docs:
                raise UserError(
                    f"{path}:{number}: document {doc} stands there twice: two runs wrote one file; evaluate again"
                )
            samples.docs[doc] = hashes
            if passage := _passage(record.get("doc")):
                samples.passages[doc] = passage
            for metric, value in values.items():
                flags = isinstance(value, list) and value and all(isinstance(part, bool | int) for part in value)
                if flags or isinstance(value, bool | int | float):
                    samples.values.setdefault(metric, {})[doc] = value
    return by_filter


def _passage(doc: Any) -> str | None:
    """What a question may share with others: a column of the data set, or in AGIEval what stands before `Q:`."""
    if not isinstance(doc, dict):
        return None
    for column in (SHARED_ID, *PASSAGES):
        if isinstance(text := doc.get(column), str) and text.strip():
            return intern(" ".join(text.split()))
    query = doc.get("query")
    before = QUESTION.split(query, maxsplit=1)[0] if isinstance(query, str) else ""
    return intern(" ".join(before.split())) if before.strip() and before != query else None
