"""Choosing an epoch by the paper's rule (its Table 2).

Every group's scores are min-max-normalised over the epochs, and the epoch with the highest mean of the groups is kept.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hermes3.evaluate.setting import fingerprint
from hermes3.files import UserError, write_text
from hermes3.model_folder import check_model
from hermes3.results.comparable import not_measured, why_not
from hermes3.results.groups import Group, resolve, value_of
from hermes3.results.lm_eval import Evaluation, read_evaluation
from hermes3.results.published import load as load_published
from hermes3.results.suite import load
from hermes3.train.checkpoints import epochs_of, whole_model


def choose(scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The rule. `scores`: group -> epoch -> score, higher is better.

    Returns `epoch`, `totals` (epoch -> 0 to 100, None for a single epoch) and `notes` in words. `UserError` where an
    epoch lacks a score.
    """
    if not scores:
        raise UserError("no group is left to choose by; leave fewer out")
    epochs = sorted({epoch for of_group in scores.values() for epoch in of_group})
    for group, of_group in scores.items():
        if missing := [epoch for epoch in epochs if of_group.get(epoch) is None or of_group[epoch] != of_group[epoch]]:
            raise UserError(f"{group}: no score of epoch {', '.join(map(str, missing))}; evaluate it there too")
    if len(epochs) == 1:
        return {"epoch": epochs[0], "totals": {epochs[0]: None}, "notes": ["One epoch: nothing to choose from."]}
    notes, normalised = [], []
    for group, of_group in scores.items():
        low, high = min(of_group.values()), max(of_group.values())
        if low == high:  # 0 / 0 of the rule; the same for every epoch, so it decides nothing
            notes.append(f"{group} is {low:g} at every epoch: it counts 0 for each, and decides nothing.")
        span = (high - low) or 1.0
        normalised.append({epoch: (of_group[epoch] - low) / span for epoch in epochs})
    totals = {epoch: 100 * sum(one[epoch] for one in normalised) / len(normalised) for epoch in epochs}
    best = [epoch for epoch in epochs if totals[epoch] > max(totals.values()) - 1e-9]
    if len(best) > 1:
        notes.append(f"Epochs {', '.join(map(str, best))} are equal: the first of them is taken, as it trained least.")
    return {"epoch": best[0], "totals": totals, "notes": notes}


