"""May two results be compared? Every rule stands here; each answer is a reason in words, or None."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes3.files import UserError

if TYPE_CHECKING:
    from hermes3.results.groups import Group
    from hermes3.results.lm_eval import Evaluation, Score, ScoreKey
    from hermes3.results.published import PublishedRow

# facts of a task, and of the harness, that must be equal
TASK_FACTS = {"version": "task versions", "n_shot": "numbers of shots", "backend": "backends", "dtype": "dtypes"}
HARNESS_FACTS = {"chat_template_sha": "chat templates", "system_instruction_sha": "system instructions"}
IN_ONE_FOLDER = {"model": "models", "lm_eval_version": "versions of lm-eval", **HARNESS_FACTS}


def refuse_mixture(folder: Path, facts: dict[Path, dict[str, str | None]]) -> None:
    """`UserError` when two results files in `folder` differ in a fact (file -> fact -> value)."""
    first, *others = facts or [None]
    for path in others:
        for key, value in facts[path].items():
            if value != facts[first][key]:
                raise UserError(
                    f"{folder}: results of two {IN_ONE_FOLDER[key]} in one folder: {value} in "
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
        if one.score(key) is None:
            return f"not measured on {one.name}"
    old, new = before.docs[old_key[0]], after.docs[new_key[0]]
    if len(old) != len(new):
        return f"{len(old)} samples on {before.name}, {len(new)} on {after.name}"
    if count := sum(hashes[0] != new.get(doc, ("", ""))[0] for doc, hashes in old.items()):
        return f"{count} of {len(old)} documents differ"
    for fact, words in TASK_FACTS.items():
        ours, theirs = before.tasks[old_key[0]].get(fact), after.tasks[new_key[0]].get(fact)
        if ours != theirs:
            return f"{words} {ours} and {theirs}"
    if before.harness["lm_eval_version"] != after.harness["lm_eval_version"]:
        return f"lm-eval {before.harness['lm_eval_version']} and {after.harness['lm_eval_version']}"
    for fact, words in HARNESS_FACTS.items():
        ours, theirs = (one.harness[fact] and one.harness[fact][:8] for one in (before, after))
        if before.harness[fact] != after.harness[fact]:
            return f"{words} {ours or 'none'} and {theirs or 'none'}"
    # what no fact above explains: another draw of the examples, or an edited task
    count = sum(hashes[1] != new[doc][1] for doc, hashes in old.items())
    return f"{count} of {len(old)} prompts differ" if count else None


def not_measured(evaluation: "Evaluation", group: "Group") -> dict[str, int | None]:
    """The group's tasks that `evaluation` lacks -> the number of shots that it has them with, or None."""
    lacking = [key[0] for key in evaluation.keys(group) if evaluation.score(key) is None]
    plain = {task: task.rpartition(" (")[0] or task for task in lacking}
    other = {task: evaluation.tasks.get(name) if name != task else None for task, name in plain.items()}
    return {plain[task]: facts and facts["n_shot"] for task, facts in other.items()}


def why_not_published(
    evaluation: "Evaluation", group: "Group | None", score: "Score | None", row: "PublishedRow"
) -> str | None:
    """Why the evaluation's score cannot be compared with a published one."""
    if group is None:
        return "not measured"
    lacking = not_measured(evaluation, group)
    for shots in lacking.values():
        if shots is not None:
            return f"measured with {shots} shots, published with {row.shots}"
    if len(lacking) == len(group.members):
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
    asked, questions = sum(fact["samples"] for fact in facts), sum(fact["questions"] for fact in facts)
    if asked != questions:
        return f"only {asked} of {questions} questions (--limit)"
    if score is None or score.low is None:
        return "no interval: the harness gave no standard error and no samples that average to the score"
    if score.low == score.high:
        return "no interval: every sample scored the same"
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
