"""The report's charts: scores, the difference from the paper, and the curves of training."""

from collections.abc import Callable
from math import log
from typing import Any

from hermes3.page.charts import BETTER, INK, MUTED, SERIES, WORSE, svg
from hermes3.report import names

MARKERS = ("o", "s", "D", "^")
LOOKS = {"same": (MUTED, "o"), "better": (BETTER, "^"), "worse": (WORSE, "v"), "not comparable": (MUTED, "x")}
LOOKS["under another protocol"] = (MUTED, "d")
PANELS = {"sft": ("loss", "loss", "learning_rate"), "preference": ("loss", "accuracy", "margin")}
MOST_POINTS = 1000  # of a curve: a panel is some 400 px wide


def scores_chart(rows: list[dict[str, Any]], stages: list[str]) -> str:
    """Every score in percent on one row, a mark and a 95 % interval per stage: SVG text."""
    rows = [row for row in rows if row["scale"] == 100]
    series = {}
    for place, stage in enumerate(stages):
        offset = 0.22 * (place - (len(stages) - 1) / 2)
        scores = [(index + offset, row["scores"][stage]) for index, row in enumerate(rows) if row["scores"][stage]]
        marks = [(at, one["value"], one["low"], one["high"]) for at, one in scores]
        series[stage] = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)], marks

    def frame(axes: Any) -> None:
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 20), [f"{tick}\u00a0%" for tick in range(0, 101, 20)])

    height = 0.7 + (0.24 + 0.06 * len(stages)) * len(rows)
    return _intervals("scores", [row["task_label"] for row in rows], series, frame, height)


def paper_chart(paper: dict[str, Any]) -> str:
    """Our score minus the paper's, a row each with its 95 % interval where it can be compared: SVG text."""
    column, words = next(iter(paper["columns"].items()))
    rows = [row for row in paper["rows"] if row["scale"] == 100 and "difference" in row["against"][column]]
    series = {mark: (*look, []) for mark, look in LOOKS.items()}
    for at, pair in enumerate(row["against"][column] for row in rows):
        series[pair["mark"]][2].append((at, pair["difference"], pair.get("low"), pair.get("high")))

    def frame(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        widest = max(map(abs, axes.get_xlim()))
        axes.set_xlim(-widest, widest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        axes.set_xlabel(f"points above or below {words}", labelpad=4)

    return _intervals("paper", [row["name"] for row in rows], series, frame, 0.9 + 0.25 * len(rows))


def _intervals(name: str, labels: list[str], series: dict[str, tuple], frame: Callable, height: float) -> str:
    """`series`: label -> colour, marker, [(row, value, low, high)] in fractions; a line where there are bounds."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, (colour, marker, marks) in series.items():
            for at, _, low, high in marks:
                if low is not None:
                    axes.plot([100 * low, 100 * high], [at, at], color=colour, clip_on=False)
            if marks:
                values, heights = [100 * value for _, value, _, _ in marks], [at for at, *_ in marks]
                axes.plot(values, heights, marker, color=colour, markersize=5, label=label, clip_on=False)
        frame(axes)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks(range(len(labels)), labels, color=INK)
        axes.grid(axis="y", visible=False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, handletextpad=0)

    return svg(draw, name, height)


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
