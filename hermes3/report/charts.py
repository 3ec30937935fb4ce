"""The report's charts: scores, the difference from the paper, and the curves of training. SVG text."""

from itertools import cycle
from math import ceil, log
from pathlib import Path
from typing import Any

from hermes3.page.charts import INK, MUTED, SERIES, svg
from hermes3.page.shell import render
from hermes3.page.text import signed
from hermes3.report.tables import ALIGNMENT, BOUNDS, NAMES, Row

INTERVALS = Path(__file__).with_name("intervals.html.jinja")
MOST_POINTS = 1000  # of a curve: a panel is some 400 px wide


def scores_chart(table: Row) -> str:
    """Every score in percent on one row, a mark and a 95 % interval per stage."""
    looks = dict(zip(table["stages"], cycle(NAMES["series"]), strict=False))
    rows = [row for row in table["rows"] if row["scale"] == 100 and row["suite"] != ALIGNMENT]
    ticks = {tick: f"{tick}\u00a0%" for tick in range(0, 101, 20)}
    return _intervals([(row["task_label"], row["scores"]) for row in rows], looks, ticks)


def paper_chart(paper: Row) -> str:
    """Our score minus the paper's, a row each with its 95 % interval where it can be compared; "" where none can."""
    column, model = next(iter(paper["columns"].items()))
    pairs = [(row["name"], row["against"][column]) for row in paper["rows"] if row["scale"] == 100]
    pairs = [(name, pair | {"value": pair["difference"]}) for name, pair in pairs if "difference" in pair]
    if not pairs:
        return ""
    ends = [100 * abs(pair.get(end) or 0) for _, pair in pairs for end in BOUNDS]
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50) if step * 5 >= max(ends))
    reach = ceil(max(ends) / step)
    ticks = {step * place: signed(step * place / 100) if place else "0" for place in range(-reach, reach + 1)}
    rows = [(name, {pair["mark"]: pair}) for name, pair in pairs]
    return _intervals(rows, NAMES["looks"], ticks, f"points above or below {model}")


def _intervals(rows: list[tuple[str, Row]], looks: Row, ticks: dict[float, str], note: str = "") -> str:
    """`rows`: (label, {series: its score}); `looks`: series -> colour, shape."""
    looks = {series: look for series, look in looks.items() if any(scores.get(series) for _, scores in rows)}
    return render(INTERVALS, {"rows": rows, "looks": looks, "ticks": ticks, "note": note}, {}, {})


def training_chart(runs: list[Row]) -> str:
    """A row of panels per run: loss, also on held-out rows, and learning rate, or accuracy and margin."""

    def draw(figure: Any) -> None:
        layout = [[f"{place} {column}" for column in NAMES["panels"][run["kind"]]] for place, run in enumerate(runs)]
        for name, axes in figure.subplot_mosaic(layout, gridspec_kw={"hspace": 0.12}).items():
            (place, column), run = name.split(), runs[int(name.split()[0])]
            # the first stage is the base: a run has its stage's colour
            colour = MUTED if column == "learning_rate" else SERIES[(int(place) + 1) % len(SERIES)]
            points = run["points"][:: 1 + len(run["points"]) // MOST_POINTS]
            values = [float("nan") if point.get(column) is None else point[column] for point in points]
            # A single point draws no line, so a one-step run gets a mark.
            axes.plot([point["step"] for point in points], values, "o" if len(points) == 1 else "-", color=colour)
            axes.set_title(f"{run['name']} · {NAMES['curves'][column]}")
            axes.set_xlabel("step", labelpad=2)
            axes.grid(axis="x", visible=False)
            axes.locator_params(axis="x", integer=True, nbins=6)
            if column == "learning_rate":
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
            if column == "loss" and run["kind"] == "preference":
                axes.axhline(log(2), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
                axes.annotate("ln 2", (0.98, log(2)), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
                              textcoords="offset points", ha="right")  # fmt: skip
            held_out = [(one["step"], one["loss"]) for one in run["evaluations"] if one["loss"] is not None]
            if column == "loss" and held_out:
                axes.plot(*zip(*held_out, strict=True), "o", color=INK, markersize=4, label="held-out loss")
                axes.legend(loc="upper right", frameon=False)

    return svg(draw, "training", height=2.2 * len(runs))
