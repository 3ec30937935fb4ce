"""May two results be compared? Every rule stands here; each answer is a reason in words, or None."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes3.files import UserError

if TYPE_CHECKING:
    from hermes3.results.groups import Group
    from hermes3.results.lm_eval import Evaluation, Score, ScoreKey
    from hermes3.results.published import PublishedRow

# facts of a task, or of all that the harness did, that must be equal
FACTS = {
    "version": "task versions",
    "n_shot": "numbers of shots",
    "backend": "backends",
    "dtype": "dtypes",
    "lm_eval_version": "versions of lm-eval",
    "chat_template": "chat templates",
    "system_instruction_sha": "system instructions",
}
SHARED = FACTS | {"chat_template_sha": "chat templates"}  # by the files of one folder


def refuse_mixture(folder: Path, facts: dict[Path, dict[str, str | None]]) -> None:
    """`UserError` when two results files in `folder` differ in a fact (file -> fact -> value)."""
    first, *others = facts or [None]
    for path in others:
        for key, value in facts[path].items():
            if value != facts[first][key]:
                raise UserError(
                    f"{folder}: results of two {SHARED.get(key, 'models')} in one folder: {value} in "
                    f"{path.relative_to(folder)}, {facts[first][key]} in {first.relative_to(folder)}; move one of them "
                    "to a folder of its own"
                )


def why_not(before: "Evaluation", after: "Evaluation", group: "Group") -> str | None:
    """Why the group's scores of two evaluations cannot be compared."""
    for old, new in zip(before.keys(group), after.keys(group), strict=True):
        if reason := _why_not(before, after, old, new):
            return reason if len(group.members) == 1 else f"{old[0]}: {reason}"
    return None


def _why_not(before: "Evaluation", after: "Evaluation", old_key: "ScoreKey", new_key: "ScoreKey") -> str | None:
    for one, key in ((before, old_key), (after, new_key)):
        if key not in one.scores:
            return f"not measured on {one.name}"
    old, new = before.docs[old_key[0]], after.docs[new_key[0]]
    if without := next((one.name for one, docs in ((before, old), (after, new)) if not docs), None):
        return f"no samples of {without}, and so no paired test"
    if len(old) != len(new):
        return f"{len(old)} samples on {before.name}, {len(new)} on {after.name}"
    if count := sum(hashes[0] != new.get(doc, ("", ""))[0] for doc, hashes in old.items()):
        return f"{count} of {len(old)} documents differ"
    ours, theirs = before.harness | before.tasks[old_key[0]], after.harness | after.tasks[new_key[0]]
    for fact, words in FACTS.items():
        if ours.get(fact) != theirs.get(fact):
            hashed = fact in ("chat_template", "system_instruction_sha")
            values = ("none" if facts.get(fact) is None else str(facts[fact]) for facts in (ours, theirs))
            values = (value[:8] if hashed else value for value in values)
            return f"{words.removeprefix('versions of ')} {' and '.join(values)}"
    # what no fact above explains: another draw of the examples, or an edited task
    count = sum(hashes[1] != new[doc][1] for doc, hashes in old.items())
    return f"{count} of {len(old)} prompts differ" if count else None


def not_measured(evaluation: "Evaluation", group: "Group") -> dict[str, str]:
    """The group's tasks that `evaluation` lacks -> what there is of them, in words."""
    lacking = {}
    for (task, metric, _), key in zip(group.members, evaluation.keys(group), strict=True):
        if key not in evaluation.scores:
            shots = [facts["n_shot"] for name, facts in evaluation.tasks.items() if name.partition(" (")[0] == task]
            lacking[task] = f"measured with {shots[0]} shots" if shots else "not measured"
            if key[0] in evaluation.tasks:
                lacking[task] = f"measured without the metric {metric}"
    return lacking


def why_not_published(
    evaluation: "Evaluation", group: "Group | None", score: "Score | None", row: "PublishedRow"
) -> str | None:
    """Why the evaluation's score cannot be compared with a published one."""
    lacking = not_measured(evaluation, group) if group else {}
    if words := next((words for words in lacking.values() if words != "not measured"), None):
        return f"{words}, published with {row.shots}" if words.endswith("shots") else words
    if group is None or len(lacking) == len({task for task, _, _ in group.members}):
        return "not measured"
    if lacking:
        return f"{len(lacking)} of {len(group.members)} tasks not measured: {', '.join(list(lacking)[:3])}"
    if row.unlike:
        return row.unlike
    facts = [evaluation.tasks[key[0]] for key in evaluation.keys(group)]
    if judge := next((fact["judge"] for fact in facts if "judge" in fact), None):
        return f"judged by {judge} in a wording of our own; the published score is by another judge or wording"
    shots = sorted({fact["n_shot"] for fact in facts})
    if row.shots is not None and shots != [row.shots]:
        return f"measured with {' and '.join(map(str, shots))} shots, published with {row.shots}"
    if other := under_another_protocol(evaluation, group):
        return other
    asked, questions = sum(fact["samples"] for fact in facts), sum(fact["questions"] for fact in facts)
    if asked != questions:
        return f"only {asked} of {questions} questions (--limit)"
    if score is None or score.low is None:
        return "no interval: the harness gave no standard error and no samples that average to the score"
    return "no interval: every sample scored the same" if score.low == score.high else None


def under_another_protocol(evaluation: "Evaluation", group: "Group") -> str | None:
    """How the group's tasks were asked, and how its suite has it, where these differ in more than the shots."""
    for key in evaluation.keys(group):
        if group.protocol and (asked := evaluation.protocol(key[0])) != group.protocol:
            return f"under another protocol: {asked}; the paper's: {group.protocol}"
    return None


def why_not_change(row: dict[str, Any] | None) -> str | None:
    """Why the change between two stages of ours cannot stand beside the paper's, though our stages are comparable."""
    if row is not None and row["part"]:
        return "only a part of the questions"
    if row is not None and row["scale"] == 1:  # MT-Bench
        return "by another judge, or in another wording"
    return None


def why_not_in_mean(evaluations: list["Evaluation"], group: "Group", row: dict[str, Any]) -> str | None:
    """Why a row of the scores table is no part of the stages' means."""
    if row["metric"] == "ended":
        return "it says that an answer stops, not that it is right"
    if row["scale"] == 1:
        return "not in percent"
    if missing := [name for name, score in row["scores"].items() if score is None]:
        return f"not measured on {missing[0]}"
    reasons = (why_not(evaluations[0], other, group) for other in evaluations[1:])
    if reason := next(filter(None, reasons), None):
        return reason
    scores = list(row["scores"].values())
    if any(score["low"] is None for score in scores):
        return "no interval"
    return None if scores[0]["higher_is_better"] else "lower is better"
