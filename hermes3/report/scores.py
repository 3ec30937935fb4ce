"""The scores table: every score of every stage, stages compared pairwise on the same documents, and their means."""

from typing import Any

from hermes3.page.text import ALIGNMENT
from hermes3.report.groups import Group, compare, keys_in, score_of, why_not
from hermes3.report.results import Score, ScoreKey, Stage, scale_of
from hermes3.stats import holm, mean_interval

ALPHA = 0.05

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
NOT_QUALITY = {"ended": "it says that an answer stops, not that it is right"}


def score_table(stages: list[Stage], groups: list[Group]) -> dict[str, Any]:
    """Rows of the scores that stand for something, `details` of all others, and the mean of the rows per stage.

    `rows` are the suites' groups and one metric of every task that is in none. A pair of stages is compared only where
    both saw the same prompts of the same documents; otherwise it says why not, and the row is left out of the means.
    Holm's correction covers all tests of `rows`, and again all of `details`.
    """
    keys = _keys(stages)
    shown = rows_of(stages, groups)
    alone = {keys_in(stage, group)[0] for stage in stages for group in shown if len(group.members) == 1}
    rows = [_row(stages, group) for group in shown]
    named = {group.members[0][0]: group.name for group in shown if len(group.members) == 1}
    details = [_row(stages, Group(named.get(key[0], _label(key[0])), (key,))) for key in keys if key not in alone]
    for table in (rows, details):
        _mark([pair for row in table for pair in row["comparisons"]])
    means = _means(stages, [(group, row) for group, row in zip(shown, rows, strict=True)])
    return {"stages": [stage.name for stage in stages], "rows": rows, "details": details, "means": means}


def rows_of(stages: list[Stage], groups: list[Group]) -> list[Group]:
    """`groups`, and one metric of every task that is in none."""
    keys = _keys(stages)
    grouped = {key[0] for stage in stages for group in groups for key in keys_in(stage, group)}
    loose = {task: _headline([key for key in keys if key[0] == task]) for task, _, _ in keys if task not in grouped}
    return [*groups, *(Group(_label(task), (key,)) for task, key in loose.items())]


def _keys(stages: list[Stage]) -> list[ScoreKey]:
    return list(dict.fromkeys(key for stage in stages for key in stage.scores))


def _row(stages: list[Stage], group: Group) -> dict[str, Any]:
    scores = {stage.name: _as_dict(score_of(stage, group)) for stage in stages}
    task, metric, filter_key = group.members[0]
    tasks = [key[0] for key in group.members]
    facts = [stage.tasks[key[0]] for stage in stages for key in keys_in(stage, group) if key[0] in stage.tasks]
    part = any(fact["samples"] < fact["questions"] for fact in facts)
    shots = list({fact["n_shot"] for fact in facts})
    return {
        "task": task if len(group.members) == 1 else group.name,
        "task_label": group.name,
        "tasks": tasks,
        "metric": metric,
        "filter": filter_key,
        "metric_label": _metric(group) + ("; only a part of the questions" if part else ""),
        "part": part,
        "shots": shots[0] if len(shots) == 1 else None,
        "suite": group.suite,
        "scale": scale_of(task),
        "scores": scores,
        "comparisons": [compare(before, after, group) for before, after in zip(stages, stages[1:], strict=False)],
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


def _mark(pairs: list[dict[str, Any]]) -> None:
    tested = [pair for pair in pairs if "p" in pair]
    for pair, adjusted in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = adjusted
        if adjusted < ALPHA:
            pair["mark"] = "better" if pair["gain"] > 0 else "worse"


def _means(stages: list[Stage], rows: list[tuple[Group, dict[str, Any]]]) -> dict[str, Any]:
    """Unweighted mean of the rows per stage, over those that every stage ran alike; every task counts once."""
    taken: list[Group] = []
    left_out, part = [], []
    counted: set[str] = set()
    for group, row in rows:
        reason = _not_in_mean(stages, group, row)
        if reason is None and counted & set(row["tasks"]):
            reason = "its tasks are in another row"
        if reason is None:
            taken.append(group)
            part += [group.name] if row["part"] else []
            counted |= set(row["tasks"])
        elif row["suite"] != ALIGNMENT:
            left_out.append({"task": group.name, "reason": reason})
    means = {}
    for stage in stages if taken else []:
        scores = [score_of(stage, group) for group in taken]
        mean, low, high = mean_interval([(score.value, score.low, score.high) for score in scores])
        means[stage.name] = {"value": mean, "low": low, "high": high}
    return {"tasks": [group.name for group in taken], "left_out": left_out, "part": part, "stages": means}


def _not_in_mean(stages: list[Stage], group: Group, row: dict[str, Any]) -> str | None:
    if row["suite"] == ALIGNMENT:
        return "a section of its own"
    if row["metric"] in NOT_QUALITY:
        return NOT_QUALITY[row["metric"]]
    if row["scale"] == 1:
        return "not in percent"
    if missing := [stage.name for stage in stages if row["scores"][stage.name] is None]:
        return f"not measured on {missing[0]}"
    reasons = [reason for stage in stages[1:] if (reason := why_not(stages[0], stage, group))]
    scores = row["scores"].values()
    if not reasons and any(score["low"] is None for score in scores):
        reasons = ["no interval"]
    if not reasons and not next(iter(scores))["higher_is_better"]:
        reasons = ["lower is better"]
    return reasons[0] if reasons else None
