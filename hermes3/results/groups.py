"""Scores over several tasks, weighted as the paper weighs them, and their comparison on the same documents."""

from dataclasses import dataclass, replace
from typing import Any

from hermes3 import stats
from hermes3.files import UserError
from hermes3.results.comparable import why_not
from hermes3.results.lm_eval import Evaluation, leaves
from hermes3.results.score import Score, ScoreKey, between, measure
from hermes3.results.suite import GroupSpec, Protocol, Suite

PAPER_SUITE = "paper"  # its groups are the rows of Table 5
FEWEST = 10  # samples of a task whose scores are not 0 or 1: fewer say too little about the spread


@dataclass(frozen=True)
class Group:
    """A named score over `members`, weighted by questions or by tasks. A group of one member is that score.

    A task of which two metrics count is two members, as IFEval. `suite`: where the group is from; `protocol`: how its
    tasks are to be asked, None for any way.
    """

    name: str
    members: tuple[ScoreKey, ...]
    by_question: bool = True
    suite: str = ""
    protocol: Protocol | None = None

    @property
    def shots(self) -> int | None:
        return self.protocol.shots if self.protocol else None


def resolve(evaluations: list[Evaluation], suite: str, name: str, spec: GroupSpec) -> Group:
    """A suite's group over the single tasks of lm-eval's groups, as the results name them."""
    subtasks: dict[str, list[str]] = {}
    for one in evaluations:
        subtasks |= one.subtasks
    members = [
        _key(evaluations, leaf, metric)
        for task in spec.tasks
        for leaf in leaves(subtasks, task)
        for metric in spec.metrics(task)
    ]
    return Group(name, tuple(members), spec.aggregation == "weighted", suite, spec.protocol)


def groups_of(evaluations: list[Evaluation], suites: list[Suite]) -> list[Group]:
    """The groups of `suites` that any evaluation measured, in their order.

    Suites overlap: of two groups the first stays where the second is a part of it. One that was measured in part, or by
    another metric, stays only if it is a row of the paper's.
    """
    whole: list[Group] = []
    parts: list[Group] = []
    for suite in suites:
        for name, spec in suite.groups.items():
            group = resolve(evaluations, suite.name, name, spec)
            measured = max(sum(score is not None for score in one.group_scores(group)) for one in evaluations)
            if measured == len(group.members):
                if not any(all({*e.keys(group)} <= {*e.keys(o)} for e in evaluations) for o in whole):
                    whole.append(group)
            elif suite.name == PAPER_SUITE and any(key[0] in e.tasks for e in evaluations for key in e.keys(group)):
                parts.append(group)
    named: dict[str, Group] = {}
    for group in [*whole, *parts]:
        name = f"{group.name} ({group.suite})" if group.name in named else group.name
        named[name] = replace(group, name=name)
    return list(named.values())


def _key(evaluations: list[Evaluation], task: str, metric: str) -> ScoreKey:
    """The key under which results have `metric`, as METRIC or METRIC,FILTER. `UserError` where several filters fit."""
    metric, _, named = metric.partition(",")
    filters = {named} if named else {key[2] for one in evaluations for key in one.scores if key[:2] == (task, metric)}
    if len(filters) > 1:
        raise UserError(f"{task}: {metric} has filters {', '.join(sorted(filters))}; name one, as METRIC,FILTER")
    return task, metric, filters.pop() if filters else "none"


def value_of(evaluation: Evaluation, group: Group) -> float:
    """The group's score without its interval; every member must have been measured."""
    return _weighted([score.value for score in evaluation.group_scores(group)], group, evaluation)


def _weighted(values: list[float], group: Group, evaluation: Evaluation) -> float:
    weights = _weights(group, evaluation.group_scores(group))
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def score_of(evaluation: Evaluation, group: Group) -> Score | None:
    """The group's score with its 95 % interval; None where a member was not measured or has no interval.

    Without samples it joins the intervals of its members (MOVER), as if they were independent.
    """
    scores, keys = evaluation.group_scores(group), evaluation.keys(group)
    if len(scores) == 1:
        return scores[0]
    if any(score is None or score.low is None or score.scale != scores[0].scale for score in scores):
        return None
    weights, better, scale = _weights(group, scores), scores[0].higher_is_better, scores[0].scale
    n = sum({key[0]: score.n for key, score in zip(keys, scores, strict=True)}.values())
    if all(score.outcomes for score in scores):
        rounds = {len(score.seeds) for score in scores} == {len(scores[0].seeds)}
        seeds = zip(*(score.seeds for score in scores), strict=True) if rounds else ()
        seeds = [_weighted(list(of_seed), group, evaluation) for of_seed in seeds]
        names = [evaluation.names_of(key) for key in keys]
        outcomes = [score.outcomes for score in scores]
        return measure(outcomes, names, weights, _pooled(group), better, scale, seeds, n)
    bounds = [(score.value, score.low, score.high) for score in scores]
    mean, low, high = stats.mean_interval(bounds, weights)
    worth = stats.share_worth(mean, (high - low) / 2 / stats.Z) if scale == 100 else None
    return Score(mean, n, low, high, "mover", better, None, scale=scale, effective_n=worth)


