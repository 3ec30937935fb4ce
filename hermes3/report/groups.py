"""Scores over several tasks, weighted as the paper weighs them, and their comparison on the same documents."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hermes3 import stats
from hermes3.report.results import Score, ScoreKey, Stage, with_shots


@dataclass(frozen=True)
class Group:
    """A named score over `members`: each task weighs the same, or each question. One member is itself.

    A member's metric may join several by `+`, as IFEval's two: their mean counts. `suite`: where the group is from;
    `shots`: what it is measured with, None for any.
    """

    name: str
    members: tuple[ScoreKey, ...]
    by_question: bool = True
    suite: str = ""
    shots: int | None = None
    design_effect: float = 1.0  # by how much the variance exceeds that of as many distinct questions


PAPER_SUITE = "paper"  # its groups are the rows of Table 5
# GPQA's main set holds diamond's 198 questions, and extended holds main's 448: of 1,192 asked, 546 are distinct. Kish's
# effect of the weights 3, 2 and 1, as if a question that is asked again got the same answer.
DESIGN_EFFECTS = {"leaderboard_gpqa": (198 * 3**2 + 250 * 2**2 + 98) / 1192}


def groups_of(stages: list[Stage], suites: list[Any]) -> list[Group]:
    """The groups of `suites` that any stage measured, in their order.

    A suite names tasks of lm-eval or its groups, whose members the results name. Suites overlap: of two groups the
    first stands where the second is a part of it. One measured in part stands only if it is a row of the paper's.
    """
    subtasks: dict[str, list[str]] = {}
    for stage in stages:
        subtasks |= {name: tasks for name, tasks in stage.subtasks.items() if tasks}
    whole: list[Group] = []
    parts: list[Group] = []
    for suite in suites:
        for name, given in suite.groups.items():
            leaves = [(leaf, given.metrics(task)) for task in given.tasks for leaf in _leaves(task, subtasks)]
            members = tuple(_key(stages, leaf, metrics) for leaf, metrics in leaves)
            effect = max(DESIGN_EFFECTS.get(task, 1.0) for task in given.tasks)
            group = Group(name, members, given.aggregation == "weighted", suite.name, given.num_fewshot, effect)
            measured = [sum(score is not None for score in scores_in(stage, group)) for stage in stages]
            if max(measured) == len(members):
                if not any(group.shots == o.shots and set(members) <= set(o.members) for o in whole):
                    whole.append(group)
            elif max(measured) and suite.name == PAPER_SUITE:
                parts.append(group)
    named: dict[str, Group] = {}
    for group in [*whole, *parts]:
        name = f"{group.name} ({group.suite})" if group.name in named else group.name
        named[name] = replace(group, name=name)
    return list(named.values())


def _leaves(task: str, subtasks: dict[str, list[str]]) -> Iterator[str]:
    for inner in subtasks.get(task, []):
        yield from _leaves(inner, subtasks)
    if task not in subtasks:
        yield task


def _key(stages: list[Stage], task: str, metrics: list[str]) -> ScoreKey:
    """The key under which results have the metrics of `task`."""
    parts = [metric.partition(",") for metric in metrics]
    filters = {part[2] for part in parts if part[2]}
    if not filters:
        filters = {key[2] for stage in stages for key in stage.scores if key[:2] == (task, parts[0][0])} or {"none"}
    return task, "+".join(part[0] for part in parts), sorted(filters)[0]


def keys_in(stage: Stage, group: Group) -> list[ScoreKey]:
    """The members' keys in `stage`, where a task that has another number of shots than the group's is none of it."""
    return [(_name(stage, task, group.shots), metric, filter_key) for task, metric, filter_key in group.members]


def _name(stage: Stage, task: str, shots: int | None) -> str:
    facts = stage.tasks.get(task)
    return task if shots is None or facts is None or facts["n_shot"] == shots else with_shots(task, shots)


def scores_in(stage: Stage, group: Group) -> list[Score | None]:
    """The members' scores in `stage`; None for what it did not measure."""
    return [member(stage, key) for key in keys_in(stage, group)]


