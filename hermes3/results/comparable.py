"""May two results be compared? Every rule stands here; each answer is a reason in words, or None."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes3.files import UserError, read_yaml
from hermes3.results.published import PublishedRow
from hermes3.results.score import Group, Score, ScoreKey

if TYPE_CHECKING:
    from hermes3.results.lm_eval import Evaluation, ResultsFile

FACTS = read_yaml(Path(__file__).with_suffix(".yml"))


def refuse_mixture(folder: Path, fact: str, files: list["ResultsFile"]) -> None:
    """`UserError` when two results files in `folder` differ in a fact of the harness."""
    for file in files:
        value, first = file.harness[fact], files[0].harness[fact]
        if value != first:
            places = f"{value} in {file.path.relative_to(folder)}, {first} in {files[0].path.relative_to(folder)}"
            wrong = f"results of two {FACTS['shared'][fact]} in one folder: {places}"
            raise UserError(f"{folder}: {wrong}; move one of them to a folder of its own")


def why_not(before: "Evaluation", after: "Evaluation", group: Group) -> str | None:
    """Why the group's scores of two evaluations cannot be compared."""
    for old, new in zip(before.keys(group), after.keys(group), strict=True):
        if reason := _why_not(before, after, old, new):
            return reason if len(group.members) == 1 else f"{old[0]}: {reason}"
    return None


def _why_not(before: "Evaluation", after: "Evaluation", old_key: ScoreKey, new_key: ScoreKey) -> str | None:
    both = ((before, old_key), (after, new_key))
    for one, key in both:
        if key not in one.scores:
            return f"not measured on {one.name}"
        if not one.docs[key[0]]:
            return f"no samples of {one.name}, and so no paired test"
    old, new = (one.docs[key[0]] for one, key in both)
    if len(old) != len(new):
        return f"{len(old)} samples on {before.name}, {len(new)} on {after.name}"
    if count := sum(hashes[0] != new.get(doc, ("", ""))[0] for doc, hashes in old.items()):
        return f"{count} of {len(old)} documents differ"
    ours, theirs = (one.harness | one.tasks[key[0]] for one, key in both)
    for fact, words in FACTS["compared"].items():
        if ours.get(fact) != theirs.get(fact):
            digits = 8 if fact in ("chat_template", "system_instruction_sha") else None
            values = ("none" if facts.get(fact) is None else str(facts[fact])[:digits] for facts in (ours, theirs))
            return f"{words} {' and '.join(values)}"
    # what no fact above explains: another draw of the examples, or an edited task
    count = sum(hashes[1] != new[doc][1] for doc, hashes in old.items())
    return f"{count} of {len(old)} prompts differ" if count else None


def why_not_published(ours: "Evaluation", group: Group | None, score: Score | None, row: PublishedRow) -> str | None:
    """Why the evaluation's score cannot be compared with a published one."""
    members = zip(group.members, ours.keys(group), strict=True) if group else ()
    lacking = {task: (metric, key[0]) for (task, metric, _), key in members if key not in ours.scores}
    for task, (metric, name) in lacking.items():
        if name in ours.tasks:
            return f"measured without the metric {metric}"
        for other, facts in ours.tasks.items():
            if other.partition(" (")[0] == task:
                return f"measured with {facts['n_shot']} shots, published with {row.shots}"
    if group is None or len(lacking) == len({task for task, _, _ in group.members}):
        return "not measured"
    if lacking:
        return f"{len(lacking)} of {len(group.members)} tasks not measured: {', '.join(list(lacking)[:3])}"
    if row.unlike:
        return row.unlike
    tasks = {key[0]: ours.tasks[key[0]] for key in ours.keys(group)}
    if judge := next((facts["judge"] for facts in tasks.values() if "judge" in facts), None):
        return f"judged by {judge} in a wording of our own; the published score is by another judge or wording"
    shots = sorted({facts["n_shot"] for facts in tasks.values()})
    if row.shots is not None and shots != [row.shots]:
        return f"measured with {' and '.join(map(str, shots))} shots, published with {row.shots}"
    protocols = [ours.protocol(task) for task in tasks if group.protocol]
    if other := next((protocol for protocol in protocols if protocol != group.protocol), None):
        return f"under another protocol: {other}; the paper's: {group.protocol}"
    answered, questions = (sum(facts[key] for facts in tasks.values()) for key in ("samples", "questions"))
    if answered != questions:
        return f"only {answered} of {questions} questions (--limit)"
    if score is None or score.low is None:
        return "no interval: the harness gave no standard error and no samples that average to the score"
    return "no interval: every sample scored the same" if score.low == score.high else None


def why_not_change(row: dict[str, Any] | None) -> str | None:
    """Why the change between two stages of ours cannot stand beside the paper's, though our stages are comparable."""
    if row is not None and row["part"]:
        return "only a part of the questions"
    return "by another judge, or in another wording" if row is not None and row["scale"] == 1 else None  # MT-Bench


def why_not_in_mean(evaluations: list["Evaluation"], group: Group, row: dict[str, Any]) -> str | None:
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
