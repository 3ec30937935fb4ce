"""The report's tables: scores stage by stage with their means, the seeds of a stage, and both beside the paper's."""

from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hermes3.files import read_yaml
from hermes3.results.comparable import why_not, why_not_change, why_not_in_mean, why_not_published
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import Evaluation
from hermes3.results.published import Table, load
from hermes3.results.score import Score, ScoreKey
from hermes3.stats import Z, difference, equivalence, holm, mean_interval, two_proportions, wilson, z_test

NAMES = read_yaml(Path(__file__).with_name("names.yml"))
ALPHA = 0.05
ALIGNMENT = "alignment"  # the suite whose rows are a section of their own
OTHERWISE = "under another protocol"  # a mark: compared, and no part of the verdict
BOUNDS = ("value", "low", "high")
Row = dict[str, Any]


def score_table(stages: list[Evaluation], groups: list[Group], apart: Collection[str] = ()) -> dict[str, Any]:
    """A row per group of `rows_of`, `details` of all other scores, each table with Holm's correction, and the means.
    In no mean are rows whose stages cannot be compared, and `apart`, groups that the last training step optimises."""
    groups = rows_of(stages, groups)
    alone = {stage.keys(group)[0]: group.name for stage in stages for group in groups if len(group.members) == 1}
    labels = {task: name for (task, _, _), name in alone.items()}
    rest = [Group(labels.get(key[0], key[0]), (key,)) for key in _keys(stages) if key not in alone]
    rows, details = ([_row(stages, group) for group in of] for of in (groups, rest))
    for table in (rows, details):
        mark([pair for row in table for pair in row["comparisons"]], "gain")
    means = _means(stages, groups, rows, apart)
    return {"stages": [stage.name for stage in stages], "rows": rows, "details": details, "means": means}


def rows_of(stages: list[Evaluation], groups: list[Group]) -> list[Group]:
    """`groups`, and the first metric of every task that is in none."""
    grouped = {key[0] for stage in stages for group in groups for key in stage.keys(group)}
    loose: dict[str, ScoreKey] = {}
    for key in _keys(stages):
        if key[0] not in grouped:
            loose.setdefault(key[0], key)
    return [*groups, *(Group(task, (key,)) for task, key in loose.items())]


def _keys(stages: list[Evaluation]) -> list[ScoreKey]:
    return list(dict.fromkeys(key for stage in stages for key in stage.scores))


def _row(stages: list[Evaluation], group: Group) -> Row:
    tasks = list(dict.fromkeys(task for task, _, _ in group.members))
    metric, filter_key = "+".join(dict.fromkeys(key[1] for key in group.members)), group.members[0][2]
    asked = [stage.tasks[key[0]] for stage in stages for key in stage.keys(group) if key[0] in stage.tasks]
    shots, part = {one["n_shot"] for one in asked}, any(one["samples"] < one["questions"] for one in asked)
    words = NAMES["metrics"].get(metric, metric) + ("" if filter_key == "none" else f" ({filter_key})")
    if len(tasks) > 1:
        words += f", {len(tasks)} tasks" + ("" if group.by_question else " weighing the same")
    scores = {stage.name: score_of(stage, group) for stage in stages}
    row = {"task_label": group.name, "tasks": tasks, "suite": group.suite, "metric": metric, "filter": filter_key}
    row |= {"metric_label": words + ("; only a part of the questions" if part else ""), "part": part}
    row |= {"task": tasks[0] if len(tasks) == 1 else group.name, "shots": shots.pop() if len(shots) == 1 else None}
    row["scale"] = max((score.scale for score in scores.values() if score), default=100)
    row["scores"] = {name: score and as_dict(score) for name, score in scores.items()}
    return row | {"comparisons": [compare(*pair, group) for pair in pairwise(stages)]}


def as_dict(score: Score) -> Row:
    """A score in report.json. `right`: how many samples are, where each is 0 or 1."""
    facts = {key: getattr(score, key) for key in (*BOUNDS, "interval", "n", "higher_is_better")}
    return facts | {"right": sum(score.outcomes.values()) if score.binary and score.outcomes else None}


def mark(pairs: list[Row], change: str) -> None:
    """Correct the p-values of a table or column by Holm, and mark what is better or worse by the sign of `change`."""
    tested = [pair for pair in pairs if "p" in pair]
    for pair, adjusted in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = adjusted
        if adjusted < ALPHA:
            pair["mark"] = "better" if pair[change] > 0 else "worse"


def _means(stages: list[Evaluation], groups: list[Group], rows: list[Row], apart: Collection[str]) -> dict[str, Any]:
    """Unweighted mean of the rows per stage, over those that every stage ran alike; every task counts once."""
    taken: list[Row] = []
    left_out = []
    for group, row in zip(groups, rows, strict=True):
        if row["suite"] == ALIGNMENT:
            continue
        reason = "DPO trains on such pairs" if group.name in apart else why_not_in_mean(stages, group, row)
        if reason is None and any({*row["tasks"]} & {*other["tasks"]} for other in taken):
            reason = "its tasks are in another row"
        if reason:
            left_out.append({"task": group.name, "reason": reason})
        else:
            taken.append(row)
    means = {stage.name: mean_of([row["scores"][stage.name] for row in taken]) for stage in stages if taken}
    part = [row["task_label"] for row in taken if row["part"]]
    return {"tasks": [row["task_label"] for row in taken], "left_out": left_out, "part": part, "stages": means}


def mean_of(scores: list[Row], value: str = "value") -> Row:
    bounds = mean_interval([(one[value], one["low"], one["high"]) for one in scores])
    return dict(zip(BOUNDS, bounds, strict=True))


