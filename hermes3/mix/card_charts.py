"""The charts of a mix's card, as inline SVG in the report's style (hermes3/page/charts.py)."""

from typing import TYPE_CHECKING, Any

from hermes3.mix.categories import NAMES
from hermes3.page import text
from hermes3.page.charts import INK, MUTED, SERIES, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4  # small multiples in a row


def lengths_chart(card: dict[str, Any]) -> str:
    """Conversation lengths, one panel a category on the same axes: SVG text."""
    import numpy as np

    edges, found = np.array(card["lengths"]["edges"]), card["lengths"]["categories"]
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    shares = {name: np.array(one["bins"]) / sum(one["bins"]) for name, one in found.items()}
    highest = max(share.max() for share in shares.values())
    powers = np.arange(np.ceil(np.log2(edges[0])), np.floor(np.log2(edges[-1])) + 1)
    ticks = powers[(powers % 2 == powers[-1] % 2) & (powers >= 5)]

    def draw(figure: "Figure") -> None:
        figure.get_layout_engine().set(hspace=0.08)
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
        ordered = [one["key"] for one in card["categories"] if one["key"] in found]
        for axes, name in zip(panels, ordered, strict=False):
            axes.bar(np.log2(edges[:-1]), shares[name], np.diff(np.log2(edges)) * 0.9, align="edge", color=SERIES[0])
            axes.axvline(np.log2(found[name]["median"]), color=INK, linewidth=1.2)
            axes.set_title(f"{NAMES.get(name, name)}\nmedian {found[name]['median']:,}")
            axes.grid(axis="x", visible=False)
            axes.set_xticks(ticks, [_short(2**power) for power in ticks])
            axes.set_ylim(0, 1.05 * highest)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}\u00a0%")
            axes.tick_params(labelbottom=True)
        for axes in list(panels):
            axes.set_axis_off()

    return svg(draw, f"lengths {card['name']}", height=0.2 + 1.75 * lines)


def turns_chart(card: dict[str, Any]) -> str:
    """Share of rows by number of turns: SVG text."""
    counts, total = card["turns"]["counts"], card["total"]["rows"]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        shares = [100 * n / total for n in counts.values()]
        axes.bar(range(len(counts)), shares, 0.72, color=SERIES[0])
        for place, (share, n) in enumerate(zip(shares, counts.values(), strict=True)):
            if n:
                label = portion(n / total)
                axes.annotate(
                    label, (place, share), xytext=(0, 3), textcoords="offset points", ha="center", color=MUTED
                )
        axes.set_xticks(range(len(counts)), list(counts))
        axes.set_xlabel("turns of the assistant", labelpad=2)
        _bare(axes, "y")
        axes.set_ylim(0, 1.12 * max(shares))

    return svg(draw, f"turns {card['name']}", height=1.9)


def funnel_chart(card: dict[str, Any]) -> str:
    """Rows read, what each stage took away, rows kept, as a waterfall: SVG text."""
    steps = card["funnel"]
    read = steps[0]["rows"]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        left = 0
        for place, step in enumerate(steps):
            whole, rows = step["step"].startswith("rows"), step["rows"]
            start = 0 if whole else min(left, left + rows)
            axes.barh(place, abs(rows), left=start, height=0.58, color=SERIES[0 if whole else 2 if rows > 0 else 1])
            left = rows if whole else left + rows
            if place < len(steps) - 1:  # where the next bar begins
                axes.plot([left, left], [place + 0.29, place + 0.71], color=MUTED, linewidth=0.8)
            label = f"{rows:+,}".replace("-", "−").removeprefix("+" if whole else "")
            label += "" if place == 0 else f"  ({portion(abs(rows) / read)})"
            right = whole or rows > 0 or start < 0.25 * read
            axes.annotate(label, (start + abs(rows) if right else start, place), xytext=(6 if right else -6, 0),
                          textcoords="offset points", va="center", ha="left" if right else "right",
                          color=MUTED)  # fmt: skip
        axes.set_yticks(range(len(steps)), [step["step"] for step in steps], color=INK)
        axes.set_ylim(len(steps) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * max(read, steps[-1]["rows"]))
        _bare(axes, "x")

    return svg(draw, f"funnel {card['name']}", height=0.2 + 0.3 * len(steps))


def portion(value: float) -> str:
    """A fraction as percent; what would round to nothing is `< 0.1 %`."""
    return "<\u00a00.1\u00a0%" if 0 < value < 0.0005 else text.percent(value)


def _bare(axes: "Axes", side: str) -> None:
    """No ticks, grid or line on the axis whose values stand at the bars."""
    getattr(axes, f"set_{side}ticks")([])
    axes.grid(visible=False)
    if side == "x":
        axes.spines["bottom"].set_visible(False)


def _short(value: float) -> str:
    """16384 -> `16k`, as tokens of context are named."""
    return f"{value / 1024:.0f}k" if value >= 1024 else f"{value:.0f}"
