"""The reader of what lm-eval writes with `--output_path DIR --log_samples`.

Anywhere below DIR: `<model>/results_<date>.json`, and beside it one `samples_<task>_<date>.jsonl` per task. The newest
file that holds a task counts. Written by lm-eval 0.4.11; older results, and those without samples, are read too.
"""

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from hermes3.files import UserError, read_json
from hermes3.results.comparable import refuse_mixture
from hermes3.results.score import Group, Score, ScoreKey, better_of, measure, unit_of
from hermes3.results.suite import Protocol
from hermes3.stats import Z, ratio_of, share_worth

MT_BENCH = "mt_bench"
# columns that questions share; by GPQA's Record ID, extended holds main's questions, and main diamond's
PASSAGES = ("Record ID", "passage", "narrative", "story", "context", "article", "paragraph")
QUESTION = re.compile(r"\b(?:Q|Question):")
Docs = dict[int, tuple[str, str, str]]  # doc_id -> hash of the document, hash of its prompt, the passage that it shares


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model: a stage of the report, one of its seeds, or an epoch of a run.
    A task's results under a second protocol have a key of their own, as `hellaswag (10-shot)`."""

    name: str
    folder: Path
    results_files: list[Path] = field(default_factory=list)
    scores: dict[ScoreKey, Score] = field(default_factory=dict)
    docs: dict[str, Docs] = field(default_factory=dict)  # by task
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> `ResultsFile.facts`
    samples_files: dict[str, Path] = field(default_factory=dict)  # task -> its samples, whether they are there or not
    harness: dict[str, Any] = field(default_factory=dict)
    subtasks: dict[str, list[str]] = field(default_factory=dict)  # lm-eval's group -> its tasks or groups
    skipped: list[str] = field(default_factory=list)

    def keys(self, group: Group) -> list[ScoreKey]:
        """The keys of the group's members here, under the group's protocol or the nearest with as many shots."""
        return [(self._name(task, group.protocol), metric, filter_key) for task, metric, filter_key in group.members]

    def _name(self, task: str, wanted: Protocol | None) -> str:
        names = [name for name in self.tasks if name == task or name.startswith(f"{task} (")]
        if wanted is None or not names:
            return task
        alike = [name for name in names if self.tasks[name]["n_shot"] == wanted.shots]
        exact = [name for name in alike if self.protocol(name) == wanted]
        return (exact or alike or [f"{task} ({wanted.shots}-shot)"])[0]

    def protocol(self, task: str) -> Protocol:
        return protocol_of(self.tasks[task])

    def group_scores(self, group: Group) -> list[Score | None]:
        """The scores of the group's members; None for what was not measured."""
        return [self.scores.get(key) for key in self.keys(group)]

    def names_of(self, key: ScoreKey) -> list[Hashable]:
        """For each outcome, what the question stands or falls with: the passage that it shares, or itself."""
        return [self.docs[key[0]][doc][2] or (key[0], doc) for doc in self.scores[key].outcomes or {}]


def protocol_of(facts: dict[str, Any]) -> Protocol:
    """How a task was asked. lm-eval records templates since it has them, 0.4.3, so no record means none."""
    return Protocol.of(facts["n_shot"], bool(facts.get("chat_template")), facts.get("fewshot_as_turns") is not False)


class Samples(NamedTuple):
    """The samples of one task under one filter."""

    docs: Docs
    values: dict[str, dict[int, Any]]  # metric -> doc_id -> a number, or a list of 0 and 1 (IFEval's instructions)


