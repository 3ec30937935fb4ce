"""Intervals and tests for scores, in closed form or by the bootstrap, each with its source.

A score is a fraction or, as MT-Bench, a mean on another scale. 95 % throughout; tests/test_stats.py simulates coverage.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)  # 1.959964
RESAMPLES = 9_999
SEED = 20240815  # of the bootstrap: the same samples give the same report


def wilson(k: float, n: float) -> tuple[float, float]:
    """Score interval of the proportion `k` / `n` (Wilson, JASA 22, 1927): (low, high), both in [0, 1].

    It stays inside [0, 1], and keeps a width when every sample is right or wrong, where the normal interval has none.
    `n` may be an effective number of samples, and so no whole number.
    """
    p, z2 = k / n, Z * Z / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def mean_of(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean of scores that are not 0 or 1 (Biometrika 6, 1908): (low, high)."""
    from scipy.special import stdtrit  # quantiles of t; scipy.stats takes a second to import

    n = len(values)
    mean = sum(values) / n
    half = float(stdtrit(n - 1, 0.975)) * sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean - half, mean + half


def ratio_of(parts: Sequence[Sequence[float]]) -> list[float]:
    """Outcomes, one a sample, whose mean is the share of all parts that are right: IFEval counts instructions.

    A prompt's instructions stand or fall together, so the prompt is the unit: r + (right - r x parts) / mean parts is
    the linearised ratio estimator (Cochran, Sampling Techniques, 3rd edition 1977, section 6.3).
    """
    right, size = [sum(part) for part in parts], [len(part) for part in parts]
    ratio, mean_size = sum(right) / sum(size), sum(size) / len(size)
    return [ratio + (k - ratio * n) / mean_size for k, n in zip(right, size, strict=True)]


def normal(value: float, stderr: float) -> tuple[float, float]:
    """`value` ± 1.96 `stderr`, where only the harness's standard error is known: (low, high)."""
    return value - Z * stderr, value + Z * stderr


def mean_interval(
    scores: Sequence[tuple[float, float, float]], weights: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Weighted mean of independent (value, low, high) scores and its interval: (mean, low, high).

    The distances from each value to its own bounds add up as variances do (MOVER; Zou and Donner, Statistics in
    Medicine 27, 2008), so the interval keeps the asymmetry of Wilson's. It holds the choice of tasks as given.
    """
    given = weights or [1.0] * len(scores)
    shares = [weight / sum(given) for weight in given]
    mean = sum(w * value for w, (value, _, _) in zip(shares, scores, strict=True))
    below = sqrt(sum((w * (value - low)) ** 2 for w, (value, low, _) in zip(shares, scores, strict=True)))
    above = sqrt(sum((w * (high - value)) ** 2 for w, (value, _, high) in zip(shares, scores, strict=True)))
    return mean, mean - below, mean + above


def difference(new: tuple[float, float, float], old: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of `new` - `old` of two independent (value, low, high) scores: (low, high).

    MOVER; of two Wilson intervals it is Newcombe's method 10 (Statistics in Medicine 17, 1998, 873).
    """
    gap = new[0] - old[0]
    low = gap - sqrt((new[0] - new[1]) ** 2 + (old[2] - old[0]) ** 2)
    high = gap + sqrt((new[2] - new[0]) ** 2 + (old[0] - old[1]) ** 2)
    return low, high


def effective_n(value: float, low: float, high: float) -> float:
    """The number of independent questions on which a share `value` has a standard error of (high - low) / 2 / 1.96.

    Kish's effective sample size (Survey Sampling, 1965): a mean of tasks of unlike sizes is worth fewer questions than
    it has. At a share of 0 or 1 the standard error is no guide; a quarter of a question keeps it off them.
    """
    stderr = (high - low) / 2 / Z
    safe = min(max(value, 0.01), 0.99)
    return max(safe * (1 - safe) / stderr**2 - Z * Z, 1.0)  # the width is Wilson's, which holds Z^2 samples more


def two_proportions(p: float, n: float, q: float, m: float) -> float:
    """Two-sided p-value of the pooled z test of two independent shares (Pearson's chi-squared of the 2 x 2 table)."""
    pooled = (p * n + q * m) / (n + m)
    stderr = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return z_test(p - q, stderr)


def z_test(gap: float, stderr: float) -> float:
    """Two-sided p-value of `gap` under a normal law of mean 0; where nothing varies, no gap gives 1 and a gap 0."""
    if stderr == 0:
        return 1.0 if gap == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(gap) / stderr)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided mid-p-value of McNemar's test (Psychometrika 12, 1947) for two stages on the same documents.

    `gained` counts documents that were wrong before and right after, `lost` the reverse. If neither stage is better, a
    changed document is as likely to be one as the other: `gained` ~ Binomial(gained + lost, 1/2). The observed count
    weighs half, since the exact test's rate of false marks lies well under 5 % where few documents change (Fagerland,
    Lydersen and Laake, BMC Medical Research Methodology 13, 2013). No change gives 1.
    """
    from scipy.special import bdtr  # the binomial's cumulative probability

    changed, fewer = gained + lost, min(gained, lost)
    if gained == lost:
        return 1.0
    return float(bdtr(fewer, changed, 0.5) + (bdtr(fewer - 1, changed, 0.5) if fewer else 0.0))


def paired_shares(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Interval of the change of a share on the same `n` documents: (low, high).

    Agresti and Min (Statistics in Medicine 24, 2005): Wald's interval after half a document is added to each of the
    four cells, which holds its coverage where few documents change.
    """
    gained_, lost_, size = gained + 0.5, lost + 0.5, n + 2
    gap = (gained_ - lost_) / size
    half = Z * sqrt((gained_ + lost_) / size - gap * gap) / sqrt(size)
    return max(gap - half, -1.0), min(gap + half, 1.0)


