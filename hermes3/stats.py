"""Intervals and tests for scores in closed form, each with its source.

A score is a fraction or, as MT-Bench, a mean on another scale. 95 % throughout; tests/test_stats.py simulates coverage.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

Z = NormalDist().inv_cdf(0.975)  # 1.959964
Z_90, Z_80 = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.8)


def wilson(k: float, n: float) -> tuple[float, float]:
    """Score interval of the proportion `k` / `n` (Wilson, JASA 22, 1927): (low, high), both in [0, 1].

    It stays inside [0, 1], and keeps a width when every sample is right or wrong, where the normal interval has none.
    `n` may be an effective number of samples, and so no whole number.
    """
    p, z2 = k / n, Z * Z / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


class Estimate(NamedTuple):
    """A weighted mean of outcomes, its standard error and the degrees of freedom of that.

    `worth`: Kish's number of draws by their weights alone (Survey Sampling, 1965); `clusters`: the independent draws.
    """

    value: float
    stderr: float
    freedom: float
    worth: float
    clusters: int

    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval: (low, high)."""
        from scipy.special import stdtrit  # quantiles of t; scipy.stats takes a second to import

        half = float(stdtrit(max(self.freedom, 1), 0.975)) * self.stderr
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Two-sided, of no difference from 0. Without any spread it is the sign test's over `worth` equal changes."""
        from scipy.special import stdtr

        if self.stderr == 0:
            return min(1.0, 2.0 ** (1 - self.worth)) if self.value else 1.0
        return 2 * float(stdtr(max(self.freedom, 1), -abs(self.value) / self.stderr))

    def share_worth(self, n: int) -> float:
        """The number of independent questions on which a share has this standard error, out of `n` that were asked.

        Fewer clusters know their own spread less well, hence the ratio of t's quantiles (Korn and Graubard, Survey
        Methodology 24, 1998). At a share of 0 or 1 nothing is known of the spread, and the weights alone count.
        """
        from scipy.special import stdtrit

        if self.stderr == 0 or not 0 < self.value < 1 or n < 2:
            return self.worth
        plain = share_worth(self.value, self.stderr) * n / (n - 1)
        return plain * float(stdtrit(n - 1, 0.975) / stdtrit(max(min(self.freedom, n - 1), 1), 0.975)) ** 2


def share_worth(value: float, stderr: float) -> float | None:
    """The number of independent questions of which the share `value` has this standard error, if it has one."""
    return value * (1 - value) / stderr**2 if stderr and 0 < value < 1 else None


def estimate(
    values: Sequence[Sequence[float]],
    clusters: Sequence[Sequence[Hashable]],
    weights: Sequence[float],
    pooled: bool,
    more: Sequence[tuple[float, float]] = (),
) -> Estimate:
    """The mean over tasks of `values`, an outcome per question, whose `clusters` say which stand or fall together.

    The residuals of a cluster are summed before they are squared (Liang and Zeger, Biometrika 73, 1986; one cluster per
    question is the textbook's variance). They are taken from the mean of all where questions are `pooled`, else from
    each task's own: the tasks are strata. `more`: (variance, degrees of freedom) of other sources, as of seeds;
    Satterthwaite's formula joins them.
    """
    shares = [weight / sum(weights) for weight in weights]
    means = [sum(of_task) / len(of_task) for of_task in values]
    value = sum(share * mean for share, mean in zip(shares, means, strict=True))
    sums: dict[Hashable, float] = defaultdict(float)
    masses: dict[Hashable, float] = defaultdict(float)
    for share, mean, of_task, names in zip(shares, means, values, clusters, strict=True):
        weight, centre = share / len(of_task), value if pooled else mean
        for outcome, name in zip(of_task, names, strict=True):
            sums[name] += weight * (outcome - centre)
            masses[name] += weight
    n = len(sums)
    squares = sum(one * one for one in sums.values())
    sources = [(squares * n / (n - 1), n - 1.0)] if n > 1 and squares > 1e-24 else []
    sources += [source for source in more if source[0]]
    variance = sum(part for part, _ in sources)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in sources) if sources else n - 1.0
    return Estimate(value, sqrt(variance), freedom, 1 / sum(mass * mass for mass in masses.values()), n)


def mean_of(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean of scores that are not 0 or 1 (Biometrika 6, 1908): (low, high)."""
    return estimate([values], [range(len(values))], [1], True).interval()


def ratio_of(parts: Sequence[Sequence[float]]) -> list[float]:
    """Outcomes, one a sample, whose mean is the share of all parts that are right: IFEval counts instructions.

    A prompt's instructions stand or fall together, so the prompt is the unit: r + (right - r x parts) / mean parts is
    the linearised ratio estimator (Cochran, Sampling Techniques, 3rd edition 1977, section 6.3).
    """
    right, size = [sum(part) for part in parts], [len(part) for part in parts]
    ratio, mean_size = sum(right) / sum(size), sum(size) / len(size)
    return [ratio + (k - ratio * n) / mean_size for k, n in zip(right, size, strict=True)]


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


def equivalence(gap: float, low: float, high: float, margin: float) -> dict[str, Any]:
    """`equal`: whether a difference with its 95 % interval lies within ± `margin`; `detectable`: what would be seen.

    Two one-sided tests at 5 % (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987), which is a 90 % interval
    inside the margin. A difference of `detectable` is found by the two-sided test with a probability of 80 %.
    """
    stderr = (high - low) / 2 / Z
    return {"equal": abs(gap) + Z_90 * stderr < margin, "detectable": (Z + Z_80) * stderr}


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
