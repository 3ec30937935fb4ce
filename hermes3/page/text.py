"""Numbers as text, one way for every page. A `scale` of 100 is percent, of 1 a mean such as MT-Bench's."""

from typing import Any


def percent(value: float) -> str:
    """0.6104 -> `61.0 %`."""
    return f"{100 * value:.1f}\u00a0%"


def portion(value: float) -> str:
    """A fraction as percent; what would round to nothing is `< 0.1 %`."""
    return "<\u00a00.1\u00a0%" if 0 < value < 0.0005 else percent(value)


def interval(score: dict[str, Any], scale: float = 100) -> str:
    """Bounds of a score's 95 % interval: `54.1 – 67.5`, or a dash where there is none."""
    if score["low"] is None:
        return "–"
    return "\u2009–\u2009".join(signed(score[side], scale).removeprefix("+") for side in ("low", "high"))


def signed(value: float, scale: float = 100) -> str:
    """A change in percentage points, or on a scale of 1: 0.123 -> `+12.3`, or `+0.12`."""
    return f"{scale * value:+.{1 if scale == 100 else 2}f}".replace("-", "−")


def join(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


FILTERS = {f.__name__: f for f in (percent, portion, interval, signed)} | {
    "count": "{:,}".format,
    "number": lambda value: "–" if value is None else f"{value:.4g}",
    "p_value": lambda value: "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}",
    "shown": lambda score, scale=100: percent(score["value"]) if scale == 100 else f"{score['value']:.2f}",
}
