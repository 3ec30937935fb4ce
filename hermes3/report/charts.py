"""The report's charts: scores, the difference from the paper, and the curves of training."""

from math import ceil, log
from pathlib import Path
from typing import Any

from hermes3.page.charts import INK, MUTED, SERIES, svg
from hermes3.page.shell import render
from hermes3.page.text import signed
from hermes3.report import names

INTERVALS = Path(__file__).with_name("intervals.html.jinja")
SHAPES = ("circle", "square", "diamond", "up")
LOOKS = {"same": ("muted", "circle"), "better": ("better", "up"), "worse": ("worse", "down")}
LOOKS |= {"not comparable": ("muted", "cross"), "under another protocol": ("muted", "diamond")}
PANELS = {"sft": ("loss", "loss", "learning_rate"), "preference": ("loss", "accuracy", "margin")}
MOST_POINTS = 1000  # of a curve: a panel is some 400 px wide


def scores_chart(rows: list[dict[str, Any]], stages: list[str]) -> str:
    """Every score in percent on one row, a mark and a 95 % interval per stage: SVG text."""
    rows = [row for row in rows if row["scale"] == 100]
    series = []
    for place, stage in enumerate(stages):
        offset = 0.22 * (place - (len(stages) - 1) / 2)
        scores = [(index + offset, row["scores"][stage]) for index, row in enumerate(rows) if row["scores"][stage]]
        marks = [(at, one["value"], one["low"], one["high"]) for at, one in scores]
        series.append((stage, f"series-{1 + place % len(SERIES)}", SHAPES[place % len(SHAPES)], marks))
    ticks = {tick: f"{tick}\u00a0%" for tick in range(0, 101, 20)}
    facts = {"labels": [row["task_label"] for row in rows], "series": series, "ticks": ticks, "low": 0, "high": 100}
    return render(INTERVALS, facts | {"stacked": True, "note": ""}, {}, {})


def paper_chart(paper: dict[str, Any]) -> str:
    """Our score minus the paper's, a row each with its 95 % interval where it can be compared: SVG text."""
    column, words = next(iter(paper["columns"].items()))
    rows = [row for row in paper["rows"] if row["scale"] == 100 and "difference" in row["against"][column]]
    series = {mark: (mark, *look, []) for mark, look in LOOKS.items()}
    for at, pair in enumerate(row["against"][column] for row in rows):
        series[pair["mark"]][3].append((at, pair["difference"], pair.get("low"), pair.get("high")))
    ends = [100 * abs(end) for *_, marks in series.values() for mark in marks for end in mark[1:] if end is not None]
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50) if step * 5 >= max(ends))
    reach = ceil(max(ends) / step)
    ticks = {step * place: signed(step * place / 100) if place else "0" for place in range(-reach, reach + 1)}
    facts = {"labels": [row["name"] for row in rows], "series": list(series.values()), "ticks": ticks}
    facts |= {"low": -reach * step, "high": reach * step, "stacked": False, "note": f"points above or below {words}"}
    return render(INTERVALS, facts, {}, {})


def training_chart(runs: list[dict[str, Any]]) -> str:
    """A row of panels per run: loss and learning rate, or loss, accuracy and margin."""

    def draw(figure: Any) -> None:
        layout = [[f"{place} {column}" for column in PANELS[run["kind"]]] for place, run in enumerate(runs)]
        for name, axes in figure.subplot_mosaic(layout, gridspec_kw={"hspace": 0.12}).items():
            place, column = int(name.split()[0]), name.split()[1]
            # the first stage is the base: a run has its stage's colour
            colour = MUTED if column == "learning_rate" else SERIES[(place + 1) % len(SERIES)]
            _panel(axes, runs[place], column, colour)

    return svg(draw, "training", height=2.2 * len(runs))


def _panel(axes: Any, run: dict[str, Any], column: str, colour: str) -> None:
    """One curve; on the loss, where DPO must begin and the losses on held-out rows."""
    points = run["points"][:: 1 + len(run["points"]) // MOST_POINTS]
    values = [float("nan") if point.get(column) is None else point[column] for point in points]
    # A single point draws no line, so a one-step run gets a mark.
    axes.plot([point["step"] for point in points], values, "o" if len(points) == 1 else "-", color=colour)
    axes.set_title(f"{run['name']} · {names('panels')[column]}")
    axes.set_xlabel("step", labelpad=2)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="x", integer=True, nbins=6)
    if column == "learning_rate":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    if column == "loss" and run["kind"] == "preference":
        axes.axhline(log(2), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate("ln 2", (0.98, log(2)), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
                      textcoords="offset points", ha="right")  # fmt: skip
    held_out = [(point["step"], point["loss"]) for point in run["evaluations"] if point["loss"] is not None]
    if column == "loss" and held_out:
        axes.plot(*zip(*held_out, strict=True), "o", color=INK, markersize=4, label="held-out loss")
        axes.legend(loc="upper right", frameon=False)
