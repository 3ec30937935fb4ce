"""Numbers as text, one way for every page, and the sentences that are drawn from them."""

from typing import Any

ALIGNMENT = "alignment"  # the suite whose rows are a section of their own


def percent(value: float) -> str:
    """0.6104 -> `61.0 %`."""
    return f"{100 * value:.1f}\u00a0%"


def shown(score: dict[str, Any], scale: float = 100) -> str:
    """A score's value: 0.6104 -> `61.0 %`; on MT-Bench's scale, which is 1, 8.27 -> `8.27`."""
    return percent(score["value"]) if scale == 100 else f"{score['value']:.2f}"


def interval(score: dict[str, Any], scale: float = 100) -> str:
    """Bounds of a score's 95 % interval: `54.1 – 67.5`, or a dash where there is none."""
    if score["low"] is None:
        return "–"
    digits = 1 if scale == 100 else 2
    low, high = (f"{scale * score[side]:.{digits}f}".replace("-", "−") for side in ("low", "high"))
    return f"{low}\u2009–\u2009{high}"


def signed(value: float, scale: float = 100) -> str:
    """A change in percentage points, or on a scale of 1: 0.123 -> `+12.3`, or `+0.12`."""
    return f"{scale * value:+.{1 if scale == 100 else 2}f}".replace("-", "−")


def p_value(value: float) -> str:
    """`p = 0.041` or `p < 0.001`."""
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def count(value: float) -> str:
    """12345 -> `12,345`."""
    return f"{value:,}"


def number(value: float | None) -> str:
    """Four significant digits, or a dash for a missing value."""
    return "–" if value is None else f"{value:.4g}"


def fixed(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def join(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


FILTERS = {f.__name__: f for f in (percent, shown, interval, signed, p_value, count, number, fixed)}


def summary(report: dict[str, Any]) -> str:
    """The answer, if there is a paper to compare with, and the mean score of each stage, for the terminal."""
    answer = report["verdict"][0] + "\n" if "rows" in report["paper"] else ""
    means = report["scores"]["means"]
    width = max(map(len, means["stages"]), default=0)
    lines = [f"{name:<{width}}  {percent(one['value'])} ({interval(one)})" for name, one in means["stages"].items()]
    head = (
        f"Mean of {', '.join(means['tasks'])}, with 95 % intervals:"
        if lines
        else "No task was measured at every stage."
    )
    return "\n".join([answer + head, *lines]).replace("\u00a0", " ").replace("\u2009", "") + "\n"


def scores_caption(scores: dict[str, Any]) -> str:
    """One line under the scores chart: the widest move from the first stage to the last."""
    first, last = scores["stages"][0], scores["stages"][-1]
    legend = "Marks are scores, lines their 95\u00a0% intervals."
    moves = [
        (abs(row["scores"][last]["value"] - row["scores"][first]["value"]), row)
        for row in scores["rows"]
        if row["scores"][first] and row["scores"][last] and row["scale"] == 100 and row["suite"] != ALIGNMENT
    ]
    if first == last or not moves:
        return legend
    row = max(moves, key=lambda move: move[0])[1]
    values = [percent(row["scores"][stage]["value"]) for stage in (first, last)]
    return f"{legend} The widest move: {row['task_label']}, {values[0]} on {first} and {values[1]} on {last}."


def paper_caption(paper: dict[str, Any]) -> str:
    """One line under the chart against the paper; empty where there is nothing to draw."""
    column, words = next(iter(paper["columns"].items()))
    pairs = [row["against"][column] for row in paper["rows"] if row["scale"] == 100]
    drawn = [pair for pair in pairs if "difference" in pair]
    if not drawn:
        return ""
    hollow = "" if all("p" in pair for pair in drawn) else " Hollow marks have no interval: the table says why."
    return f"{paper['stage']} minus {words}, in points, with 95\u00a0% intervals; the line at 0 is the paper.{hollow}"


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
