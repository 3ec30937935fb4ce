"""Our scores beside the paper's tables: the difference, its interval, and the reason where there is none to give.

The paper prints a score and no samples. Both models answered the same questions, but without the paper's answers no
paired test is possible. So the published score is treated as an independent draw of as many questions as ours. Two
models mostly find the same questions hard, which makes the true interval narrower: the marks err towards "same".
"""

from pathlib import Path
from statistics import NormalDist
from typing import Any

from hermes3.files import UserError
from hermes3.report.stages import as_dict, mark, mean_row
from hermes3.results.comparable import why_not_change, why_not_published
from hermes3.results.groups import Group, score_of
from hermes3.results.lm_eval import Evaluation, Score
from hermes3.results.published import Table, load
from hermes3.stats import Z, difference, effective_n, two_proportions, wilson, z_test

SIZES = ("8b", "70b", "405b")
OTHERWISE = "under another protocol"
Z_90, Z_80 = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.8)
NOTES = {"405b": "The paper measured both of its 405B models in FP8."}


def compare_with_paper(
    stages: list[Evaluation], groups: list[Group], size: str | None, recipes: dict[str, Path | None]
) -> dict[str, Any]:
    """A stage against Table 5's Hermes 3 and Llama 3.1 Instruct of `size`, or {"reason"} why there is none to compare.

    The stage is the last; of a 70B or 405B the one named SFT, as the paper released these without DPO, the 8B with it.
    """
    size = size or size_of(recipes)
    if size is None:
        return {"reason": "no run follows a recipe of the paper (give --size 8b, 70b or 405b)"}
    if size not in SIZES:
        raise UserError(f"--size {size}: the paper has {', '.join(SIZES)}")
    before_dpo = [stage for stage in stages if size != "8b" and stage.name.lower() == "sft"]
    compared = [*before_dpo, stages[-1]][0], groups, load("table5"), [f"hermes3_{size}", f"llama31_{size}"]
    return {"size": size, "note": NOTES.get(size, "")} | compare_with_table(*compared)


def size_of(recipes: dict[str, Path | None]) -> str | None:
    """The size of the paper's model that all runs' recipes are for, by their files' names; None for any other."""
    sizes = {path.stem.partition("_")[0] for path in recipes.values() if path is not None}
    return sizes.pop() if len(sizes) == 1 and sizes <= set(SIZES) else None


def compare_with_table(
    stage: Evaluation, groups: list[Group], table: Table, columns: list[str], margin: float = 0.02
) -> dict[str, Any]:
    """`stage` against `columns` of `table`, the first of which is what we reproduce; each is corrected by Holm.

    `mean` holds the mean of the differences over the comparable rows of the first column that are in percent, with its
    interval. `margin`: within which a difference counts as none, a share.
    """
    by_name = {group.name: group for group in groups}
    doubted = [one for one in table.misprints if one.column == columns[0]]
    doubts = {one.row: f"{one.printed:.2f} is printed: {one.why}" for one in doubted}
    rows = []
    for name, row in table.rows.items():
        group = by_name.get(name)
        score = score_of(stage, group) if group else None
        reason = why_not_published(stage, group, score, row)
        against = {
            column: _against(score, table.values(column)[name] / row.scale, reason, margin) for column in columns
        }
        note = "; ".join(filter(None, (row.note, doubts.get(name))))
        facts = {"name": name, "setting": row.setting, "scale": row.scale, "note": note}
        rows.append(facts | {"score": as_dict(score), "against": against})
    for column in columns:
        mark([row["against"][column] for row in rows], "difference")
    pairs = [row["against"][columns[0]] for row in rows if row["scale"] == 100 and "p" in row["against"][columns[0]]]
    mean = mean_row(pairs, "difference") | {"rows": len(pairs)} if pairs else None
    mean = mean and mean | equivalence(*(mean[key] for key in ("value", "low", "high")), margin)
    words = {column: table.columns[column] for column in columns}
    return {"stage": stage.name, "columns": words, "rows": rows, "mean": mean, "margin": margin}


def equivalence(gap: float, low: float, high: float, margin: float) -> dict[str, Any]:
    """`equal`: whether a difference with its 95 % interval lies within ± `margin`; `detectable`: what would be seen.

    Two one-sided tests at 5 % (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987), which is a 90 % interval
    inside the margin. A difference of `detectable` is found by the two-sided test with a probability of 80 %.
    """
    stderr = (high - low) / 2 / Z
    return {"equal": abs(gap) + Z_90 * stderr < margin, "detectable": (Z + Z_80) * stderr}


def _against(score: Score | None, published: float, reason: str | None, margin: float) -> dict[str, Any]:
    gap = {} if score is None else {"difference": score.value - published}
    if score is None or score.low is None or (reason and not reason.startswith(OTHERWISE)):
        return {"published": published, **gap, "mark": "not comparable", "reason": reason}
    ours, theirs, p = _test(score, published)
    low, high = difference(ours, theirs)
    pair = {"published": published, **gap, "low": low, "high": high}
    if reason:  # shown with its interval, and no part of the verdict
        return pair | {"mark": OTHERWISE, "reason": reason.removeprefix(OTHERWISE).lstrip(": ")}
    return pair | {"p": p, "mark": "same"} | equivalence(score.value - published, low, high, margin)


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


def what_dpo_changed(scores: dict[str, Any], size: str | None) -> list[dict[str, Any]]:
    """Table 4 beside the step from the last stage but one to the last: rows with our paired change and the paper's.

    Empty for another size than 8b, the only one that Table 4 has, and for a single stage.
    """
    if size != "8b" or len(scores["stages"]) < 2:
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