def _pooled(group: Group) -> bool:
    """Whether the questions of all tasks are one share: each task with one metric, weighted by its questions."""
    tasks = [key[0] for key in group.members]
    return len(tasks) == 1 or (group.by_question and len(set(tasks)) == len(tasks))


def _weights(group: Group, scores: list[Score]) -> list[float]:
    return [float(score.n) if group.by_question else 1.0 for score in scores]


def pool(name: str, seeds: list[Evaluation]) -> Evaluation:
    """The seeds of a stage as one evaluation: each question's mean over the seeds, and the spread from seed to seed.

    A seed that cannot be compared with the first is left out, score by score.
    """
    first = seeds[0]
    scores = dict(first.scores)
    for key, score in first.scores.items():
        group = Group(key[0], (key,))
        alike = [one for one in seeds[1:] if why_not(first, one, group) is None and one.scores[key].outcomes]
        if alike and score.outcomes:
            several = [score, *(one.scores[key] for one in alike)]
            outcomes = {doc: sum(o.outcomes[doc] for o in several) / len(several) for doc in score.outcomes}
            values = [one.value for one in several]
            names = [first.names_of(key)]
            scores[key] = measure([outcomes], names, [1], True, score.higher_is_better, score.scale, values)
    return replace(first, name=name, scores=scores)


def compare(before: Evaluation, after: Evaluation, group: Group) -> dict[str, Any]:
    """The paired comparison of two stages: `change` with its interval and `p`, or the `reason` why there is none.

    McNemar's test where the questions pool to 0 and 1 and each stands alone, else the paired t test over what stands or
    falls together. `mark` is "no clear difference" until Holm's correction changes it.
    """
    pair: dict[str, Any] = {"before": before.name, "after": after.name}
    if reason := why_not(before, after, group):
        return pair | {"mark": "not comparable", "reason": reason}
    old, new = before.group_scores(group), after.group_scores(group)
    change = value_of(after, group) - value_of(before, group)
    pair |= {"change": change, "gain": change if new[0].higher_is_better else -change}
    if any(score.outcomes is None for score in (*old, *new)):
        return pair | {"mark": "not tested", "reason": "the score is no mean of its samples"}
    if new[0].higher_is_better is None:
        return pair | {"mark": "not tested", "reason": "neither lm-eval nor metrics.yml says which way is better"}
    pairs = list(zip(old, new, strict=True))
    changes = [[b.outcomes[doc] - outcome for doc, outcome in a.outcomes.items()] for a, b in pairs]
    names = [list(before.names_of(key).values()) for key in before.keys(group)]
    binary = all(score.binary for score in (*old, *new)) and _pooled(group)
    if binary and len({name for of_task in names for name in of_task}) == sum(map(len, changes)):
        flat = [one for values in changes for one in values]
        gained, lost = flat.count(1), flat.count(-1)
        low, high = stats.paired_shares(gained, lost, len(flat))
        test = {"test": "mcnemar", "gained": gained, "lost": lost, "p": stats.mcnemar(gained, lost)}
        return pair | test | {"mark": "no clear difference", "low": low, "high": high}
    if (fewest := min(len(values) for values in changes)) < FEWEST:
        return pair | {"mark": "not tested", "reason": f"only {fewest} samples; no test below {FEWEST}"}
    seeds = [seeds for one in (before, after) if (of := score_of(one, group)) and len(seeds := of.seeds) > 1]
    estimate = stats.estimate(changes, names, _weights(group, old), _pooled(group), [between(one) for one in seeds])
    low, high = estimate.interval() if estimate.stderr else (None, None)
    return pair | {"test": "paired t", "p": estimate.p_value(), "mark": "no clear difference", "low": low, "high": high}
