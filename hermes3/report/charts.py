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
    "learning_rate": "learning rate",
    "accuracy": "chosen preferred, share of pairs",
    "margin": "reward margin",
    "tokens_per_second_per_gpu": "tokens/s per GPU",
    "mfu": "MFU",
    "packing_efficiency": "packing efficiency",
    "memory_gb": "memory, GB",
}


def scores_chart(rows: list[dict[str, Any]], stages: list[str], name: str) -> str:
    """Every score in percent on one row, a mark and a 95 % interval per stage: SVG text."""
    rows = [row for row in rows if row["scale"] == 100]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for place, stage in enumerate(stages):
            shown = [(index, row["scores"][stage]) for index, row in enumerate(rows) if row["scores"][stage]]
            offset = 0.22 * (place - (len(stages) - 1) / 2)
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            for index, score in shown:
                if score["low"] is not None:
                    axes.plot(
                        [100 * score["low"], 100 * score["high"]], [index + offset] * 2, color=colour, clip_on=False
                    )
            values = [100 * score["value"] for _, score in shown]
            heights = [index + offset for index, _ in shown]
            axes.plot(values, heights, marker, color=colour, markersize=5, label=stage, clip_on=False)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 20), [f"{tick}\u00a0%" for tick in range(0, 101, 20)])
        labels = [row["task_label"] for row in rows]
        _names(axes, labels)
        _legend(axes, columns=len(stages))

    return svg(draw, name, height=0.7 + (0.24 + 0.06 * len(stages)) * len(rows))


def paper_chart(paper: dict[str, Any]) -> str:
    """Our score minus the paper's, a row each with its 95 % interval; hollow where not comparable: SVG text."""
    column = next(iter(paper["columns"]))
    rows = [row for row in paper["rows"] if row["scale"] == 100 and "difference" in row["against"][column]]
    colours = {"same": MUTED, "better": BETTER, "worse": WORSE, "not comparable": MUTED}
    words = {"same": "no clear difference", "better": "better", "worse": "worse", "not comparable": "not comparable"}

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1)
        for mark, colour in colours.items():
            marked = [(place, row["against"][column]) for place, row in enumerate(rows)]
            marked = [(place, pair) for place, pair in marked if pair["mark"] == mark]
            for place, pair in marked:
                if "p" in pair:
                    axes.plot([100 * pair["low"], 100 * pair["high"]], [place] * 2, color=colour)
            if marked:
                fill = "none" if mark == "not comparable" else colour
                axes.plot([100 * pair["difference"] for _, pair in marked], [place for place, _ in marked],
                          {"better": "^", "worse": "v"}.get(mark, "o"), color=colour, markersize=5.5,
                          markerfacecolor=fill, label=words[mark])  # fmt: skip
        widest = max([abs(side) for side in axes.get_xlim()], default=1)
        axes.set_xlim(-widest, widest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        axes.set_xlabel(f"points above or below {paper['columns'][column]}", labelpad=4)
        _names(axes, [row["name"] for row in rows])
        _legend(axes, columns=4)

    return svg(draw, "paper", height=0.9 + 0.25 * len(rows))


def _names(axes: "Axes", labels: list[str]) -> None:
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.grid(axis="y", visible=False)


def _legend(axes: "Axes", columns: int) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, handletextpad=0)


def training_chart(runs: list[dict[str, Any]]) -> str:
    """A row of panels a run: loss and learning rate, or loss, accuracy and margin; a second row of what it ran at."""
    grids = [row for run in runs for row in _panels(run)]

    def draw(figure: "Figure") -> None:
        grid = figure.add_gridspec(len(grids), 12, hspace=0.12)
        for place, (run, widths) in enumerate(grids):
            colour = SERIES[(runs.index(run) + 1) % len(SERIES)]  # the first stage is the base: a run has its stage's
            start = 0
            for column, width in widths.items():
                axes = figure.add_subplot(grid[place, start : start + width])
                start += width
                if column == "loss":
                    _loss(axes, run, colour)
                    continue
                quiet = column == "learning_rate"
                _line(axes, run, column, f"{run['name']} · {PANELS[column]}", MUTED if quiet else colour)
                if quiet:
                    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
                elif column in ("accuracy", "packing_efficiency"):
                    axes.set_ylim(0, 1.04)
                else:
                    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    return svg(draw, "training", height=2.2 * len(grids))


def _panels(run: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """Rows of panels, each a column of the log and its width in twelfths."""
    first = {"loss": 4, "accuracy": 4, "margin": 4} if run["kind"] == "preference" else {"loss": 8, "learning_rate": 4}
    second = {column: 12 // max(2, len(run["performance"])) for column in run["performance"]}
    return [(run, widths) for widths in (first, second) if widths]


def _loss(axes: "Axes", run: dict[str, Any], colour: str) -> None:
    _line(axes, run, "loss", f"{run['name']} · training loss", colour)
    if run["kind"] == "preference":
        axes.axhline(log(2), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate("ln 2", (0.98, log(2)), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
                      textcoords="offset points", ha="right")  # fmt: skip
    if run["evaluations"]:
        points = [(point["step"], point["loss"]) for point in run["evaluations"] if point["loss"] is not None]
        axes.plot(*zip(*points, strict=True), "o", color=INK, markersize=4, label="held-out loss")
        axes.legend(loc="upper right", frameon=False)


def _line(axes: "Axes", run: dict[str, Any], column: str, title: str, colour: str) -> None:
    points = run["points"][:: 1 + len(run["points"]) // MOST_POINTS]
    values = [float("nan") if point.get(column) is None else point[column] for point in points]
    # A single point draws no line, so a one-step run gets a mark.
    axes.plot([point["step"] for point in points], values, "o" if len(points) == 1 else "-", color=colour)
    axes.set_title(title)
    axes.set_xlabel("step", labelpad=2)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="x", integer=True, nbins=6)
