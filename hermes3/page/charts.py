"""Charts as inline SVG: drawn with sentinel colours that become the page's `var(--...)`, so one serves every theme."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermes3.page.shell import render
from hermes3.page.text import FILTERS

# CSS variables, each with a sentinel. The series are tuned from Okabe and Ito's colour-blind-safe set.
VARIABLES = ("ink", "muted", "rule", "paper", "better", "worse", "series-1", "series-2", "series-3", "series-4")
COLOURS = [f"#{3 * f'{place:02d}'}" for place, _ in enumerate(VARIABLES, start=1)]
INK, MUTED, RULE, PAPER, BETTER, WORSE, *SERIES = COLOURS
# Out of a file and into a page: the size and the global style are the page's, and nothing refers to the groups.
INTO_PAGE = {r'(?<=<svg)[^>]*?(viewBox="[^"]*")[^>]*': r" \1", r"<defs>\s*<style.*?</style>\s*</defs>": ""}
INTO_PAGE |= {r'<g id="[^"]*"': "<g", r"font-family: [^;\"]*": "font-family: var(--font)", "xlink:href": "href"}
INTO_PAGE |= {colour: f"var(--{variable})" for colour, variable in zip(COLOURS, VARIABLES, strict=True)}
WIDTH = 9.2  # inches of 72 units; the page shows them at about 1.3 px a unit, so 9-point text is 12 px
STYLE, BARS = (Path(__file__).with_name(name) for name in ("charts.mplstyle", "bars.html.jinja"))


def mix_chart(mix: dict[str, Any]) -> str:
    """Share of tokens per category as bars, the paper's share as a tick across each: SVG text."""
    rows = mix["categories"]
    longest = max(max(row["share"], row["paper_share"] or 0) for row in rows)
    return render(BARS, {"rows": rows, "longest": longest}, {}, FILTERS)


def svg(draw: Callable[[Any], None], name: str, height: float) -> str:
    """`draw` on a new figure of `height` inches; the same calls give the same bytes."""
    from matplotlib import rc_context, rc_params_from_file
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # The identifiers that clip paths go by must differ between the charts of a page, and not between two builds of it.
    with rc_context({**rc_params_from_file(STYLE, use_default_template=False), "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = "<svg" + buffer.getvalue().partition("<svg")[2]
    for pattern, text in INTO_PAGE.items():
        svg = re.sub(pattern, text, svg, flags=re.DOTALL)
    return svg