def seed_table(name: str, seeds: list[Evaluation], groups: list[Group]) -> dict[str, Any]:
    """Rows of `groups` that the first seed measured, with the sample standard deviation (n - 1) over the seeds.
    `sampling`: the standard error from the questions, which all seeds share. `left_out`: seeds unlike the first."""
    rows = []
    for group in groups:
        if (first := score_of(seeds[0], group)) is None:
            continue
        reasons = {one.name: why_not(seeds[0], one, group) for one in seeds[1:]}
        values = [None if reasons.get(one.name) else score_of(one, group).value for one in seeds]
        alike = [value for value in values if value is not None]
        row = {"name": group.name, "scale": first.scale, "values": values, "mean": mean(alike), "n": len(alike)}
        row["deviation"] = stdev(alike) if len(alike) > 1 else None
        row["sampling"] = None if first.low is None else (first.high - first.low) / 2 / Z
        rows.append(row | {"left_out": [f"{seed}: {reason}" for seed, reason in reasons.items() if reason]})
    return {"stage": name, "folders": [str(one.folder) for one in seeds], "rows": rows}


def compare_with_paper(
    stages: list[Evaluation], groups: list[Group], table: Table, sizes: Collection[str], margin: float = 0.02
) -> Row:
    """A stage against the columns of `table` of our model's size, the first of which we reproduce; {"reason"} if none.

    The stage is the last; of a 70B or 405B the one named SFT, as the paper released these without DPO. `mean`: of the
    differences over the comparable rows that are in percent. `margin`: within which one counts as none, a share.
    """
    columns = {key: words for key, words in table.columns.items() if [key.partition("_")[2]] == [*sizes]}
    if not columns:
        return {"reason": "no run follows a recipe of the paper (give --size 8b, 70b or 405b)"}
    (size,) = sizes
    sft = [one for one in stages if one.name.lower() == "sft"]
    stage = sft[0] if sft and size != "8b" else stages[-1]
    first, by_name, rows = next(iter(columns)), {group.name: group for group in groups}, []
    doubts = {one.row: f"{one.printed:.2f} is printed: {one.why}" for one in table.misprints if one.column == first}
    for name, row in table.rows.items():
        group = row.as_printed(by_name[name], first) if name in by_name else None
        score = score_of(stage, group) if group else None
        reason = why_not_published(stage, group, score, row)
        if score and score.scale != row.scale:
            reason = f"measured in {'percent' if score.scale == 100 else 'points'}, published in another unit"
        note = "; ".join(filter(None, (row.note, doubts.get(name))))
        facts = {"name": name, "setting": row.setting, "scale": row.scale, "note": note}
        if group and group.protocol and (measured := [key[0] for key in stage.keys(group) if key[0] in stage.tasks]):
            facts["protocol"] = {"ours": str(stage.protocol(measured[0])), "paper": str(group.protocol)}
        published = {column: table.values(column)[name] / row.scale for column in columns}
        against = {column: _against(score, value, reason, margin) for column, value in published.items()}
        rows.append(facts | {"score": score and as_dict(score), "against": against})
    for column in columns:
        mark([row["against"][column] for row in rows], "difference")
    pairs = [row["against"][first] for row in rows if row["scale"] == 100 and "p" in row["against"][first]]
    mean = mean_of(pairs, "difference") if pairs else None
    mean = mean and mean | {"rows": len(pairs)} | equivalence(*mean.values(), margin)
    note = "The paper measured both of its 405B models in FP8." if size == "405b" else ""
    compared = {"stage": stage.name, "columns": columns, "rows": rows, "mean": mean, "margin": margin}
    return compared | {"size": size, "note": note}


def _against(score: Score | None, published: float, reason: str | None, margin: float) -> Row:
    """Our score minus a published one, which has no samples: it counts as an independent draw.
    A share is of as many questions as ours is worth, other scores have the spread of ours: marks err to "same"."""
    gap = {} if score is None else {"difference": score.value - published}
    if score is None or score.low is None or (reason and not reason.startswith(OTHERWISE)):
        return {"published": published, **gap, "mark": "not comparable", "reason": reason}
    half = (score.high - score.low) / 2
    theirs, p = (published - half, published + half), z_test(score.value - published, half / Z * 2**0.5)
    if n := score.effective_n:
        theirs, p = wilson(published * n, n), two_proportions(score.value, n, published, n)
    low, high = difference((score.value, score.low, score.high), (published, *theirs))
    pair = {"published": published, **gap, "low": low, "high": high}
    if reason:  # shown with its interval, and no part of the verdict
        return pair | {"mark": OTHERWISE, "reason": reason}
    return pair | {"p": p, "mark": "same"} | equivalence(score.value - published, low, high, margin)


def what_dpo_changed(scores: dict[str, Any], sizes: Collection[str]) -> list[Row]:
    """Table 4, the 8B's, beside the last step of ours: rows with our paired change and the paper's."""
    if [*sizes] != ["8b"] or len(scores["stages"]) < 2:
        return []
    ours = {row["task_label"]: row for row in scores["rows"]}
    rows = []
    for name, row in load("table4").rows.items():
        published = (row.values[1] - row.values[0]) / row.scale
        reason = row.unlike or why_not_change(ours.get(name)) or (None if name in ours else "not measured")
        pair = {"mark": "not comparable", "reason": reason} if reason else ours[name]["comparisons"][-1]
        rows.append({"name": name, "setting": row.setting, "scale": row.scale, "published": published, "ours": pair})
        if pair.get("low") is not None:
            rows[-1]["inside"] = pair["low"] <= published <= pair["high"]
    return rows
