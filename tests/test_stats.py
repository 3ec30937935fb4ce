"""The report's statistics: by hand, and by simulation: intervals hold 93 to 97 % of the time, tests err 3 to 7 %. Every
simulation draws from a law whose truth is known, with a fixed seed; sizes are those of lm-eval's tasks."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from hermes3 import stats
from hermes3.stats import difference, holm, mcnemar, mean_interval, ratio_of, wilson

COVERAGE = (0.93, 0.97)  # of intervals of 95 %
FALSE_MARKS = (0.03, 0.07)  # of tests at 5 %


def within(hits, bounds: tuple[float, float] = COVERAGE) -> None:
    assert bounds[0] <= np.mean(hits) <= bounds[1], np.mean(hits)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_by_hand_and_by_scipy() -> None:
    for k, n in ((0, 7), (7, 7), (8, 10), (120, 541)):
        theirs = binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    # 1 of 6 changed documents against 5: 2 * C(6, 0) + C(6, 1) of 2**6.
    assert mcnemar(5, 1) == mcnemar(1, 5) == pytest.approx(8 / 64)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: the last two are raised to the 0.06 before them.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    # Distances 0.3 and 0.4 below, 0.0 and 0.2 above, over two scores.
    assert mean_interval([(0.5, 0.2, 0.5), (0.7, 0.3, 0.9)]) == pytest.approx((0.6, 0.35, 0.7))
    # Newcombe (1998), table II, row (a): 56/70 - 48/80 by method 10.
    ours, theirs = (56 / 70, *wilson(56, 70)), (48 / 80, *wilson(48, 80))
    assert difference(ours, theirs) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert (stats.z_test(0, 0), stats.z_test(0.1, 0)) == (1, 0)


def test_instructions_of_a_prompt_fall_together() -> None:
    """IFEval: 1 to 3 instructions a prompt. The plain share's interval, as if they were independent, is too narrow."""
    generator, hits, plain = random(3), [], []
    for _ in range(1_500):
        sizes = generator.integers(1, 4, size=541)
        ease = generator.beta(1, 0.6, size=541)  # of a prompt
        parts = [(generator.random(m) < p).tolist() for m, p in zip(sizes, ease, strict=True)]
        low, high = stats.estimate([ratio_of(parts)], alone([parts]), [1], True).interval()
        hits.append(low <= 1 / 1.6 <= high)
        low, high = wilson(sum(map(sum, parts)), int(sizes.sum()))
        plain.append(low <= 1 / 1.6 <= high)
    within(hits)
    assert np.mean(plain) < COVERAGE[0]


def alone(values) -> list[list[tuple]]:
    """Clusters of questions that each stand alone."""
    return [[(task, n) for n in range(len(of_task))] for task, of_task in enumerate(values)]


def test_a_mean_of_one_task_is_the_textbooks():
    values = [[0.1, 0.5, 0.4, 0.9, 0.2]]
    estimate = stats.estimate(values, alone(values), [1], True)
    theirs = ttest_1samp(values[0], 0)
    assert estimate.interval() == pytest.approx(tuple(theirs.confidence_interval()))
    assert estimate.p_value() == pytest.approx(theirs.pvalue)
    # twice asked, and answered alike: the questions are as many as before, and count once each
    twice = stats.estimate([values[0], values[0]], [range(5), range(5)], [5, 5], True)
    assert twice == pytest.approx(estimate)
    # no spread: the sign test over the changes; Satterthwaite of two equal sources has both their degrees of freedom
    assert stats.estimate([[0.5] * 3], alone([[0.5] * 3]), [1], True).p_value() == 0.25
    assert stats.estimate([[0.0] * 9], alone([[0.0] * 9]), [1], True).p_value() == 1
    more = [(estimate.stderr**2, 4.0)]
    assert stats.estimate(values, alone(values), [1], True, more).freedom == pytest.approx(8)


def test_mean_of_tasks_against_a_published_mean() -> None:
    """AGIEval against a mean of which only the value is known: it is worth as many questions as ours."""
    sizes, rates = [254, 651, 230, 510, 269, 206, 206, 220], np.linspace(0.25, 0.9, 8)
    generator, hits, worth, marks = random(4), [], [], []
    for right, other in generator.binomial(sizes, rates, size=(600, 2, 8)):
        values = [[1] * k + [0] * (n - k) for k, n in zip(right, sizes, strict=True)]
        one = stats.estimate(values, alone(values), [1] * 8, False)
        worth.append(one.share_worth(2546))
        low, high = wilson(one.value * worth[-1], worth[-1])
        hits.append(low <= rates.mean() <= high)
        marks.append(stats.two_proportions(one.value, worth[-1], float(np.mean(other / sizes)), worth[-1]) < 0.05)
    within(hits)
    within(marks, FALSE_MARKS)
    # the variance of a share on so many questions is that of the mean
    exact = np.sum(rates * (1 - rates) / sizes) / 64
    assert np.median(worth) == pytest.approx(rates.mean() * (1 - rates.mean()) / exact, rel=0.03)


