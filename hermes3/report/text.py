"""Numbers as text, one way for every page, and the sentences that are drawn from them."""

from typing import Any

from hermes3.report.curves import LN2

# NeMo-RL's recipe test holds ln 2 to 1e-4; log-probabilities in bf16 lose a digit of that.
FIRST_LOSS_TOLERANCE = 1e-3


def percent(value: float) -> str:
    """0.6104 -> `61.0 %`."""
    return f"{100 * value:.1f}\u00a0%"


def interval(score: dict[str, Any]) -> str:
    """Bounds of a score's 95 % interval: `54.1 – 67.5`, or a dash where there is none."""
    return "–" if score["low"] is None else f"{100 * score['low']:.1f}\u2009–\u2009{100 * score['high']:.1f}"


def signed(value: float) -> str:
    """A change in percentage points: 0.123 -> `+12.3`."""
    return f"{100 * value:+.1f}".replace("-", "−")


def p_value(value: float) -> str:
    """`p = 0.041` or `p < 0.001`."""
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def count(value: float) -> str:
    """12345 -> `12,345`."""
    return f"{value:,}"


def number(value: float | None) -> str:
    """Four significant digits, or a dash for a missing value."""
    return "–" if value is None else f"{value:.4g}"


FILTERS = {f.__name__: f for f in (percent, interval, signed, p_value, count, number)}