class ResultsFile:
    """One `results_<date>.json` with the samples beside it. `UserError` when it is cut short or is not lm-eval's."""

    def __init__(self, path: Path):
        self.path, self.content = path, read_json(path, "results", "versions")
        self.counts: dict[str, dict[str, int]] = self.content.get("n-samples", {})
        self.subtasks: dict[str, list[str]] = self.content.get("group_subtasks", {})
        groups = self.content.get("groups", {}).keys() | {name for name, members in self.subtasks.items() if members}
        counted = self.counts or self.content["results"].keys() - groups
        self.tasks = [task for task in self.content["results"] if task in counted]
        # by `hermes3 mt-bench`; an endpoint calls the model by a name that is no folder
        self.judged: dict[str, Any] = self.content.get(MT_BENCH, {})
        self.endpoint: str | None = self.judged.get("answered_by", {}).get("endpoint")
        config = self.content.get("config", {})
        arguments = config.get("model_args")  # text, as on the command line, or an object
        if isinstance(arguments, dict):
            arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
        keys = ("lm_eval_version", "transformers_version", "git_hash", "chat_template_sha", "system_instruction_sha")
        self.harness = {key: self.content.get(key) for key in keys}
        self.harness |= {"model": config.get("model"), "model_args": arguments}
        self.harness["model_name"] = self.content.get("model_name") or arguments

    def facts(self, task: str) -> dict[str, Any]:
        """What the results of `task` depend on, how many questions were asked, and whether samples are there."""
        counts, content = self.counts.get(task, {}), self.content
        dtype = re.search(r"(?:^|,)dtype=([^,]*)", self.harness["model_args"] or "")
        shots = content.get("n-shot", {}).get(task, content.get("config", {}).get("num_fewshot"))
        facts = {"version": content["versions"].get(task), "n_shot": shots, "backend": self.harness["model"]}
        facts |= {"samples": counts.get("effective"), "questions": counts.get("original"), "dtype": dtype and dtype[1]}
        facts["chat_template"] = self.harness["chat_template_sha"] or ("the server's" if self.judged else None)
        facts["has_samples"] = self.samples_file(task).is_file()
        if self.judged:
            facts["judge"] = self.judged["judge"]["model"]
        if content.get("fewshot_as_multiturn") is not None:
            facts["fewshot_as_turns"] = content["fewshot_as_multiturn"]
        return facts | ({"served": f"{content.get('model_name')} at {self.endpoint}"} if self.endpoint else {})

    def samples_file(self, task: str) -> Path:
        return self.path.with_name(f"samples_{task}_{self.path.stem.removeprefix('results_')}.jsonl")

    def samples(self, task: str) -> dict[str, Samples]:
        """Samples by filter. `UserError` when the file is missing, cut short, or of another run."""
        path, n = self.samples_file(task), self.counts.get(task, {}).get("effective")
        by_filter = _read_samples(path)
        for count in {len(samples.docs) for samples in by_filter.values()} or {0}:
            if count == 0 or n not in (None, count):
                wrong = f"{count} documents, but {self.path.name} is over {n}: not of one run, or cut short"
                raise UserError(f"{path}: {wrong}; evaluate again")
        return by_filter

    def scores(self, task: str, samples: dict[str, Samples], skipped: list[str]) -> dict[tuple[str, str], Score]:
        """(metric, filter) -> score. What is no number goes to `skipped`, in words."""
        metrics, scores = self.content["results"][task], {}
        for key, value in metrics.items():
            metric, _, filter_key = key.partition(",")
            if metric.endswith("_stderr") or not filter_key:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                skipped.append(f"{task} {key}: {value} is no number")
                continue
            logged = samples.get(filter_key) or samples.get("") or Samples({}, {})
            stderr = metrics.get(key.replace(metric, f"{metric}_stderr", 1))
            scores[metric, filter_key] = self._score(task, metric, value, stderr, logged)
        return scores

    def _score(self, task: str, metric: str, value: float, stderr: Any, logged: Samples) -> Score:
        """From its samples where they average to `value`, else with lm-eval's own standard error."""
        better = better_of(task, metric, (self.content.get("higher_is_better", {}).get(task) or {}).get(metric))
        unit, outcomes, n = unit_of(task, metric), logged.values.get(metric, {}), len(logged.docs)
        part = 0.01 if unit == "percent" else 1
        lists = [one for one in outcomes.values() if isinstance(one, list)]
        if n and len(outcomes) == n and len(lists) in (0, n):
            if lists:
                outcomes = dict(zip(outcomes, ratio_of(lists), strict=True))
            mean, flags = sum(outcomes.values()) / n, set(outcomes.values()) <= {0, 1}
            kind = unit or ("share" if flags and 0 < mean < 1 else "points")
            if kind == "share" and not lists and not all(-1e-9 <= one <= 1 + 1e-9 for one in outcomes.values()):
                kind = "points"
            differs = abs(mean - value) > 1e-6 * max(1.0, abs(value))
            if differs and flags and kind == "share":
                wrong = f"{task} {metric} is {value:.4f}, but its samples hold {mean * n:.0f} of {n} right"
                raise UserError(f"{self.path}: {wrong}: not of one run; evaluate again")
            if not differs and (flags or n > 1):
                scaled = {doc: int(one) if flags and part == 1 else part * float(one) for doc, one in outcomes.items()}
                names = [logged.docs[doc][2] or doc for doc in outcomes]
                return measure([scaled], [names], better, 1 if kind == "points" else 100)
        known = isinstance(stderr, int | float) and stderr == stderr
        value, stderr = part * value, part * stderr if known else 0.0
        share = unit in ("share", "percent") and 0 <= value <= 1
        worth = share_worth(value, stderr) if share else None  # tells the number of questions where nothing else does
        n = self.counts.get(task, {}).get("effective") or (round(worth) + 1 if worth else 0)
        bounds = (value - Z * stderr, value + Z * stderr) if known else (None, None)
        return Score(value, n, *bounds, "normal" if known else "none", better, 100 if share else 1, worth)