@pytest.mark.parametrize(("passages", "each"), [(20, 10), (40, 6), (250, 3)])
def test_questions_that_share_a_passage(passages: int, each: int) -> None:
    """SAT's, LSAT's and MuSR's: the plain share's interval holds the truth in less than 90 % of draws, ours in 95 %."""
    generator, hits, plain, names = random(6), [], [], [[n // each for n in range(passages * each)]]
    for _ in range(1_200):
        ease = generator.beta(0.9, 0.6, size=passages)  # of a passage
        right = (generator.random((passages, each)) < ease[:, None]).astype(int).ravel().tolist()
        one, n = stats.estimate([right], names, [1], True), len(right)
        low, high = wilson(one.value * (worth := one.share_worth(n)), worth)
        hits.append(low <= 0.6 <= high)
        low, high = wilson(sum(right), n)
        plain.append(low <= 0.6 <= high)
    within(hits)
    assert np.mean(plain) < 0.9


def test_the_spread_from_seed_to_seed_is_part_of_the_interval() -> None:
    """Three seeds on the same 500 questions: training moves each by a point or so, the questions by two."""
    generator, hits = random(7), []
    for _ in range(1_000):
        skill = generator.normal(0, 0.02, size=3)
        ease = generator.uniform(0.1, 0.9, size=500)
        seeds = (generator.random((3, 500)) < np.clip(ease + skill[:, None], 0, 1)).astype(float)
        means = seeds.mean(axis=1)
        more = [(means.var(ddof=1) / 3, 2.0)]
        low, high = stats.estimate([seeds.mean(axis=0).tolist()], [range(500)], [1], True, more).interval()
        hits.append(low <= 0.5 <= high)
    within(hits, (0.94, 0.99))  # the seeds' deviation holds a part of the questions' again


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.83, 0.80), (0.08, 0.05)])
def test_difference_of_two_independent_shares(p: float, q: float) -> None:
    """Ours and the paper's: the interval holds the true difference, and the test errs as often as it says."""
    n, generator = 1324, random(5)
    ours, theirs = generator.binomial(n, p, size=4_000), generator.binomial(n, q, size=4_000)
    bounds = [wilson(k, n) for k in range(n + 1)]
    pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
    found = [difference((a / n, *bounds[a]), (b / n, *bounds[b])) for a, b in pairs]
    within([low <= p - q <= high for low, high in found])
    same = generator.binomial(n, p, size=4_000)
    marks = [stats.two_proportions(a / n, n, b / n, n) < 0.05 for a, b in zip(ours, same, strict=True)]
    within(marks, FALSE_MARKS)


@pytest.mark.parametrize(("n", "changed"), [(250, 0.2), (541, 0.1), (1172, 0.3), (5761, 0.15)])
def test_paired_shares(n: int, changed: float) -> None:
    """McNemar's false marks where nothing is better, and the interval of a true change of a fifth of the changed."""
    generator, test = random(8), cache(mcnemar)
    moved = generator.binomial(n, changed, size=6_000)
    gained = generator.binomial(moved, 0.5)
    marks = [test(int(g), int(m - g)) < 0.05 for g, m in zip(gained, moved, strict=True)]
    within(marks, FALSE_MARKS)
    gained = generator.binomial(moved, 0.6)
    found = [stats.paired_shares(int(g), int(m - g), n) for g, m in zip(gained, moved, strict=True)]
    within([low <= 0.2 * changed <= high for low, high in found])


def test_paired_changes() -> None:
    """Of judged answers, skewed, and of tasks of unlike sizes that weigh the same; asked twice, they count once."""
    generator = random(9)
    moves = generator.choice([-3, -1, 0, 1, 2], p=[0.1, 0.15, 0.45, 0.15, 0.15], size=(1_200, 80)) / 2
    judged = [stats.estimate([row], [range(80)], [1], True) for row in moves.tolist()]
    sizes = [254, 651, 230, 510]
    names, tasks = alone([range(n) for n in sizes]), []
    for number in range(1_000):
        changes = [generator.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=n).tolist() for n in sizes]
        again = 1 + number % 2
        tasks.append(stats.estimate(changes * again, names * again, [1.0] * 4 * again, False))
    for estimates in (judged, tasks):
        within([one.p_value() < 0.05 for one in estimates], FALSE_MARKS)
        bounds = [one.interval() for one in estimates]
        within([low <= 0 <= high for low, high in bounds])
    few = stats.estimate([[0.0] * 538 + [0.5] * 3], [range(541)], [1], True)  # no few questions prove anything
    assert few.p_value() > 0.05 and few.interval()[0] < 0
