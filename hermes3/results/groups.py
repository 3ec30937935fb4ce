"""Scores over several tasks, weighted as the paper weighs them, and their comparison on the same documents."""

from dataclasses import replace
from statistics import fmean
from typing import Any

from hermes3 import stats
from hermes3.results.comparable import why_not
from hermes3.results.lm_eval import Evaluation, leaves
from hermes3.results.score import Group, Score, between, measure
from hermes3.results.suite import GroupSpec, Suite

PAPER_SUITE = "paper"  # its groups are the rows of Table 5
FEWEST = 10  # samples of a task whose scores are not 0 or 1: fewer say too little about the spread


def resolve(evaluations: list[Evaluation], suite: str, name: str, spec: GroupSpec) -> Group:
    """A suite's group over the single tasks of lm-eval's groups, as the results name them."""
    subtasks = {group: members for one in evaluations for group, members in one.subtasks.items()}
    members = [
        (leaf, *metric.split(",")) if "," in metric else (leaf, metric, "none")
        for task in spec.tasks
        for leaf in leaves(subtasks, task)
        for metric in spec.metrics(task)
    ]
    return Group(name, tuple(members), spec.aggregation == "weighted", suite, spec.protocol)


def groups_of(evaluations: list[Evaluation], suites: list[Suite]) -> list[Group]:
    """The groups of `suites` that any evaluation measured; of two the first stays where the second is a part of it.
    One that was measured in part, or by another metric, stays only if it is a row of the paper's."""
    whole: list[Group] = []
    parts: list[Group] = []
    for group in (resolve(evaluations, one.name, name, spec) for one in suites for name, spec in one.groups.items()):
        if any(None not in one.group_scores(group) for one in evaluations):
            if not any(all({*e.keys(group)} <= {*e.keys(other)} for e in evaluations) for other in whole):
                whole.append(group)
        elif group.suite == PAPER_SUITE and any(key[0] in e.tasks for e in evaluations for key in e.keys(group)):
            parts.append(group)
    named: dict[str, Group] = {}
    for group in [*whole, *parts]:
        name = f"{group.name} ({group.suite})" if group.name in named else group.name
        named[name] = replace(group, name=name)
    return list(named.values())


def value_of(evaluation: Evaluation, group: Group) -> float:
    """The group's score without its interval; every member must have been measured."""
    scores = evaluation.group_scores(group)
    return fmean([score.value for score in scores], group.weights(scores))


def score_of(evaluation: Evaluation, group: Group) -> Score | None:
    """The group's score with its 95 % interval; None where a member was not measured or has no interval."""
    scores, keys = evaluation.group_scores(group), evaluation.keys(group)
    if len(scores) == 1:
        return scores[0]
    if any(score is None or score.low is None or score.scale != scores[0].scale for score in scores):
        return None
    weights, better, scale = group.weights(scores), scores[0].higher_is_better, scores[0].scale
    n = sum({key[0]: score.n for key, score in zip(keys, scores, strict=True)}.values())
    if all(score.outcomes for score in scores):
        alike = len({len(score.seeds) for score in scores}) == 1
        seeds = zip(*(score.seeds for score in scores), strict=True) if alike else ()
        names, outcomes = [evaluation.names_of(key) for key in keys], [score.outcomes for score in scores]
        seeds = [fmean(one, weights) for one in seeds]
        return measure(outcomes, names, better, scale, weights, group.pooled, seeds, n)
    # without samples the intervals of the members are joined as if they were independent
    mean, low, high = stats.mean_interval([(score.value, score.low, score.high) for score in scores], weights)
    worth = stats.share_worth(mean, (high - low) / 2 / stats.Z) if scale == 100 else None
    return Score(mean, n, low, high, "mover", better, scale, worth)


def pool(name: str, seeds: list[Evaluation]) -> Evaluation:
    """The seeds of a stage as one evaluation: each question's mean over the seeds, and the spread from seed to seed.
    A seed that cannot be compared with the first is left out, score by score."""
    first = seeds[0]
    scores = dict(first.scores)
    for key, score in first.scores.items():
        alike = [one.scores[key] for one in seeds[1:] if why_not(first, one, Group(key[0], (key,))) is None]
        several = [score, *(one for one in alike if one.outcomes)]
        if len(several) > 1 and score.outcomes:
            outcomes = {doc: sum(one.outcomes[doc] for one in several) / len(several) for doc in score.outcomes}
            names, values = [first.names_of(key)], [one.value for one in several]
            scores[key] = measure([outcomes], names, score.higher_is_better, score.scale, seeds=values)
    return replace(first, name=name, scores=scores)


def compare(before: Evaluation, after: Evaluation, group: Group) -> dict[str, Any]:
    """The paired comparison of two stages: `change` with its interval and `p`, or the `reason` why there is none.

    McNemar's test where questions pool to 0 and 1 and each stands alone, else the paired t test over what stands or
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
    changes = [[b.outcomes[doc] - one for doc, one in a.outcomes.items()] for a, b in zip(old, new, strict=True)]
    names = [before.names_of(key) for key in before.keys(group)]
    binary = all(score.binary for score in (*old, *new)) and group.pooled
    flat = [one for of_task in changes for one in of_task]
    if binary and len({name for of_task in names for name in of_task}) == len(flat):
        gained, lost = flat.count(1), flat.count(-1)
        low, high = stats.paired_shares(gained, lost, len(flat))
        test = {"test": "mcnemar", "gained": gained, "lost": lost, "p": stats.mcnemar(gained, lost)}
        return pair | test | {"mark": "no clear difference", "low": low, "high": high}
    if (fewest := min(map(len, changes))) < FEWEST:
        return pair | {"mark": "not tested", "reason": f"only {fewest} samples; no test below {FEWEST}"}
    seeds = [of.seeds for one in (before, after) if (of := score_of(one, group)) and len(of.seeds) > 1]
    estimate = stats.estimate(changes, names, group.weights(old), group.pooled, [between(one) for one in seeds])
    low, high = estimate.interval() if estimate.stderr else (None, None)
    return pair | {"test": "paired t", "p": estimate.p_value(), "mark": "no clear difference", "low": low, "high": high}