def read_evaluation(name: str, folder: Path) -> Evaluation:
    """The newest results of every task below `folder`. `UserError` where there are none, a file is cut short,
    samples disagree with results, or results are of two models, chat templates or versions of lm-eval."""
    paths = sorted(folder.rglob("results_*.json"), key=lambda path: path.name, reverse=True)
    if not paths:
        raise UserError(f"{folder}: no results_*.json for {name!r}; run lm-eval with --output_path {folder}")
    files, used = [ResultsFile(path) for path in paths], []
    own = [file for file in files if not file.endpoint] or files
    refuse_mixture(folder, "model_name", own)
    one = Evaluation(name, folder)
    for file in files:
        older = []
        for task in file.tasks:
            facts, key = file.facts(task), task
            protocol = protocol_of(facts)
            if task in one.tasks and one.protocol(task) != protocol:
                by_shots = one.protocol(task)[1:] == protocol[1:]  # else in another form
                key = f"{task} ({protocol.shots}-shot)" if by_shots else f"{task} ({protocol})"
            if key in one.tasks:
                older.append(key)
                continue
            used.append(file)
            samples = file.samples(task) if facts["has_samples"] else {}
            scores = file.scores(task, samples, one.skipped)
            one.scores.update({(key, *metric_and_filter): score for metric_and_filter, score in scores.items()})
            one.docs[key] = {doc: of_doc for part in samples.values() for doc, of_doc in part.docs.items()}
            one.samples_files[key] = file.samples_file(task)
            facts["samples"] = facts["samples"] or len(one.docs[key]) or max((s.n for s in scores.values()), default=0)
            one.tasks[key] = facts | {"questions": facts["questions"] or facts["samples"]}
        if older:
            one.skipped.append(f"{file.path.relative_to(folder)}: newer results hold {', '.join(older)}")
        one.subtasks.update({group: members for group, members in file.subtasks.items() if members})
    if without := [task for task, facts in one.tasks.items() if not facts["has_samples"]]:
        one.skipped.append(f"no samples of {', '.join(without)}: no paired test, and intervals by the standard error")
    if not one.scores:
        raise UserError(f"{paths[0]}: no metric is a number: nothing to show for {name!r}; give another folder")
    speaking = [file for file in used if file in own]
    templated = [file for file in speaking if file.harness["chat_template_sha"]]
    refuse_mixture(folder, "lm_eval_version", speaking)
    refuse_mixture(folder, "system_instruction_sha", speaking)
    refuse_mixture(folder, "chat_template_sha", templated)
    one.results_files.extend(dict.fromkeys(file.path for file in used))
    one.harness.update((templated or speaking or used)[0].harness)
    # of all files: one suite may be asked in another precision than the next
    one.harness["model_args"] = "; ".join(filter(None, dict.fromkeys(file.harness["model_args"] for file in used)))
    return one


def leaves(subtasks: dict[str, list[str]], task: str) -> list[str]:
    """The tasks that `task` stands for, where `subtasks` maps lm-eval's groups to their members."""
    return [leaf for member in subtasks.get(task, []) for leaf in leaves(subtasks, member)] or [task]


def _read_samples(path: Path) -> dict[str, Samples]:
    """By filter, called "" before November 2024; one line at a time, as a line of MMLU-PRO holds ten prompts, 40 KB."""
    import orjson

    if not path.is_file():
        raise UserError(f"{path}: no such file; run lm-eval with --log_samples, which comparisons need")
    by_filter: dict[str, Samples] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                # lm-eval writes NaN and Infinity, which JSON and so orjson do not have
                record = json.loads(line) if b"NaN" in line or b"Infinity" in line else orjson.loads(line)
                doc, samples = record["doc_id"], by_filter.setdefault(record.get("filter", ""), Samples({}, {}))
                hashes = (record["doc_hash"], record.get("prompt_hash", ""))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path}:{number}: not a whole record: the file is cut short; evaluate again") from None
            if doc in samples.docs:
                wrong = f"document {doc} stands there twice: two runs wrote one file"
                raise UserError(f"{path}:{number}: {wrong}; evaluate again")
            samples.docs[doc] = (*hashes, _passage(record.get("doc")))
            for metric, value in record.items():
                flags = isinstance(value, list) and value and all(isinstance(part, int) for part in value)
                if flags or isinstance(value, int | float):
                    samples.values.setdefault(metric, {})[doc] = value
    for docs, _ in by_filter.values():
        passages = [passage for _, _, passage in docs.values() if passage]
        if len(set(passages)) == len(passages):  # none has several questions
            docs.update({doc: (*hashes, "") for doc, (*hashes, _) in docs.items()})
    return by_filter


def _passage(doc: Any) -> str:
    """What a question may share with others: a column of the data set, or in AGIEval what stands before `Q:`."""
    if not isinstance(doc, dict):
        return ""
    query = doc.get("query") if isinstance(doc.get("query"), str) else ""
    before = QUESTION.split(query, maxsplit=1)[0]
    texts = [*(doc.get(column) for column in PASSAGES), before if before != query else ""]
    return intern(" ".join(next((text for text in texts if isinstance(text, str) and text.strip()), "").split()))
