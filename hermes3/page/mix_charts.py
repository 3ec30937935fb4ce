"""The charts of a mix's card, from its facts (hermes3/mix/card.py), as SVG text."""

from typing import TYPE_CHECKING, Any

from hermes3.page.charts import INK, MUTED, SERIES, svg
from hermes3.page.text import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # small multiples in a row


def lengths_chart(card: dict[str, Any]) -> str:
    """Conversation lengths, one panel per category on the same axes."""
    import numpy as np

    edges = np.log2(card["lengths"]["edges"])
    categories = card["lengths"]["categories"]
    columns = min(COLUMNS, len(categories))
    lines = -(-len(categories) // columns)
    shares = [np.array(one["bins"]) / sum(one["bins"]) for one in categories]
    highest = max(share.max() for share in shares)
    powers = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
    ticks = powers[(powers % 2 == powers[-1] % 2) & (powers >= 5)]

    def draw(figure: "Figure") -> None:
        figure.get_layout_engine().set(hspace=0.08)
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
        for axes, one, share in zip(panels, categories, shares, strict=False):
            axes.bar(edges[:-1], share, np.diff(edges) * 0.9, align="edge", color=SERIES[0])
            axes.axvline(np.log2(one["median"]), color=INK, linewidth=1.2)
            axes.set_title(f"{one['label']}\nmedian {one['median']:,}")
            axes.grid(axis="x", visible=False)
            axes.set_xticks(ticks, [f"{2**p / 1024:.0f}k" if p >= 10 else f"{2**p:.0f}" for p in ticks])
            axes.set_ylim(0, 1.05 * highest)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}\u00a0%")
            axes.tick_params(labelbottom=True)
        for axes in list(panels)[len(categories) :]:
            axes.set_axis_off()

    return svg(draw, f"lengths {card['name']}", height=0.2 + 1.75 * lines)


def funnel_chart(card: dict[str, Any]) -> str:
    """Rows read, what each stage took away, rows kept, as a waterfall."""
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
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)

    return svg(draw, f"funnel {card['name']}", height=0.2 + 0.3 * len(steps))


def portion(value: float) -> str:
    """A fraction as percent; what would round to nothing is `< 0.1 %`."""
    return "<\u00a00.1\u00a0%" if 0 < value < 0.0005 else percent(value)
