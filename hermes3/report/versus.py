"""Our scores beside a published table: the difference, its interval, and the reason where there is none to give.

The paper prints a score and no samples. Both models answered the same questions, but without the paper's answers no
paired test is possible. So the published score is treated as an independent draw of as many questions as ours. Two
models mostly find the same questions hard, which makes the true interval narrower: the marks err towards "same".
"""

from dataclasses import dataclass
from typing import Any

from hermes3.report.groups import Group, keys_in, member, score_of
from hermes3.report.results import Score, Stage
from hermes3.report.scores import ALPHA
from hermes3.stats import Z, difference, effective_n, holm, mean_interval, two_proportions, wilson, z_test


@dataclass(frozen=True)
class Published:
    """One row of a published table. `values`: column -> score, on the table's scale: 100, or 1 for MT-Bench's points.

    `shots`, `questions`: the paper's, None where it does not say; `note`: what a reader must know, as a misprint.
    `unlike`: why no measurement of ours can be compared with it, None where one can.
    """

    name: str
    setting: str
    values: dict[str, float | None]
    scale: float = 100
    shots: int | None = None
    questions: int | None = None
    note: str = ""
    unlike: str | None = None


def versus(stage: Stage, groups: list[Group], published: list[Published], columns: dict[str, str]) -> dict[str, Any]:
    """The table: `stage` against every column of `published`. `columns`: key -> words, the first is what we reproduce.

    Each column's tests are corrected by Holm. `mean` holds the mean of the differences over the comparable rows of the
    first column that are in percent, with its interval.
    """
    by_name = {group.name: group for group in groups}
    rows = [_row(stage, by_name.get(row.name), row, list(columns)) for row in published]
    for column in columns:
        tested = [row["against"][column] for row in rows if "p" in row["against"][column]]
        for pair, adjusted in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
            pair["p_holm"] = adjusted
            if adjusted < ALPHA:
                pair["mark"] = "better" if pair["difference"] > 0 else "worse"
    return {"stage": stage.name, "columns": columns, "rows": rows, "mean": _mean(rows, next(iter(columns)))}


def _row(stage: Stage, group: Group | None, row: Published, columns: list[str]) -> dict[str, Any]:
    score = score_of(stage, group) if group else None
    ours = None if score is None else {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
    reason = why_not(stage, group, score, row)
    found = {"name": row.name, "setting": row.setting, "scale": row.scale, "note": row.note, "score": ours}
    return found | {"against": {column: _against(score, row, column, reason) for column in columns}}


def why_not(stage: Stage, group: Group | None, score: Score | None, row: Published) -> str | None:
    """Why the stage's score cannot be compared with the published one, in words; None where it can."""
    if group is None:
        return "not measured"
    keys = keys_in(stage, group)
    lacking = [key[0] for key in keys if member(stage, key) is None]
    for task in lacking:
        if (other := stage.tasks.get(task.rpartition(" (")[0])) is not None:
            return f"measured with {other['n_shot']} shots, published with {row.shots}"
    if len(lacking) == len(keys):
        return "not measured"
    if lacking:
        return f"{len(lacking)} of {len(keys)} tasks not measured: {', '.join(lacking[:3])}"
    if row.unlike:
        return row.unlike
    facts = [stage.tasks[key[0]] for key in keys]
    if judge := next((fact["judge"] for fact in facts if "judge" in fact), None):
        return f"judged by {judge} in a wording of our own; the published score is by another judge or wording"
    shots = sorted({fact["n_shot"] for fact in facts})
    if row.shots is not None and shots != [row.shots]:
        return f"measured with {' and '.join(map(str, shots))} shots, published with {row.shots}"
    asked, questions = sum(fact["samples"] for fact in facts), sum(fact["questions"] for fact in facts)
    if asked != questions:
        return f"only {asked} of {questions} questions (--limit)"
    if row.questions is not None and asked != row.questions:
        return f"{asked} questions, published over {row.questions}"
    if score is None or score.low is None:
        return "no interval: the harness gave no standard error and no samples that average to the score"
    if score.low == score.high:
        return "no interval: every sample scored the same"
    return None


def _against(score: Score | None, row: Published, column: str, reason: str | None) -> dict[str, Any]:
    value = row.values.get(column)
    if value is None:
        return {"published": None, "mark": "not comparable", "reason": "not published"}
    pair: dict[str, Any] = {"published": value / row.scale}
    if reason:
        if score is not None:
            pair["difference"] = score.value - value / row.scale
        return pair | {"mark": "not comparable", "reason": reason}
    ours, theirs, p = _test(score, value / row.scale)
    low, high = difference(ours, theirs)
    return pair | {"difference": ours[0] - theirs[0], "low": low, "high": high, "p": p, "mark": "same"}


def _test(score: Score, value: float) -> tuple[tuple[float, float, float], tuple[float, float, float], float]:
    """Our (value, low, high), the published one's, and the p-value of no difference.

    A share has as many questions as ours, or as many as our group's interval is worth; a score that is no share has the
    spread of ours.
    """
    ours = (score.value, score.low, score.high)
    if score.interval == "wilson" or (score.interval == "mover" and score.value <= 1):
        n = float(score.n) if score.interval == "wilson" else effective_n(*ours)
        return ours, (value, *wilson(value * n, n)), two_proportions(score.value, n, value, n)
    half = (score.high - score.low) / 2
    return ours, (value, value - half, value + half), z_test(score.value - value, half / Z * 2**0.5)


def _mean(rows: list[dict[str, Any]], column: str) -> dict[str, float] | None:
    pairs = [row["against"][column] for row in rows if row["scale"] == 100 and "p" in row["against"][column]]
    if not pairs:
        return None
    mean, low, high = mean_interval([(pair["difference"], pair["low"], pair["high"]) for pair in pairs])
    return {"value": mean, "low": low, "high": high, "rows": len(pairs)}
