"""Intervals and tests for scores in closed form, each with its source. A score is a fraction or, as MT-Bench, a mean on
another scale. 95 % throughout; tests/test_stats.py simulates coverage."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import accumulate
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

NORMAL = NormalDist()
Z, Z_90, Z_80 = NORMAL.inv_cdf(0.975), NORMAL.inv_cdf(0.95), NORMAL.inv_cdf(0.8)  # Z is 1.959964
Floats = Sequence[float]
Bounded = tuple[float, float, float]  # a value with the bounds of its interval: (value, low, high)


def wilson(k: float, n: float) -> tuple[float, float]:
    """Score interval of the proportion `k` / `n` (Wilson, JASA 22, 1927): (low, high). It keeps a width when every
    sample is right or wrong. `n` may be an effective number of samples, no whole number."""
    p, z2 = k / n, Z * Z / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


class Estimate(NamedTuple):
    """A weighted mean of outcomes, its standard error and the degrees of freedom of that."""

    value: float
    stderr: float
    freedom: float
    worth: float  # Kish's number of draws by their weights alone (Survey Sampling, 1965)

    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval: (low, high)."""
        half = _t(self.freedom) * self.stderr
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
        Methodology 24, 1998). At a share of 0 or 1 the weights alone count."""
        plain = share_worth(self.value, self.stderr)
        if plain is None or n < 2:
            return self.worth
        return plain * n / (n - 1) * (_t(n - 1) / _t(min(self.freedom, n - 1))) ** 2


def _t(freedom: float) -> float:
    from scipy.special import stdtrit  # scipy takes a while to import, which most verbs need not

    return float(stdtrit(max(freedom, 1), 0.975))


def share_worth(value: float, stderr: float) -> float | None:
    """The number of independent questions of which the share `value` has this standard error, if it has one."""
    return value * (1 - value) / stderr**2 if stderr and 0 < value < 1 else None


def estimate(
    values: Sequence[Floats], clusters: Sequence[Sequence[Hashable]], weights: Floats, pooled: bool, more: Sequence = ()
) -> Estimate:
    """The mean over tasks of `values`, an outcome per question, whose `clusters` say which stand or fall together.

    The residuals of a cluster are summed before they are squared (Liang and Zeger, Biometrika 73, 1986). They are taken
    from the mean of all where questions are `pooled`, else from each task's own. `more`: (variance, degrees of freedom)
    of other sources, as of seeds; Satterthwaite's formula joins them.
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
    return Estimate(value, sqrt(variance), freedom, 1 / sum(mass * mass for mass in masses.values()))


def ratio_of(parts: Sequence[Sequence[float]]) -> list[float]:
    """Outcomes, one a sample, whose mean is the share of all parts that are right: IFEval counts instructions, and
    those of a prompt fall together. r + (right - r x parts) / mean parts is the linearised ratio estimator (Cochran,
    Sampling Techniques, 3rd edition 1977, section 6.3)."""
    right, size = [sum(part) for part in parts], [len(part) for part in parts]
    ratio, mean_size = sum(right) / sum(size), sum(size) / len(size)
    return [ratio + (k - ratio * n) / mean_size for k, n in zip(right, size, strict=True)]


def mean_interval(scores: Sequence[Bounded], weights: Sequence[float] | None = None) -> Bounded:
    """Weighted mean of independent scores and its interval, which holds the choice of tasks as given: distances from
    values to their own bounds add up as variances do (MOVER; Zou and Donner, Statistics in Medicine 27, 2008)."""
    weights = weights or [1.0] * len(scores)
    parts = [(w / sum(weights), *score) for w, score in zip(weights, scores, strict=True)]
    mean = sum(w * value for w, value, _, _ in parts)
    below = sqrt(sum((w * (value - low)) ** 2 for w, value, low, _ in parts))
    above = sqrt(sum((w * (high - value)) ** 2 for w, value, _, high in parts))
    return mean, mean - below, mean + above


def difference(new: Bounded, old: Bounded) -> tuple[float, float]:
    """Interval of `new` - `old` of two independent scores: (low, high). MOVER; of two Wilson intervals it is Newcombe's
    method 10 (Statistics in Medicine 17, 1998, 873)."""
    gap = new[0] - old[0]
    low = gap - sqrt((new[0] - new[1]) ** 2 + (old[2] - old[0]) ** 2)
    return low, gap + sqrt((new[2] - new[0]) ** 2 + (old[0] - old[1]) ** 2)


def two_proportions(p: float, n: float, q: float, m: float) -> float:
    """Two-sided p-value of the pooled z test of two independent shares (Pearson's chi-squared of the 2 x 2 table)."""
    pooled = (p * n + q * m) / (n + m)
    return z_test(p - q, sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)))


def z_test(gap: float, stderr: float) -> float:
    """Two-sided p-value of `gap` under a normal law of mean 0; where nothing varies, no gap gives 1 and a gap 0."""
    return 2 * NORMAL.cdf(-abs(gap) / stderr) if stderr else float(gap == 0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided mid-p-value of McNemar's test (Psychometrika 12, 1947): of documents that were wrong before and right
    after, and the reverse. `gained` ~ Binomial(gained + lost, 1/2); the observed count weighs half, as the exact test
    errs too rarely (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13, 2013). No change gives 1."""
    from scipy.special import bdtr  # the binomial's cumulative probability

    changed, fewer = gained + lost, min(gained, lost)
    if gained == lost:
        return 1.0
    return float(bdtr(fewer, changed, 0.5) + (bdtr(fewer - 1, changed, 0.5) if fewer else 0.0))


def paired_shares(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Interval of the change of a share on the same `n` documents, (low, high): Wald's after half a document is added
    to each of the four cells (Agresti and Min, Statistics in Medicine 24, 2005)."""
    size, gap = n + 2, (gained - lost) / (n + 2)
    half = Z * sqrt((gained + lost + 1) / size - gap * gap) / sqrt(size)
    return max(gap - half, -1.0), min(gap + half, 1.0)


def equivalence(gap: float, low: float, high: float, margin: float) -> dict[str, Any]:
    """`equal`: whether a difference lies within ± `margin`, by two one-sided tests at 5 % (Schuirmann, J.
    Pharmacokinetics and Biopharmaceutics 15, 1987); `detectable`: what the two-sided test finds in 80 % of cases."""
    stderr = (high - low) / 2 / Z
    return {"equal": abs(gap) + Z_90 * stderr < margin, "detectable": (Z + Z_80) * stderr}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, of Holm's step-down procedure (Scand. J. Statistics 6, 1979): the i-th
    smallest of m (i from 0) is multiplied by m - i, made monotone and cut at 1."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    raised = (min(1.0, (len(order) - rank) * p_values[index]) for rank, index in enumerate(order))
    adjusted = dict(zip(order, accumulate(raised, max), strict=True))
    return [adjusted[index] for index in range(len(p_values))]
