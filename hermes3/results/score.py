"""A score: what its metric counts, and the mean of its outcomes with a 95 % interval."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import variance

from hermes3 import stats
from hermes3.files import read_yaml
from hermes3.results.suite import Protocol

ScoreKey = tuple[str, str, str]  # task, metric, filter
Outcomes = dict[int, float]  # doc_id -> a number
metrics = cache(lambda: read_yaml(Path(__file__).with_name("metrics.yml")))


@dataclass(frozen=True)
class Score:
    """One metric of one task, or of a group. `value`, `low` and `high` (95 % interval) are shares, or points."""

    value: float
    n: int
    low: float | None
    high: float | None
    interval: str  # "wilson", "t", "mover" and "normal" where there are no outcomes, or "none" without a standard error
    higher_is_better: bool | None  # None: neither lm-eval nor metrics.yml says
    scale: int = 100  # what values are multiplied by when shown: 100 for a share, 1 for points
    effective_n: float | None = None  # the number of independent questions that a share is worth, None for points
    outcomes: Outcomes | None = None  # their mean is `value`; None where samples do not say
    binary: bool = False  # outcomes are 0 or 1
    seeds: tuple[float, ...] = ()  # the value of each seed, where several are pooled


@dataclass(frozen=True)
class Group:
    """A named score over `members`; a task of which two metrics count is two members, as IFEval."""

    name: str
    members: tuple[ScoreKey, ...]
    by_question: bool = True  # how members weigh: by their questions, or all alike
    suite: str = ""
    protocol: Protocol | None = None  # how its tasks are to be asked, None for any way

    @property
    def pooled(self) -> bool:
        """Whether the questions of all tasks are one share: each task with one metric, weighted by its questions."""
        tasks = {key[0] for key in self.members}
        return len(tasks) == 1 or (self.by_question and len(tasks) == len(self.members))

    def weights(self, scores: list[Score]) -> list[float]:
        return [float(score.n) if self.by_question else 1.0 for score in scores]


def _listed(kind: str, task: str, metric: str) -> bool:
    return any(fnmatchcase(f"{task}/{metric}" if "/" in one else metric, one) for one in metrics()[kind])


def unit_of(task: str, metric: str) -> str | None:
    """ "points", "percent" or "share"; None for a metric that metrics.yml does not know."""
    return next((kind for kind in ("points", "percent", "share") if _listed(kind, task, metric)), None)


def better_of(task: str, metric: str, said: bool | None) -> bool | None:
    """Whether higher is better: what lm-eval said, or else metrics.yml; None where neither knows."""
    if said is None and _listed("lower_is_better", task, metric):
        return False
    return True if said is None and unit_of(task, metric) else said


def measure(
    outcomes: Sequence[Outcomes],
    names: Sequence[Sequence[Hashable]],  # what each question shares with others, or stands alone by
    better: bool | None,
    scale: int = 100,
    weights: Sequence[float] = (1,),
    pooled: bool = True,  # one share over all tasks' questions
    seeds: Sequence[float] = (),
    n: int | None = None,
) -> Score:
    """The weighted mean of tasks as a score over `n` questions.

    Outcomes of 0 and 1 have Wilson's interval for the independent questions that they are worth (Korn and Graubard,
    Survey Methodology 24, 1998), others Student's.
    """
    values = [list(of_task.values()) for of_task in outcomes]
    estimate = stats.estimate(values, names, weights, pooled, [between(seeds)] if len(seeds) > 1 else [])
    binary = all(one in (0, 1) for of_task in values for one in of_task) and scale == 100
    n = n or sum(map(len, values))
    worth = estimate.share_worth(n) if scale == 100 else None
    if binary or (worth and estimate.stderr == 0 and estimate.value in (0, 1)):
        interval, bounds = "wilson", stats.wilson(estimate.value * worth, worth)
    else:
        interval, bounds = "t", estimate.interval()
        if scale == 100:
            bounds = max(0.0, bounds[0]), min(1.0, bounds[1])
    first = outcomes[0] if len(outcomes) == 1 else None
    return Score(estimate.value, n, *bounds, interval, better, scale, worth, first, binary and pooled, tuple(seeds))


def between(seeds: Sequence[float]) -> tuple[float, float]:
    """The variance of a mean over seeds, and its degrees of freedom."""
    return variance(seeds) / len(seeds), len(seeds) - 1.0
