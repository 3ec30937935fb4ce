"""Charts as inline SVG that follows the page: text in its font, colours from its CSS variables.

matplotlib draws with sentinel colours, which are replaced by `var(--...)`, so one SVG serves light, dark and print.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hermes3.page.text import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sentinel -> CSS variable. The page defines --series-N twice, tuned from Okabe and Ito's colour-blind-safe set.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
BETTER, WORSE = "#050505", "#060606"
SERIES = ("#010203", "#010204", "#010205", "#010206")
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper", BETTER: "--better", WORSE: "--worse"} | {
    colour: f"--series-{place}" for place, colour in enumerate(SERIES, start=1)
}
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
