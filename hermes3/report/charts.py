"""The report's charts: scores, the difference from the paper, and the curves of training."""

from math import log
from typing import TYPE_CHECKING, Any

from hermes3.page.charts import BETTER, INK, MUTED, SERIES, WORSE, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "D", "^")
MOST_POINTS = 1000  # of a curve: a panel is some 400 px wide
PANELS = {
    "loss": "training loss",
    "learning_rate": "learning rate",
    "accuracy": "chosen preferred, share of pairs",
    "margin": "reward margin",
}


def scores_chart(rows: list[dict[str, Any]], stages: list[str]) -> str:
    """Every score in percent on one row, a mark and a 95 % interval per stage: SVG text."""
    rows = [row for row in rows if row["scale"] == 100]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for place, stage in enumerate(stages):
            offset = 0.22 * (place - (len(stages) - 1) / 2)
            scores = [(index + offset, row["scores"][stage]) for index, row in enumerate(rows) if row["scores"][stage]]
            marks = [(at, one["value"], one["low"], one["high"]) for at, one in scores]
            _marks(axes, marks, SERIES[place % len(SERIES)], stage, MARKERS[place % len(MARKERS)])
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 20), [f"{tick}\u00a0%" for tick in range(0, 101, 20)])
        _names(axes, [row["task_label"] for row in rows])

    return svg(draw, "scores", height=0.7 + (0.24 + 0.06 * len(stages)) * len(rows))


def paper_chart(paper: dict[str, Any]) -> str:
    """Our score minus the paper's, a row each with its 95 % interval where it can be compared: SVG text."""
    column = next(iter(paper["columns"]))
    rows = [row for row in paper["rows"] if row["scale"] == 100 and "difference" in row["against"][column]]
    looks = {"same": (MUTED, "o"), "better": (BETTER, "^"), "worse": (WORSE, "v"), "not comparable": (MUTED, "x")}

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1)
        for mark, (colour, marker) in looks.items():
            pairs = [(at, row["against"][column]) for at, row in enumerate(rows)]
            marks = [(at, p["difference"], p.get("low"), p.get("high")) for at, p in pairs if p["mark"] == mark]
            if marks:
                _marks(axes, marks, colour, mark, marker)
        widest = max([abs(side) for side in axes.get_xlim()], default=1)
        axes.set_xlim(-widest, widest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        axes.set_xlabel(f"points above or below {paper['columns'][column]}", labelpad=4)
        _names(axes, [row["name"] for row in rows])

    return svg(draw, "paper", height=0.9 + 0.25 * len(rows))


def _marks(axes: "Axes", marks: list[tuple], colour: str, label: str, marker: str) -> None:
    """(row, value, low, high) in fractions as marks in percent, with lines between the bounds that there are."""
    for at, _, low, high in marks:
        if low is not None:
            axes.plot([100 * low, 100 * high], [at, at], color=colour, clip_on=False)
    values, heights = [100 * value for _, value, _, _ in marks], [at for at, *_ in marks]
    axes.plot(values, heights, marker, color=colour, markersize=5, label=label, clip_on=False)


def _names(axes: "Axes", labels: list[str]) -> None:
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.grid(axis="y", visible=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, handletextpad=0)


def training_chart(runs: list[dict[str, Any]]) -> str:
    """A row of panels per run: loss and learning rate, or loss, accuracy and margin."""

    def draw(figure: "Figure") -> None:
        grid = figure.add_gridspec(len(runs), 12, hspace=0.12)
        for place, run in enumerate(runs):
            colour = SERIES[(place + 1) % len(SERIES)]  # the first stage is the base: a run has its stage's
            pairs = run["kind"] == "preference"
            widths = {"loss": 4, "accuracy": 4, "margin": 4} if pairs else {"loss": 8, "learning_rate": 4}
            start = 0
            for column, width in widths.items():
                axes = figure.add_subplot(grid[place, start : start + width])
                start += width
                _line(axes, run, column, MUTED if column == "learning_rate" else colour)
                if column == "loss":
                    _loss_marks(axes, run)
                elif column == "learning_rate":
                    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")

    return svg(draw, "training", height=2.2 * len(runs))


def _loss_marks(axes: "Axes", run: dict[str, Any]) -> None:
    """Where DPO must begin, and the losses on held-out rows."""
    if run["kind"] == "preference":
        axes.axhline(log(2), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate("ln 2", (0.98, log(2)), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
                      textcoords="offset points", ha="right")  # fmt: skip
    if run["evaluations"]:
        points = [(point["step"], point["loss"]) for point in run["evaluations"] if point["loss"] is not None]
        axes.plot(*zip(*points, strict=True), "o", color=INK, markersize=4, label="held-out loss")
        axes.legend(loc="upper right", frameon=False)


def _line(axes: "Axes", run: dict[str, Any], column: str, colour: str) -> None:
    points = run["points"][:: 1 + len(run["points"]) // MOST_POINTS]
    values = [float("nan") if point.get(column) is None else point[column] for point in points]
    # A single point draws no line, so a one-step run gets a mark.
    axes.plot([point["step"] for point in points], values, "o" if len(points) == 1 else "-", color=colour)
    axes.set_title(f"{run['name']} · {PANELS[column]}")
    axes.set_xlabel("step", labelpad=2)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="x", integer=True, nbins=6)