def paired_bootstrap(changes: Sequence[float]) -> tuple[float | None, float | None, float]:
    """Interval of the mean of `changes`, one a document, and the p-value of no change: (low, high, p).

    Bootstrap-t over documents (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 12.5 and 16.4):
    each resample's mean is studentised, so that few or skewed documents do not make the interval too narrow. Where
    fewer than 10 documents change, many resamples hold no change and so no spread: Student's t stands in. Changes that
    are all the same have no interval: low and high are None, and p is the sign test's.
    """
    import numpy as np
    from scipy.special import stdtr  # the cumulative probability of t

    changes_ = np.asarray(changes, dtype=np.float64)
    n, mean = len(changes_), float(changes_.mean())
    if n < 2 or np.ptp(changes_) == 0:
        return None, None, _sign_test(changes)
    stderr = float(changes_.std(ddof=1)) / sqrt(n)
    student = *mean_of(changes_.tolist()), 2 * float(stdtr(n - 1, -abs(mean) / stderr))
    if np.count_nonzero(changes_) < 10:
        return student
    generator = np.random.default_rng(SEED)
    chunk = max(1, 4_000_000 // n)
    counts = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    studentised = np.concatenate([_studentised(changes_, mean, count, generator) for count in counts])
    with np.errstate(invalid="ignore"):  # between two infinite ones
        low, high = np.quantile(studentised, [0.975, 0.025])
    if not np.isfinite([low, high]).all():
        return student
    extreme = int((np.abs(studentised) >= abs(mean) / stderr).sum())
    return mean - float(low) * stderr, mean - float(high) * stderr, (extreme + 1) / (RESAMPLES + 1)


def _studentised(changes, mean, count, generator):
    import numpy as np

    drawn = changes[generator.integers(len(changes), size=(count, len(changes)))]
    spread = drawn.std(axis=1, ddof=1) / sqrt(len(changes))
    with np.errstate(divide="ignore", invalid="ignore"):
        # a resample without spread is infinitely far off, or at the mean itself
        return np.nan_to_num((drawn.mean(axis=1) - mean) / spread, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _sign_test(changes: Sequence[float]) -> float:
    """p-value of changes that all have one value: as likely up as down, 2^(1 - n); 1 where the value is 0."""
    return 2.0 ** (1 - len(changes)) if any(changes) else 1.0


def paired_tasks(
    changes: Sequence[Sequence[float]], weights: Sequence[float], design_effect: float = 1.0
) -> tuple[float, float | None, float | None, float]:
    """Change of a weighted mean of tasks, each on the same documents before and after: (change, low, high, p).

    Each task is a stratum with its own variance (Cochran, Sampling Techniques, section 5.3), and all are multiplied by
    the design effect; normal, since a group has hundreds of documents. Without any spread there is no interval: low and
    high are None, and p is the sign test's over the documents that changed.
    """
    shares = [weight / sum(weights) for weight in weights]
    change = variance = 0.0
    for share, values in zip(shares, changes, strict=True):
        n, mean = len(values), sum(values) / len(values)
        change += share * mean
        if n > 1:
            variance += share**2 * sum((value - mean) ** 2 for value in values) / (n - 1) / n
    stderr = sqrt(design_effect * variance)
    if stderr == 0:
        return change, None, None, _sign_test([value for values in changes for value in values if value])
    return change, *normal(change, stderr), z_test(change, stderr)


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
