"""The charts, as inline SVG that follows the page: text in its font, colours from its CSS variables.

matplotlib draws with sentinel colours, which are replaced by `var(--...)`, so one SVG serves light, dark and print.
"""

import io
import re
from collections.abc import Callable
from math import log
from typing import TYPE_CHECKING, Any

from hermes3.page.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sentinel -> CSS variable. The page defines --series-N twice, tuned from Okabe and Ito's colour-blind-safe set.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
BETTER, WORSE = "#050505", "#060606"
SERIES = ("#010203", "#010204", "#010205", "#010206")
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper", BETTER: "--better", WORSE: "--worse"} | {
    colour: f"--series-{place}" for place, colour in enumerate(SERIES, start=1)
}
MARKERS = ("o", "s", "D", "^")
MOST_POINTS = 1000  # of a curve: a panel is some 400 px wide
WIDTH = 9.2  # inches of 72 units; the page shows them at about 1.3 px a unit, so 9-point text is 12 px

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
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


PANELS = {
    "learning_rate": "learning rate",
    "accuracy": "chosen preferred, share of pairs",
    "margin": "reward margin",
    "tokens_per_second_per_gpu": "tokens/s per GPU",
    "mfu": "MFU",
    "packing_efficiency": "packing efficiency",
    "memory_gb": "memory, GB",
}


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


def mix_chart(mix: dict[str, Any]) -> str:
    """Share of tokens per category as bars, the paper's share as a tick across each: SVG text."""
    rows = mix["categories"]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.barh(range(len(rows)), [100 * row["share"] for row in rows], height=0.55, color=SERIES[0])
        for index, row in enumerate(rows):
            paper = row["paper_share"]
            text = percent(row["share"])
            if paper is not None:
                # The halo keeps the tick visible where it lies on the bar.
                axes.plot([100 * paper] * 2, [index - 0.42, index + 0.42], color=PAPER, linewidth=3.8)
                axes.plot([100 * paper] * 2, [index - 0.42, index + 0.42], color=INK, linewidth=1.8)
                text += f"  (paper {percent(paper)})"
            end = 100 * max(row["share"], paper or 0)
            axes.annotate(text, (end, index), xytext=(6, 0), textcoords="offset points", va="center", color=MUTED)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        longest = max(max(row["share"], row["paper_share"] or 0) for row in rows)
        axes.set_xlim(0, 125 * longest)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)

    return svg(draw, f"mix {mix['name']}", height=0.2 + 0.3 * len(rows))


def _line(axes: "Axes", run: dict[str, Any], column: str, title: str, colour: str) -> None:
    points = run["points"][:: 1 + len(run["points"]) // MOST_POINTS]
    values = [float("nan") if point.get(column) is None else point[column] for point in points]
    # A single point draws no line, so a one-step run gets a mark.
    axes.plot([point["step"] for point in points], values, "o" if len(points) == 1 else "-", color=colour)
    axes.set_title(title)
    axes.set_xlabel("step", labelpad=2)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="x", integer=True, nbins=6)


def svg(draw: Callable[["Figure"], None], name: str, height: float) -> str:
    """`draw` on a new figure of `height` inches; the same calls give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # The identifiers that clip paths go by must differ between the charts of a page, and not between two builds of it.
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Out of a file and into a page: the size and the global style are the page's, and nothing refers to the groups.
    svg = re.sub(r'(?<=<svg)[^>]*?(viewBox="[^"]*")[^>]*', r" \1", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
