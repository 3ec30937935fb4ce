"""The scores table: every score of every stage, stages compared pairwise, their means, and the seeds of a stage."""

from collections.abc import Collection
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from hermes3.report import names
from hermes3.results.comparable import why_not, why_not_in_mean
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import Evaluation, Score, ScoreKey
from hermes3.stats import Z, holm, mean_interval

ALPHA = 0.05
ALIGNMENT = "alignment"  # the suite whose rows are a section of their own
Row = dict[str, Any]


def score_table(stages: list[Evaluation], groups: list[Group], apart: Collection[str] = ()) -> dict[str, Any]:
    """Rows of the scores that stand for something, `details` of all others, and the mean of the rows per stage.

    `rows` are the suites' groups and one metric of every task that is in none. A pair of stages is compared only where
    both saw the same prompts of the same documents; otherwise it says why not, and the row is left out of the means.
    Holm's correction covers all tests of `rows`, and again all of `details`. `apart`: groups that the last training
    step optimises, and so in no mean.
    """
    shown = rows_of(stages, groups)
    single = [group for group in shown if len(group.members) == 1]
    alone = {stage.keys(group)[0] for stage in stages for group in single}
    named = {group.members[0][0]: group.name for group in single}
    rest = [key for key in _keys(stages) if key not in alone]
    rows = [_row(stages, group) for group in shown]
    details = [_row(stages, Group(named.get(key[0], _label(key[0])), (key,))) for key in rest]
    for table in (rows, details):
        mark([pair for row in table for pair in row["comparisons"]], "gain")
    means = _means(stages, list(zip(shown, rows, strict=True)), apart)
    return {"stages": [stage.name for stage in stages], "rows": rows, "details": details, "means": means}


def rows_of(stages: list[Evaluation], groups: list[Group]) -> list[Group]:
    """`groups`, and one metric of every task that is in none."""
    grouped = {key[0] for stage in stages for group in groups for key in stage.keys(group)}
    loose: dict[str, list[ScoreKey]] = {}
    for key in _keys(stages):
        if key[0] not in grouped:
            loose.setdefault(key[0], []).append(key)
    order = {metric: place for place, metric in enumerate(names("headline"))}
    headlines = {task: min(keys, key=lambda key: order.get(key[1], len(order))) for task, keys in loose.items()}
    return [*groups, *(Group(_label(task), (key,)) for task, key in headlines.items())]


def mark(pairs: list[Row], change: str) -> None:
    """Correct the p-values of a table or column by Holm, and mark what is better or worse by the sign of `change`."""
    tested = [pair for pair in pairs if "p" in pair]
    for pair, adjusted in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = adjusted
        if adjusted < ALPHA:
            pair["mark"] = "better" if pair[change] > 0 else "worse"


def seed_table(name: str, seeds: list[Evaluation], groups: list[Group]) -> dict[str, Any]:
    """Rows of `groups` that the first seed measured. `deviation` is the sample standard deviation (n - 1).

    `sampling` is the standard error from the questions. Seeds answer the same questions, so it is no part of the
    deviation: it says how far the whole row may lie off. A seed that cannot be compared with the first one is left out
    of the row: `values` has None in its place, `n` counts the others, and `left_out` says why.
    """
    rows = []
    for group in groups:
        first = score_of(seeds[0], group)
        if first is None:
            continue
        reasons = {one.name: why_not(seeds[0], one, group) for one in seeds[1:]}
        values = [None if reasons.get(one.name) else score_of(one, group).value for one in seeds]
        alike = [value for value in values if value is not None]
        row = {"name": group.name, "scale": first.scale, "values": values, "mean": mean(alike), "n": len(alike)}
        row["deviation"] = stdev(alike) if len(alike) > 1 else None
        row["sampling"] = None if first.low is None else (first.high - first.low) / 2 / Z
        row["left_out"] = [f"{seed}: {reason}" for seed, reason in reasons.items() if reason]
        rows.append(row)
    return {"stage": name, "folders": [str(one.folder) for one in seeds], "rows": rows}


def _keys(stages: list[Evaluation]) -> list[ScoreKey]:
    return list(dict.fromkeys(key for stage in stages for key in stage.scores))


def _row(stages: list[Evaluation], group: Group) -> Row:
    filter_key, tasks = group.members[0][2], list(dict.fromkeys(key[0] for key in group.members))
    metric = "+".join(dict.fromkeys(key[1] for key in group.members))
    facts = [stage.tasks[key[0]] for stage in stages for key in stage.keys(group) if key[0] in stage.tasks]
    part = any((fact["samples"] or 0) < (fact["questions"] or 0) for fact in facts)
    shots = {fact["n_shot"] for fact in facts}
    words = names("metrics").get(metric, metric) + ("" if filter_key == "none" else f" ({filter_key})")
    if len(tasks) > 1:
        words += f", {len(tasks)} tasks" + ("" if group.by_question else " weighing the same")
    row = {"task_label": group.name, "tasks": tasks, "suite": group.suite}
    row |= {"task": tasks[0] if len(tasks) == 1 else group.name, "metric": metric, "filter": filter_key}
    row |= {"metric_label": words + ("; only a part of the questions" if part else ""), "part": part}
    scores = {stage.name: score_of(stage, group) for stage in stages}
    scale = max((score.scale for score in scores.values() if score), default=100)
    row |= {"shots": shots.pop() if len(shots) == 1 else None, "scale": scale}
    scores = {name: as_dict(score) for name, score in scores.items()}
    return row | {"scores": scores, "comparisons": [compare(*pair, group) for pair in pairwise(stages)]}


def _label(task: str) -> str:
    """tiny_tool_call -> `Tool call`; any other name is lm-eval's own."""
    return task.removeprefix("tiny_").replace("_", " ").capitalize() if task.startswith("tiny_") else task


def as_dict(score: Score | None) -> Row | None:
    """A score in report.json. `right`: how many samples are, where each is 0 or 1."""
    if score is None:
        return None
    right = sum(score.outcomes.values()) if score.binary and score.outcomes is not None else None
    bounds = {"value": score.value, "low": score.low, "high": score.high, "interval": score.interval}
    return bounds | {"n": score.n, "right": right, "higher_is_better": score.higher_is_better}


def _means(stages: list[Evaluation], rows: list[tuple[Group, Row]], apart: Collection[str]) -> dict[str, Any]:
    """Unweighted mean of the rows per stage, over those that every stage ran alike; every task counts once."""
    taken: list[Row] = []
    left_out = []
    for group, row in rows:
        if row["suite"] == ALIGNMENT:
            continue
        reason = "DPO trains on such pairs" if group.name in apart else why_not_in_mean(stages, group, row)
        if reason is None and any({*row["tasks"]} & {*other["tasks"]} for other in taken):
            reason = "its tasks are in another row"
        if reason is None:
            taken.append(row)
        else:
            left_out.append({"task": group.name, "reason": reason})
    means = {stage.name: mean_row([row["scores"][stage.name] for row in taken]) for stage in stages if taken}
    part = [row["task_label"] for row in taken if row["part"]]
    return {"tasks": [row["task_label"] for row in taken], "left_out": left_out, "part": part, "stages": means}


def mean_row(scores: list[Row], value: str = "value") -> Row:
    """The mean of scores, or of differences, as report.json has it."""
    return dict(
        zip(("value", "low", "high"), mean_interval([(s[value], s["low"], s["high"]) for s in scores]), strict=True)
    )
