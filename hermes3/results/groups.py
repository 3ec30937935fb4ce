"""Scores over several tasks, weighted as the paper weighs them, and their comparison on the same documents."""

from dataclasses import dataclass, replace
from typing import Any

from hermes3 import stats
from hermes3.files import UserError
from hermes3.results.comparable import why_not
from hermes3.results.lm_eval import Evaluation, Score, ScoreKey, leaves
from hermes3.results.suite import GroupSpec, Suite

PAPER_SUITE = "paper"  # its groups are the rows of Table 5
# GPQA's main set holds diamond's 198 questions, and extended holds main's 448: of 1,192 asked, 546 are distinct. Kish's
# effect of the weights 3, 2 and 1, as if a question that is asked again got the same answer.
DESIGN_EFFECTS = {"leaderboard_gpqa": (198 * 3**2 + 250 * 2**2 + 98) / 1192}
FEWEST = 10  # samples of a task whose scores are not 0 or 1: fewer say too little about the spread


@dataclass(frozen=True)
class Group:
    """A named score over `members`, weighted by questions or by tasks. A group of one member is that score.

    A member's metric may join several by `+`, as IFEval's two: their mean counts. `suite`: where the group is from;
    `shots`: what it is measured with, None for any.
    """

    name: str
    members: tuple[ScoreKey, ...]
    by_question: bool = True
    suite: str = ""
    shots: int | None = None
    design_effect: float = 1.0  # by how much the variance exceeds that of as many distinct questions


def resolve(evaluations: list[Evaluation], suite: str, name: str, spec: GroupSpec) -> Group:
    """A suite's group over the single tasks of lm-eval's groups, as the results name them."""
    subtasks: dict[str, list[str]] = {}
    for one in evaluations:
        subtasks |= one.subtasks
    members = [_key(evaluations, leaf, spec.metrics(task)) for task in spec.tasks for leaf in leaves(subtasks, task)]
    effect = max(DESIGN_EFFECTS.get(task, 1.0) for task in spec.tasks)
    return Group(name, tuple(members), spec.aggregation == "weighted", suite, spec.num_fewshot, effect)


def groups_of(evaluations: list[Evaluation], suites: list[Suite]) -> list[Group]:
    """The groups of `suites` that any evaluation measured, in their order.

    Suites overlap: of two groups the first stays where the second is a part of it. One that was measured in part stays
    only if it is a row of the paper's.
    """
    whole: list[Group] = []
    parts: list[Group] = []
    for suite in suites:
        for name, spec in suite.groups.items():
            group = resolve(evaluations, suite.name, name, spec)
            measured = max(sum(score is not None for score in one.group_scores(group)) for one in evaluations)
            if measured == len(group.members):
                if not any(group.shots == o.shots and set(group.members) <= set(o.members) for o in whole):
                    whole.append(group)
            elif measured and suite.name == PAPER_SUITE:
                parts.append(group)
    named: dict[str, Group] = {}
    for group in [*whole, *parts]:
        name = f"{group.name} ({group.suite})" if group.name in named else group.name
        named[name] = replace(group, name=name)
    return list(named.values())


def _key(evaluations: list[Evaluation], task: str, metrics: list[str]) -> ScoreKey:
    """The key under which results have the metrics of `task`. `UserError` where several filters fit."""
    names = [metric.partition(",")[0] for metric in metrics]
    filters = {metric.partition(",")[2] for metric in metrics} - {""}
    if not filters:
        filters = {key[2] for one in evaluations for key in one.scores if key[:2] == (task, names[0])} or {"none"}
    if len(filters) > 1:
        raise UserError(f"{task}: {names[0]} has filters {', '.join(sorted(filters))}; name one, as METRIC,FILTER")
    return task, "+".join(names), filters.pop()


def value_of(evaluation: Evaluation, group: Group) -> float:
    """The group's score without its interval; every member must have been measured."""
    scores = evaluation.group_scores(group)
    weights = _weights(group, scores)
    return sum(w * score.value for w, score in zip(weights, scores, strict=True)) / sum(weights)


def score_of(evaluation: Evaluation, group: Group) -> Score | None:
    """The group's score with its 95 % interval; None where a member was not measured or has no interval.

    Pooled questions have Wilson's interval. A mean of tasks joins the intervals of its members (MOVER).
    """
    scores = evaluation.group_scores(group)
    if len(scores) == 1:
        return scores[0]
    if any(score is None or score.low is None for score in scores):
        return None
    n, better = sum(score.n for score in scores), scores[0].higher_is_better
    if _pooled(group, scores):
        right, effect = sum(sum(score.outcomes.values()) for score in scores), group.design_effect
        low, high = stats.wilson(right / effect, n / effect)
        return Score(right / n, n, low, high, "mover" if effect > 1 else "wilson", better, None, binary=True)
    bounds = [(score.value, score.low, score.high) for score in scores]
    mean, low, high = stats.mean_interval(bounds, _weights(group, scores))
    return Score(mean, n, low, high, "mover", better, None)


def _pooled(group: Group, scores: list[Score]) -> bool:
    return (group.by_question or len(group.members) == 1) and all(score.binary for score in scores)


def _weights(group: Group, scores: list[Score]) -> list[float]:
    return [float(score.n) if group.by_question else 1.0 for score in scores]


def compare(before: Evaluation, after: Evaluation, group: Group) -> dict[str, Any]:
    """The paired comparison of two stages: `change` with its interval and `p`, or the `reason` why there is none.

    McNemar's test where the questions pool to 0 and 1, the paired bootstrap over one task's other scores, the
    stratified z test over a mean of tasks. `mark` is "no clear difference" until Holm's correction changes it.
    """
    pair: dict[str, Any] = {"before": before.name, "after": after.name}
    if reason := why_not(before, after, group):
        return pair | {"mark": "not comparable", "reason": reason}
    old, new = before.group_scores(group), after.group_scores(group)
    change = value_of(after, group) - value_of(before, group)
    pair |= {"change": change, "gain": change if new[0].higher_is_better else -change}
    if any(score.outcomes is None for score in (*old, *new)):
        return pair | {"mark": "not tested", "reason": "the score is no mean of its samples"}
    pairs = zip(old, new, strict=True)
    changes = [[b.outcomes[doc] - outcome for doc, outcome in a.outcomes.items()] for a, b in pairs]
    if _pooled(group, [*old, *new]) and group.design_effect == 1:
        flat = [one for values in changes for one in values]
        gained, lost = flat.count(1), flat.count(-1)
        low, high = stats.paired_shares(gained, lost, len(flat))
        test = {"test": "mcnemar", "gained": gained, "lost": lost, "p": stats.mcnemar(gained, lost)}
    elif (fewest := min(len(values) for values in changes)) < FEWEST:
        return pair | {"mark": "not tested", "reason": f"only {fewest} samples; no test below {FEWEST}"}
    elif len(changes) == 1:
        low, high, p = stats.paired_bootstrap(changes[0])
        test = {"test": "bootstrap", "p": p}
    else:
        _, low, high, p = stats.paired_tasks(changes, _weights(group, old), group.design_effect)
        test = {"test": "stratified", "p": p}
    return pair | test | {"mark": "no clear difference", "low": low, "high": high}
