"""The report's statistics: by hand, and by simulation: intervals hold 93 to 97 % of the time, tests err 3 to 7 %.

Every simulation draws from a law whose truth is known, with a fixed seed; sizes are those of lm-eval's tasks.
"""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binomtest

from hermes3 import stats
from hermes3.stats import difference, effective_n, holm, mcnemar, mean_interval, mean_of, ratio_of, wilson

COVERAGE = (0.93, 0.97)  # of intervals of 95 %
FALSE_MARKS = (0.03, 0.07)  # of tests at 5 %


def within(share: float, bounds: tuple[float, float]) -> None:
    assert bounds[0] <= share <= bounds[1], share


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_by_hand() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == 0
    assert wilson(0, 10)[1] == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert wilson(10, 10)[1] == 1
    # 1 of 6 changed documents against 5: 2 * C(6, 0) + C(6, 1) of 2**6.
    assert mcnemar(5, 1) == mcnemar(1, 5) == pytest.approx(8 / 64)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: the last two are raised to the 0.06 before them.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    # Distances 0.3 and 0.4 below, 0.0 and 0.2 above, over two scores.
    assert mean_interval([(0.5, 0.2, 0.5), (0.7, 0.3, 0.9)]) == pytest.approx((0.6, 0.35, 0.7))
    assert mean_interval([(0.5, 0.4, 0.6), (0.9, 0.8, 1.0)], [3, 1])[0] == pytest.approx(0.6)
    # Newcombe (1998), table II, row (a): 56/70 - 48/80 by method 10.
    ours, theirs = (56 / 70, *wilson(56, 70)), (48 / 80, *wilson(48, 80))
    assert difference(ours, theirs) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    # Two prompts of 1 and 3 instructions, 1 and 1 right: half of all four.
    assert np.mean(ratio_of([[1], [1, 0, 0]])) == pytest.approx(0.5)
    assert stats.z_test(0, 0) == 1
    assert stats.z_test(0.1, 0) == 0


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (120, 541), (9000, 10042)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("p", [0.08, 0.3, 0.5, 0.83, 0.95])
@pytest.mark.parametrize("n", [198, 541, 1172])
def test_one_share(p: float, n: int) -> None:
    bounds = np.array([wilson(k, n) for k in range(n + 1)])[random(1).binomial(n, p, size=20_000)]
    within(np.mean((bounds[:, 0] <= p) & (p <= bounds[:, 1])), COVERAGE)


@pytest.mark.parametrize("n", [80, 817])
def test_one_mean_of_other_scores(n: int) -> None:
    """MC2's probability mass, piled up at both ends; MT-Bench has 80 questions."""
    values = random(2).beta(0.8, 0.6, size=(2_000, n))
    bounds = np.array([mean_of(row) for row in values.tolist()])
    truth = 0.8 / 1.4
    within(np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])), COVERAGE)


def test_instructions_of_a_prompt_fall_together() -> None:
    """IFEval: 1 to 3 instructions a prompt. The plain share's interval, as if they were independent, is too narrow."""
    generator, hits, plain = random(3), [], []
    for _ in range(1_500):
        sizes = generator.integers(1, 4, size=541)
        ease = generator.beta(1, 0.6, size=541)  # of a prompt
        parts = [(generator.random(m) < p).tolist() for m, p in zip(sizes, ease, strict=True)]
        low, high = mean_of(ratio_of(parts))
        hits.append(low <= 1 / 1.6 <= high)
        low, high = wilson(sum(map(sum, parts)), int(sizes.sum()))
        plain.append(low <= 1 / 1.6 <= high)
    within(np.mean(hits), COVERAGE)
    assert np.mean(plain) < COVERAGE[0]


def test_mean_of_tasks_against_a_published_mean() -> None:
    """AGIEval against a mean of which only the value is known: it is worth as many questions as ours."""
    sizes, rates = np.array([254, 651, 230, 510, 269, 206, 206, 220]), np.linspace(0.25, 0.9, 8)
    generator, hits, worth, marks = random(4), [], [], []
    for right, other in generator.binomial(sizes, rates, size=(3_000, 2, 8)):
        mean, low, high = mean_interval([(k / n, *wilson(k, n)) for k, n in zip(right, sizes, strict=True)])
        hits.append(low <= rates.mean() <= high)
        worth.append(effective_n(mean, low, high))
        marks.append(stats.two_proportions(mean, worth[-1], float(np.mean(other / sizes)), worth[-1]) < 0.05)
    within(np.mean(hits), COVERAGE)
    within(np.mean(marks), FALSE_MARKS)
    # the variance of a share on so many questions is that of the mean
    exact = np.sum(rates * (1 - rates) / sizes) / 64
    assert np.median(worth) == pytest.approx(rates.mean() * (1 - rates.mean()) / exact, rel=0.03)
    assert effective_n(0.4, *wilson(0.4 * 1172, 1172)) == pytest.approx(1172, rel=0.01)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.83, 0.80), (0.08, 0.05)])
