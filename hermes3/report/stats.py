"""Intervals and tests for proportions: Wilson, McNemar, Holm, and the interval of a mean of proportions."""

from collections.abc import Sequence
from math import sqrt


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the proportion `k` / `n` (Wilson, JASA 22, 1927): (low, high), both in [0, 1].

    It stays inside [0, 1], and keeps a width when every sample is right or wrong, where the normal interval has none.
    """
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def normal(value: float, stderr: float) -> tuple[float, float]:
    """95 % interval `value` ± 1.96 `stderr`, for scores that are not proportions of 0/1 samples: (low, high)."""
    return value - 1.959964 * stderr, value + 1.959964 * stderr


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test (Psychometrika 12, 1947) for two stages on the same documents.

    `gained` counts documents that were wrong before and right after, `lost` the reverse. If neither stage is better, a
    changed document is as likely to be one as the other: `gained` ~ Binomial(gained + lost, 1/2). No change gives 1.
    """
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, of Holm's step-down procedure (Scand. J. Statistics 6, 1979).

    The i-th smallest of m (i from 0) is multiplied by m - i, made monotone and cut at 1. Comparing each with 0.05
    bounds the probability of one false mark in the whole table by 0.05.
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def mean_interval(scores: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Unweighted mean of independent (value, low, high) scores and its interval: (mean, low, high).

    The distances from each value to its own bounds add up as variances do (MOVER; Zou and Donner, Statistics in
    Medicine 27, 2008), so the interval keeps the asymmetry of Wilson's. It holds the choice of tasks as given.
    """
    size = len(scores)
    mean = sum(value for value, _, _ in scores) / size
    below = sqrt(sum((value - low) ** 2 for value, low, _ in scores)) / size
    above = sqrt(sum((high - value) ** 2 for value, _, high in scores)) / size
    return mean, mean - below, mean + above
