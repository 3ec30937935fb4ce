"""The scores table: every score of every stage, stages compared pairwise, their means, and the seeds of a stage."""

from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from hermes3.results.comparable import why_not, why_not_in_mean
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import Evaluation
from hermes3.results.score import Score, ScoreKey
from hermes3.stats import Z, holm, mean_interval

ALPHA = 0.05
ALIGNMENT = "alignment"  # the suite whose rows are a section of their own
METRIC_LABELS = {
    "acc": "accuracy",
    "acc_norm": "length-normalised accuracy",
    "valid": "valid form",
    "exact": "exact match",
    "exact_match": "exact match",
    "prompt_level_strict_acc": "prompts, strict",
    "inst_level_strict_acc": "instructions, strict",
    "prompt_level_strict_acc+inst_level_strict_acc": "strict, mean of prompts and instructions",
    "ended": "answers that end within the limit",
}
# The metric that stands for a task that no suite names: the strictest one that it has.
HEADLINE = ("exact_match", "acc", "valid", "exact", "acc_norm")


def score_table(stages: list[Evaluation], groups: list[Group]) -> dict[str, Any]:
    """Rows of the scores that stand for something, `details` of all others, and the mean of the rows per stage.

    `rows` are the suites' groups and one metric of every task that is in none. A pair of stages is compared only where
    both saw the same prompts of the same documents; otherwise it says why not, and the row is left out of the means.
    Holm's correction covers all tests of `rows`, and again all of `details`.
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
    means = _means(stages, [(group, row) for group, row in zip(shown, rows, strict=True)])
    return {"stages": [stage.name for stage in stages], "rows": rows, "details": details, "means": means}


def rows_of(stages: list[Evaluation], groups: list[Group]) -> list[Group]:
    """`groups`, and one metric of every task that is in none."""
    grouped = {key[0] for stage in stages for group in groups for key in stage.keys(group)}
    loose: dict[str, list[ScoreKey]] = {}
    for key in _keys(stages):
        if key[0] not in grouped:
            loose.setdefault(key[0], []).append(key)
    return [*groups, *(Group(_label(task), (_headline(keys),)) for task, keys in loose.items())]


def mark(pairs: list[dict[str, Any]], change: str) -> None:
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
    of the row, and `left_out` says why.
    """
    rows = []
    for group in groups:
        first = score_of(seeds[0], group)
        if first is None:
            continue
        reasons = {one.name: why_not(seeds[0], one, group) for one in seeds[1:]}
        values = [score_of(one, group).value for one in seeds if not reasons.get(one.name)]
        row = {"name": group.name, "scale": first.scale, "values": values, "mean": mean(values)}
        row["deviation"] = stdev(values) if len(values) > 1 else None
        row["sampling"] = None if first.low is None else (first.high - first.low) / 2 / Z
        row["left_out"] = [f"{seed}: {reason}" for seed, reason in reasons.items() if reason]
        rows.append(row)
    return {"stage": name, "folders": [str(one.folder) for one in seeds], "rows": rows}


def _keys(stages: list[Evaluation]) -> list[ScoreKey]:
    return list(dict.fromkeys(key for stage in stages for key in stage.scores))


def _row(stages: list[Evaluation], group: Group) -> dict[str, Any]:
    task, metric, filter_key = group.members[0]
    facts = [stage.tasks[key[0]] for stage in stages for key in stage.keys(group) if key[0] in stage.tasks]
    part = any(fact["samples"] < fact["questions"] for fact in facts)
    shots = list({fact["n_shot"] for fact in facts})
    return {
        "task": task if len(group.members) == 1 else group.name,
        "task_label": group.name,
        "tasks": [key[0] for key in group.members],
        "metric": metric,
        "filter": filter_key,
        "metric_label": _metric(group) + ("; only a part of the questions" if part else ""),
        "part": part,
        "shots": shots[0] if len(shots) == 1 else None,
        "suite": group.suite,
        "scale": max((score.scale for stage in stages if (score := score_of(stage, group))), default=100),
        "scores": {stage.name: _as_dict(score_of(stage, group)) for stage in stages},
        "comparisons": [compare(before, after, group) for before, after in pairwise(stages)],
    }


def _headline(keys: list[ScoreKey]) -> ScoreKey:
    return min(keys, key=lambda key: HEADLINE.index(key[1]) if key[1] in HEADLINE else len(HEADLINE))


def _label(task: str) -> str:
    """tiny_tool_call -> `Tool call`; any other name is lm-eval's own."""
    return task.removeprefix("tiny_").replace("_", " ").capitalize() if task.startswith("tiny_") else task


def _metric(group: Group) -> str:
    metric, filter_key = group.members[0][1:]
    words = METRIC_LABELS.get(metric, metric) + ("" if filter_key == "none" else f" ({filter_key})")
    tasks = len(group.members)
    return words if tasks == 1 else f"{words}, {tasks} tasks" + ("" if group.by_question else " weighing the same")


def _as_dict(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    right = sum(score.outcomes.values()) if score.binary and score.outcomes is not None else None
    interval = {"low": score.low, "high": score.high, "interval": score.interval}
    return {"value": score.value, **interval, "n": score.n, "right": right, "higher_is_better": score.higher_is_better}


def _means(stages: list[Evaluation], rows: list[tuple[Group, dict[str, Any]]]) -> dict[str, Any]:
    """Unweighted mean of the rows per stage, over those that every stage ran alike; every task counts once."""
    taken: list[Group] = []
    left_out, part = [], []
    counted: set[str] = set()
    for group, row in rows:
        if row["suite"] == ALIGNMENT:
            continue
        reason = why_not_in_mean(stages, group, row)
        if reason is None and counted & set(row["tasks"]):
            reason = "its tasks are in another row"
        if reason is None:
            taken.append(group)
            part += [group.name] if row["part"] else []
            counted |= set(row["tasks"])
        else:
            left_out.append({"task": group.name, "reason": reason})
    means = {}
    for stage in stages if taken else []:
        scores = [score_of(stage, group) for group in taken]
        value, low, high = mean_interval([(score.value, score.low, score.high) for score in scores])
        means[stage.name] = {"value": value, "low": low, "high": high}
    return {"tasks": [group.name for group in taken], "left_out": left_out, "part": part, "stages": means}
