"""The scores table: every metric of every stage, stages compared pairwise on the same documents, and their means."""

from typing import Any

from hermes3.report.results import Score, ScoreKey, Stage
from hermes3.report.stats import holm, mcnemar, mean_interval

ALPHA = 0.05

TASK_LABELS = {
    "tiny_choice": "Multiple choice",
    "tiny_tool_call": "Tool call",
    "tiny_json_mode": "JSON mode",
    "tiny_preference": "Preference",
    "tiny_end_of_turn": "End of turn",
}
METRIC_LABELS = {
    "acc": "accuracy",
    "acc_norm": "length-normalised accuracy",
    "valid": "valid form",
    "exact": "exact match",
    "exact_match": "exact match",
    "ended": "answers that end within the limit",
}
# The metric that stands for a task in the mean: the strictest one that it has.
HEADLINE = ("exact_match", "acc", "valid", "exact", "acc_norm")
NOT_QUALITY = {"ended": "it says that an answer stops, not that it is right"}


def score_table(stages: list[Stage]) -> dict[str, Any]:
    """Rows of all scores, with Holm-corrected comparisons of consecutive stages, and the headline mean per stage.

    A pair is compared only where both stages saw the same documents under the same task version and number of shots;
    otherwise the comparison says why not, and the task is left out of the means.
    """
    keys = list(dict.fromkeys(key for stage in stages for key in stage.scores))
    headline = {task: _headline([key for key in keys if key[0] == task]) for task, _, _ in keys}
    rows = []
    for key in keys:
        task, metric, filter_key = key
        label = METRIC_LABELS.get(metric, metric) + ("" if filter_key == "none" else f" ({filter_key})")
        rows.append(
            {
                "task": task,
                "metric": metric,
                "filter": filter_key,
                "task_label": TASK_LABELS.get(task, task),
                "metric_label": label,
                "headline": headline[task] == key and metric not in NOT_QUALITY,
                "scores": {stage.name: _as_dict(stage.scores.get(key)) for stage in stages},
                "comparisons": [
                    _compare(before, after, key) for before, after in zip(stages, stages[1:], strict=False)
                ],
            }
        )
    tested = [pair for row in rows for pair in row["comparisons"] if "p" in pair]
    for pair, adjusted in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = adjusted
        if adjusted < ALPHA:
            pair["mark"] = "better" if pair["gain"] > 0 else "worse"
    return {"stages": [stage.name for stage in stages], "rows": rows, "means": _means(stages, headline)}


def _headline(keys: list[ScoreKey]) -> ScoreKey:
    return min(keys, key=lambda key: HEADLINE.index(key[1]) if key[1] in HEADLINE else len(HEADLINE))


def _as_dict(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    right = None if score.outcomes is None else sum(score.outcomes.values())
    interval = {"low": score.low, "high": score.high, "interval": score.interval}
    return {"value": score.value, **interval, "n": score.n, "right": right, "higher_is_better": score.higher_is_better}


def _difference(before: Stage, after: Stage, key: ScoreKey) -> str | None:
    """Why the scores under `key` of two stages cannot be compared, in words; None where they can."""
    task = key[0]
    for stage in (before, after):
        if key not in stage.scores:
            return f"not measured on {stage.name}"
    counts = [len(stage.docs[task]) for stage in (before, after)]
    if counts[0] != counts[1]:
        return f"{counts[0]} samples on {before.name}, {counts[1]} on {after.name}"
    ours, theirs = before.docs[task], after.docs[task]
    differing = sum(doc_hash != theirs.get(doc_id) for doc_id, doc_hash in ours.items())
    if differing:
        return f"{differing} of {counts[0]} documents differ"
    for fact, words in (("version", "task versions"), ("n_shot", "numbers of shots")):
        if before.tasks[task][fact] != after.tasks[task][fact]:
            return f"{words} {before.tasks[task][fact]} and {after.tasks[task][fact]}"
    return None


def _compare(before: Stage, after: Stage, key: ScoreKey) -> dict[str, Any]:
    pair: dict[str, Any] = {"before": before.name, "after": after.name}
    if reason := _difference(before, after, key):
        return pair | {"mark": "not comparable", "reason": reason}
    old, new = before.scores[key], after.scores[key]
    gain = (new.value - old.value) * (1 if new.higher_is_better else -1)
    pair |= {"change": new.value - old.value, "gain": gain, "disjoint": _disjoint(old, new)}
    if old.outcomes is None or new.outcomes is None:
        return pair | {"mark": "not tested", "reason": "samples are not 0 or 1"}
    changes = [new.outcomes[doc] - outcome for doc, outcome in old.outcomes.items()]
    gained, lost = changes.count(1), changes.count(-1)
    return pair | {"mark": "no clear difference", "gained": gained, "lost": lost, "p": mcnemar(gained, lost)}


def _disjoint(old: Score, new: Score) -> bool:
    if old.low is None or new.low is None:
        return False
    return old.high < new.low or new.high < old.low


def _means(stages: list[Stage], headline: dict[str, ScoreKey]) -> dict[str, Any]:
    """Unweighted mean of the headline metrics per stage, over the tasks that every stage ran on the same documents."""
    tasks, left_out = [], []
    for task, key in headline.items():
        reasons = [reason for stage in stages[1:] if (reason := _difference(stages[0], stage, key))]
        scores = [stage.scores[key] for stage in stages if key in stage.scores]
        if not reasons and any(score.low is None for score in scores):
            reasons = ["no interval"]
        if not reasons and not scores[0].higher_is_better:
            reasons = ["lower is better"]
        if not reasons and key[1] in NOT_QUALITY:
            reasons = [NOT_QUALITY[key[1]]]
        label = TASK_LABELS.get(task, task)
        if reasons:
            left_out.append({"task": label, "reason": reasons[0]})
        else:
            tasks.append(task)
    means = {}
    for stage in stages if tasks else []:
        scores = [stage.scores[headline[task]] for task in tasks]
        mean, low, high = mean_interval([(score.value, score.low, score.high) for score in scores])
        means[stage.name] = {"value": mean, "low": low, "high": high}
    return {"tasks": [TASK_LABELS.get(task, task) for task in tasks], "left_out": left_out, "stages": means}