def verdict(scores: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    """What the numbers say, in sentences: means, each stage against the one before, preferences, the first DPO loss."""
    sentences = [_means(scores)]
    sentences += [_step(scores, place) for place in range(len(scores["stages"]) - 1)]
    sentences += [_preference(row) for row in scores["rows"] if "preference" in row["task"] and row["headline"]]
    sentences += [_first_loss(run) for run in runs if run["kind"] == "preference"]
    sentences += [
        f"{run['name']} logged {run['not_finite']} losses that are not finite: do not use this run."
        for run in runs
        if run["not_finite"]
    ]
    return [sentence for sentence in sentences if sentence]


def summary(scores: dict[str, Any]) -> str:
    """The mean score of each stage, a line each, for the terminal (plain spaces)."""
    means = scores["means"]
    width = max(map(len, means["stages"]), default=0)
    lines = [
        f"{name:<{width}}  {percent(score['value'])} ({interval(score)})".replace("\u00a0", " ").replace("\u2009", "")
        for name, score in means["stages"].items()
    ]
    head = (
        f"Mean of {', '.join(means['tasks'])}, with 95 % intervals:"
        if lines
        else "No task was measured at every stage."
    )
    return "\n".join([head, *lines]) + "\n"


def _means(scores: dict[str, Any]) -> str:
    means = scores["means"]
    left_out = "; ".join(f"{task['task']}: {task['reason']}" for task in means["left_out"])
    aside = f" Left out of the mean: {left_out}." if left_out else ""
    if not means["stages"]:
        return f"No mean is given: no task was measured alike at every stage.{aside}"
    tasks = len(means["tasks"])
    shown = ", ".join(f"{name} {percent(m['value'])} ({interval(m)})" for name, m in means["stages"].items())
    return f"Mean over {tasks} {'task' if tasks == 1 else 'tasks'}, one metric each: {shown}.{aside}"


def _step(scores: dict[str, Any], place: int) -> str:
    """One sentence or two on what changed from the stage at `place` to the next."""
    pairs = [(row, row["comparisons"][place]) for row in scores["rows"]]
    before, after = scores["stages"][place : place + 2]
    groups = {
        "raised {}, with disjoint 95\u00a0% intervals": lambda pair: pair.get("disjoint") and pair["gain"] > 0,
        "raised {} by the paired test, though intervals overlap": lambda pair: pair["mark"] == "better",
        "lowered {}, with disjoint 95\u00a0% intervals": lambda pair: pair.get("disjoint") and pair["gain"] < 0,
        "lowered {} by the paired test, though intervals overlap": lambda pair: pair["mark"] == "worse",
        "left {} without a clear difference": lambda pair: pair["mark"] in ("no clear difference", "not tested"),
    }
    clauses = []
    for words, belongs in groups.items():
        named = [row for row, pair in pairs if belongs(pair)]
        pairs = [(row, pair) for row, pair in pairs if not belongs(pair)]
        if named:
            clauses.append(words.format(_names(named)))
    sentence = f"Against {before}, {after} {'; it '.join(clauses)}." if clauses else ""
    reasons = [f"{_name(row)} ({pair['reason']})" for row, pair in pairs]
    if reasons:
        sentence += f" Not comparable between {before} and {after}: {_join(reasons)}."
    return sentence.strip()


def _preference(row: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {percent(score['value'])}" for name, score in row["scores"].items() if score)
    last = row["comparisons"][-1] if row["comparisons"] else None
    if last is None:
        return f"Preference accuracy: {values}."
    if "p_holm" not in last:
        return f"Preference accuracy: {values}; the last step is {last['mark']} ({last['reason']})."
    return (
        f"Preference accuracy: {values}; {last['before']} to {last['after']} is {signed(last['change'])} points, "
        f"{last['mark']} ({p_value(last['p_holm'])} after Holm)."
    )


def _first_loss(run: dict[str, Any]) -> str:
    loss, step = run["first_loss"], run["first_step"]
    if loss is None:
        return ""
    found = f"{run['name']}'s first loss, at step {step}, is {loss:.4f}; ln 2 is {LN2:.4f}"
    if abs(loss - LN2) <= FIRST_LOSS_TOLERANCE:
        return f"{found}: the policy starts as its own reference, as it must."
    if step > 1:
        return f"{found}; the entry averages {step} steps, so the start itself was not logged."
    return (
        f"{found}: {abs(loss - LN2):.4f} apart. Dropout and NEFTune noise move the policy a little before the first "
        "update; a wide gap means that the reference is another model."
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['task_label']} ({row['metric_label']})"


def _names(rows: list[dict[str, Any]]) -> str:
    """Rows by task: `Tool call (valid form, exact match) and Preference (accuracy)`."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        tasks.setdefault(row["task_label"], []).append(row["metric_label"])
    return _join([f"{task} ({', '.join(metrics)})" for task, metrics in tasks.items()])


def _join(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def scores_caption(scores: dict[str, Any]) -> str:
    """One line under the scores chart: the widest move from the first stage to the last."""
    first, last = scores["stages"][0], scores["stages"][-1]
    legend = "Marks are scores, lines their 95\u00a0% intervals."
    moves = [
        (abs(row["scores"][last]["value"] - row["scores"][first]["value"]), row)
        for row in scores["rows"]
        if row["scores"][first] and row["scores"][last]
    ]
    if first == last or not moves:
        return legend
    row = max(moves, key=lambda move: move[0])[1]
    values = [percent(row["scores"][stage]["value"]) for stage in (first, last)]
    return f"{legend} The widest move: {_name(row)}, {values[0]} on {first} and {values[1]} on {last}."


def training_caption(runs: list[dict[str, Any]]) -> str:
    """One line under the training curves: where each run's loss began and ended."""
    return " ".join(
        f"{run['name']}: loss {number(run['first_loss'])} to {number(run['last_loss'])} in {count(run['steps'])} steps."
        for run in runs
    )


def mix_caption(mix: dict[str, Any]) -> str:
    """One line under a mix chart: the category that is furthest from the paper's share."""
    compared = [row for row in mix["categories"] if row["paper_share"] is not None]
    row = max(compared, key=lambda row: abs(row["share"] - row["paper_share"]))
    return (
        "Bars are shares of this mix's tokens, upright ticks the paper's Table 1. Furthest apart: "
        f"{row['label']}, {percent(row['share'])} here and {percent(row['paper_share'])} there."
    )