def test_difference_of_two_independent_shares(p: float, q: float) -> None:
    """Ours and the paper's: the interval holds the true difference, and the test errs as often as it says."""
    n, generator = 1324, random(5)
    ours, theirs = generator.binomial(n, p, size=4_000), generator.binomial(n, q, size=4_000)
    found = [
        difference((a / n, *wilson(a, n)), (b / n, *wilson(b, n)))
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    within(np.mean([low <= p - q <= high for low, high in found]), COVERAGE)
    same = generator.binomial(n, p, size=4_000)
    marks = [stats.two_proportions(a / n, n, b / n, n) < 0.05 for a, b in zip(ours, same, strict=True)]
    within(np.mean(marks), FALSE_MARKS)


@pytest.mark.parametrize(("n", "changed"), [(250, 0.2), (541, 0.1), (1172, 0.3), (5761, 0.15)])
def test_paired_shares(n: int, changed: float) -> None:
    """McNemar's false marks where nothing is better, and the interval of a true change of a fifth of the changed."""
    generator, test = random(8), cache(mcnemar)
    moved = generator.binomial(n, changed, size=6_000)
    gained = generator.binomial(moved, 0.5)
    marks = [test(int(g), int(m - g)) < 0.05 for g, m in zip(gained, moved, strict=True)]
    within(np.mean(marks), FALSE_MARKS)
    gained = generator.binomial(moved, 0.6)
    found = [stats.paired_shares(int(g), int(m - g), n) for g, m in zip(gained, moved, strict=True)]
    within(np.mean([low <= 0.2 * changed <= high for low, high in found]), COVERAGE)


@pytest.mark.parametrize("n", [80, 160])
def test_paired_bootstrap(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of judged answers: most questions stay, some move by whole points, skewed."""
    monkeypatch.setattr(stats, "RESAMPLES", 599)
    generator = random(9)
    moves = generator.choice([-3, -1, 0, 1, 2], p=[0.1, 0.15, 0.45, 0.15, 0.15], size=(1_200, n)) / 2
    assert moves.mean() == pytest.approx(0, abs=0.01)
    found = [stats.paired_bootstrap(row) for row in moves]
    within(np.mean([p < 0.05 for _, _, p in found]), FALSE_MARKS)
    within(np.mean([low <= 0 <= high for low, high, _ in found]), COVERAGE)
    assert stats.paired_bootstrap(moves[0]) == stats.paired_bootstrap(moves[0])
    assert stats.paired_bootstrap([0.0] * 9) == (None, None, 1)


def test_paired_bootstrap_of_few_changes() -> None:
    """Resamples without a change have no spread: no bound may be infinite, and no few questions prove anything."""
    low, high, p = stats.paired_bootstrap([0.0] * 538 + [0.5] * 3)
    assert -0.01 < low < 0 < high < 0.01
    assert p > 0.05
    low, high, p = stats.paired_bootstrap([0.5] * 12 + [0.0])  # a third of the resamples hold no spread
    assert -1 < low < 6 / 13 < high < 1
    assert stats.paired_bootstrap([0.5, 0.5]) == (None, None, 0.5)
    assert stats.paired_bootstrap([0.5] * 3) == (None, None, 0.25)
    assert stats.paired_bootstrap([0.0, 0.5])[2] > 0.05
    assert stats.paired_tasks([[0.5], [0.5, 0.5]], [1, 1]) == (0.5, None, None, 0.25)


@pytest.mark.parametrize("effect", [1.0, 2.0])
def test_paired_mean_of_tasks(effect: float) -> None:
    """Tasks of unlike sizes weigh the same. With `effect` 2 every question is asked twice, and answered alike."""
    generator, marks, hits = random(10), [], []
    sizes = [254, 651, 230, 510]
    for _ in range(1_500):
        changes = [generator.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=n).tolist() * int(effect) for n in sizes]
        _, low, high, p = stats.paired_tasks(changes, [1.0] * 4, effect)
        marks.append(p < 0.05)
        hits.append(low <= 0 <= high)
    within(np.mean(marks), FALSE_MARKS)
    within(np.mean(hits), COVERAGE)


def test_holm_keeps_the_whole_table() -> None:
    """17 rows without a difference: one false mark in any of them, 5 % of the time; without Holm, more than half."""
    p_values = random(11).random((4_000, 17))
    within(np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()]), FALSE_MARKS)
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.5