def member(stage: Stage, key: ScoreKey) -> Score | None:
    """The score under `key`; of metrics joined by `+`, the mean of each document's."""
    if key in stage.scores or "+" not in key[1]:
        return stage.scores.get(key)
    parts = [stage.scores.get((key[0], metric, key[2])) for metric in key[1].split("+")]
    if any(part is None or part.outcomes is None for part in parts) or parts[0].n < 2:
        return None
    outcomes = {doc: sum(part.outcomes[doc] for part in parts) / len(parts) for doc in parts[0].outcomes}
    value = sum(part.value for part in parts) / len(parts)
    same = set(outcomes.values())  # where every one is wrong, or right, Student's interval has no width
    low, high = (
        stats.wilson(value * len(outcomes), len(outcomes))
        if same <= {0} or same <= {1}
        else stats.mean_of(list(outcomes.values()))
    )
    return Score(value, parts[0].n, low, high, "t", parts[0].higher_is_better, outcomes)


def score_of(stage: Stage, group: Group) -> Score | None:
    """The group's score with its 95 % interval; None where the stage lacks a member or a member has no interval.

    Pooled questions have Wilson's interval. A mean of tasks joins its members' own intervals (MOVER).
    """
    scores = scores_in(stage, group)
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


def why_not(before: Stage, after: Stage, group: Group) -> str | None:
    """Why the group's scores of two stages cannot be compared, in words; None where they can."""
    for old, new in zip(keys_in(before, group), keys_in(after, group), strict=True):
        if reason := _why_not(before, after, old, new):
            return reason if len(group.members) == 1 else f"{old[0]}: {reason}"
    return None


def _why_not(before: Stage, after: Stage, old_key: ScoreKey, new_key: ScoreKey) -> str | None:
    for stage, key in ((before, old_key), (after, new_key)):
        if member(stage, key) is None:
            return f"not measured on {stage.name}"
    old, new = before.docs[old_key[0]], after.docs[new_key[0]]
    if len(old) != len(new):
        return f"{len(old)} samples on {before.name}, {len(new)} on {after.name}"
    differing = sum(hashes[0] != new.get(doc, ("", ""))[0] for doc, hashes in old.items())
    if differing:
        return f"{differing} of {len(old)} documents differ"
    facts = {"version": "task versions", "n_shot": "numbers of shots", "backend": "backends", "dtype": "dtypes"}
    for fact, words in facts.items():
        ours, theirs = (stage.tasks[key[0]].get(fact) for stage, key in ((before, old_key), (after, new_key)))
        if ours != theirs:
            return f"{words} {ours} and {theirs}"
    if before.harness["lm_eval_version"] != after.harness["lm_eval_version"]:
        return f"lm-eval {before.harness['lm_eval_version']} and {after.harness['lm_eval_version']}"
    for fact, words in (("chat_template_sha", "chat templates"), ("system_instruction_sha", "system instructions")):
        if before.harness[fact] != after.harness[fact]:
            return f"{words} {_short(before.harness[fact])} and {_short(after.harness[fact])}"
    # What no setting above explains: another draw of the examples, or an edited task.
    differing = sum(hashes[1] != new[doc][1] for doc, hashes in old.items())
    return f"{differing} of {len(old)} prompts differ" if differing else None


def _short(sha: str | None) -> str:
    return "none" if sha is None else sha[:8]


FEWEST = 10  # samples of a task whose scores are not 0 or 1: a spread from fewer is no guide


def compare(before: Stage, after: Stage, group: Group) -> dict[str, Any]:
    """The paired comparison of two stages: `change` with its interval and `p`, or the `reason` why there is none.

    McNemar's test where the questions pool to 0 and 1, the paired bootstrap over one task's other scores, the
    stratified z test over a mean of tasks. `mark` is left at "no clear difference" for Holm's correction to change.
    """
    pair: dict[str, Any] = {"before": before.name, "after": after.name}
    if reason := why_not(before, after, group):
        return pair | {"mark": "not comparable", "reason": reason}
    old, new = scores_in(before, group), scores_in(after, group)
    change = _value(new, group) - _value(old, group)
    pair |= {"change": change, "gain": change if new[0].higher_is_better else -change}
    if any(score.outcomes is None for score in (*old, *new)):
        return pair | {"mark": "not tested", "reason": "the score is no mean of its samples"}
    changes = [
        [b.outcomes[doc] - outcome for doc, outcome in a.outcomes.items()] for a, b in zip(old, new, strict=True)
    ]
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


def _value(scores: list[Score], group: Group) -> float:
    weights = _weights(group, scores)
    return sum(w * score.value for w, score in zip(weights, scores, strict=True)) / sum(weights)
