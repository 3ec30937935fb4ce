"""Numbers as text, one way for every page."""

from typing import Any


def percent(value: float) -> str:
    """0.6104 -> `61.0 %`."""
    return f"{100 * value:.1f}\u00a0%"


def portion(value: float) -> str:
    """A fraction as percent; what would round to nothing is `< 0.1 %`."""
    return "<\u00a00.1\u00a0%" if 0 < value < 0.0005 else percent(value)


def shown(score: dict[str, Any], scale: float = 100) -> str:
    """A score's value: 0.6104 -> `61.0 %`; on MT-Bench's scale, which is 1, 8.27 -> `8.27`."""
    return percent(score["value"]) if scale == 100 else f"{score['value']:.2f}"


def interval(score: dict[str, Any], scale: float = 100) -> str:
    """Bounds of a score's 95 % interval: `54.1 – 67.5`, or a dash where there is none."""
    if score["low"] is None:
        return "–"
    return "\u2009–\u2009".join(signed(score[side], scale).removeprefix("+") for side in ("low", "high"))


def signed(value: float, scale: float = 100) -> str:
    """A change in percentage points, or on a scale of 1: 0.123 -> `+12.3`, or `+0.12`."""
    return f"{scale * value:+.{1 if scale == 100 else 2}f}".replace("-", "−")


def p_value(value: float) -> str:
    """`p = 0.041` or `p < 0.001`."""
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def count(value: float) -> str:
    """12345 -> `12,345`."""
    return f"{value:,}"


def number(value: float | None) -> str:
    """Four significant digits, or a dash for a missing value."""
    return "–" if value is None else f"{value:.4g}"


def join(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


FILTERS = {f.__name__: f for f in (percent, portion, shown, interval, signed, p_value, count, number)}