def select(run: Path, suite_name: str, results: dict[int, Path], without: Iterable[str] = ()) -> dict[str, Any]:
    """Choose among the epochs of `run`. `results`: epoch -> folder of `hermes3 eval --epoch`. `without`: groups.

    Writes `run`/select.json, and the links `run`/best to the epoch's whole model and `run`/best_results to its results.
    `UserError` where a score is missing, the epochs were not evaluated alike, or results are of another model.
    """
    suite, left_out = load(suite_name), set(without)
    if unknown := sorted(left_out - suite.groups.keys()):
        raise UserError(f"--without {unknown[0]}: no group of {suite.name}; there are {', '.join(suite.groups)}")
    models = {epoch: epoch_model(run, epoch) for epoch in results}
    settings = {epoch: _setting(folder, epoch, models[epoch]) for epoch, folder in results.items()}
    first, *others = results
    for epoch in others:
        for key in settings[first].keys() - {"model", "weights"}:
            if (ours := settings[first][key]) != (theirs := settings[epoch].get(key)):
                raise UserError(
                    f"{results[epoch]}: {key} is {theirs}, in {results[first]} it is {ours}; evaluate all epochs alike"
                )
    evaluations = {epoch: read_evaluation(f"epoch {epoch}", folder) for epoch, folder in results.items()}
    groups = [
        resolve(list(evaluations.values()), suite.name, name, spec)
        for name, spec in suite.groups.items()
        if spec.selects and name not in left_out
    ]
    for group in groups:
        _refuse_unlike(group, list(evaluations.values()))
    scores = {group.name: {epoch: value_of(one, group) for epoch, one in evaluations.items()} for group in groups}
    firsts = {group.name: evaluations[first].group_scores(group)[0] for group in groups}
    signs = {name: -1 if score.higher_is_better is False else 1 for name, score in firsts.items()}
    chosen = choose({name: {epoch: signs[name] * one for epoch, one in of.items()} for name, of in scores.items()})
    chosen["scales"] = {name: score.scale for name, score in firsts.items()}
    if left_out:
        chosen["notes"].append(f"Chosen without {', '.join(sorted(left_out))}.")
    if (limit := settings[first]["limit"]) is not None:
        chosen["notes"].append(f"Only {limit} questions per task: a first look, no ground to choose on.")
    if left := sorted(set(epochs_of(run)) - set(results)):
        chosen["notes"].append(f"Epoch {', '.join(map(str, left))} of {run} was not among them.")
    if others:
        chosen["notes"].append(best_of_several(groups, evaluations, chosen))
    record = {"run": str(run), "suite": suite.name, "scores": scores, **chosen}
    record |= {"results": {epoch: str(folder) for epoch, folder in results.items()}}
    record |= {"model": str(models[chosen["epoch"]])}
    write_text(run / "select.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    link(run / "best", models[chosen["epoch"]])
    link(run / "best_results", results[chosen["epoch"]])
    return record


def best_of_several(groups: list[Group], evaluations: dict[int, Evaluation], chosen: dict[str, Any]) -> str:
    """By how much the chosen epoch's scores flatter it, as the same questions chose it and score it, in a sentence.

    The rule chooses on every other question, and the epoch that it takes is scored on the rest; then the other way
    round. What the mean of both lies below the score on all questions is luck.
    """
    halves = [
        {group.name: {epoch: _half(one, group, half) for epoch, one in evaluations.items()} for group in groups}
        for half in (0, 1)
    ]
    said = "The chosen epoch's scores are the best of several on the questions that chose it"
    if any(None in of_group.values() for half in halves for of_group in half.values()):
        return f"{said}, and so a little too high."
    taken = [choose(half)["epoch"] for half in halves]
    luck = []
    for group in groups:
        apart = sum(halves[1 - half][group.name][epoch] for half, epoch in enumerate(taken)) / 2
        both = sum(halves[half][group.name][chosen["epoch"]] for half in (0, 1)) / 2
        luck.append(f"{group.name} {chosen['scales'][group.name] * (apart - both):+.2f}")
    return f"{said}; chosen on one half and scored on the other they would be otherwise by {', '.join(luck)}."


def _half(evaluation: Evaluation, group: Group, half: int) -> float | None:
    """The group's score, higher is better, on its even (0) or odd (1) questions or passages; None without samples."""
    values, weights = [], []
    for key, score in zip(evaluation.keys(group), evaluation.group_scores(group), strict=True):
        names = evaluation.names_of(key)
        places = {name: place for place, name in enumerate(dict.fromkeys(names.values()))}
        sign = -1 if score.higher_is_better is False else 1
        kept = [sign * value for doc, value in (score.outcomes or {}).items() if places[names[doc]] % 2 == half]
        values.append(sum(kept) / len(kept) if kept else None)
        weights.append(len(kept) if group.by_question else 1)
    if None in values:
        return None
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def select_published(name: str) -> dict[str, Any]:
    """The rule on the printed scores of table `name` of eval/published. `UserError` if its columns are no epochs."""
    printed = load_published(name)
    epochs = [column.removeprefix("epoch_") for column in printed.columns]
    if not all(epoch.isdigit() for epoch in epochs):
        raise UserError(f"--published {name}: its columns are models, not the epochs of one run; give table2")
    scores = {group: dict(zip(map(int, epochs), row.values, strict=True)) for group, row in printed.rows.items()}
    return {"scores": scores, "scales": dict.fromkeys(scores, 1), **choose(scores)}  # as printed, whatever the scale


def table(chosen: dict[str, Any]) -> str:
    """The scores, the normalised mean and the choice as text, each group on its scale."""
    totals, scales = chosen["totals"], chosen["scales"]
    rows = [("", *(f"epoch {epoch}" for epoch in totals))]
    for group, of_group in chosen["scores"].items():
        rows.append((group, *(f"{scales[group] * of_group[epoch]:.2f}" for epoch in totals)))
    rows.append(("normalised mean", *("-" if total is None else f"{total:.2f}" for total in totals.values())))
    width = max(len(row[0]) for row in rows)
    lines = ["  ".join([row[0].ljust(width), *(cell.rjust(7) for cell in row[1:])]) for row in rows]
    links = [f"{chosen['run']}/best -> {chosen['model']}"] if "run" in chosen else []
    return "\n".join([*lines, f"chosen: epoch {chosen['epoch']}", *chosen["notes"], *links])


def epoch_model(run: Path, epoch: int, make: bool = True) -> Path:
    """The epoch's checkpoint if it is a whole model, else RUN/epochs/N, joined from its parts if `make`."""
    epochs = epochs_of(run)
    if epoch not in epochs:
        raise UserError(f"{run}: no epoch {epoch}; there are {', '.join(map(str, sorted(epochs)))}")
    joined = run / "epochs" / str(epoch)
    if make:
        return whole_model(epochs[epoch], joined)
    try:
        check_model(epochs[epoch])
    except ValueError:
        return joined
    return epochs[epoch]


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, replacing a former link in one step."""
    if path.exists() and not path.is_symlink():
        raise UserError(f"{path} is there and no link; move it away")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=True)
    os.replace(new, path)


def _setting(folder: Path, epoch: int, model: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder}: no run.json; evaluate with `hermes3 eval RUN --epoch {epoch} --out {folder}`")
    setting = json.loads(path.read_text(encoding="utf-8"))["setting"]
    if Path(setting["model"]).resolve() != model.resolve():
        raise UserError(f"{folder}: results of {setting['model']}, but epoch {epoch} is {model}; evaluate that")
    if setting["weights"] != fingerprint(model):
        raise UserError(f"{folder}: {model} has changed since it was evaluated; evaluate it again")
    return setting


def _refuse_unlike(group: Group, evaluations: list[Evaluation]) -> None:
    """`UserError` where an epoch lacks a score, asked other questions, or was rated by another judge."""
    for one in evaluations:
        for task, words in not_measured(one, group).items():
            wanted = f", not {group.shots}" if words.endswith("shots") else ""
            raise UserError(
                f"{one.folder}: {group.name} needs {task}, which was {words}{wanted}; evaluate it there, or leave the "
                f"group out with --without {group.name}"
            )
        if reason := why_not(evaluations[0], one, group):
            raise UserError(
                f"{one.folder}: {group.name}, against {evaluations[0].folder}: {reason}; evaluate all epochs alike"
            )
