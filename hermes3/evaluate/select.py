"""Choosing an epoch by the paper's rule (its Table 2).

Every group's scores are min-max-normalised over the epochs, and the epoch with the highest mean of the groups is kept.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hermes3.evaluate.epoch import epoch_model
from hermes3.evaluate.setting import fingerprint
from hermes3.evaluate.suite import Group, load
from hermes3.files import write_text
from hermes3.report.results import Stage, read_stage, scale_of, with_shots
from hermes3.train.checkpoints import epochs_of


def choose(scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The rule. `scores`: group -> epoch -> score, higher is better.

    Returns `epoch`, `totals` (epoch -> 0 to 100, None for a single epoch) and `notes` in words. `ValueError` where an
    epoch lacks a score.
    """
    if not scores:
        raise ValueError("no group is left to choose by")
    epochs = sorted({epoch for of_group in scores.values() for epoch in of_group})
    for group, of_group in scores.items():
        if missing := [epoch for epoch in epochs if of_group.get(epoch) is None or of_group[epoch] != of_group[epoch]]:
            raise ValueError(f"{group}: no score of epoch {', '.join(map(str, missing))}; evaluate it there too")
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
    `ValueError` where a score is missing, the epochs were not evaluated alike, or results are of another model.
    """
    suite, left_out = load(suite_name), set(without)
    if unknown := sorted(left_out - suite.groups.keys()):
        raise ValueError(f"--without {unknown[0]}: no group of {suite.name}; there are {', '.join(suite.groups)}")
    models = {epoch: epoch_model(run, epoch) for epoch in results}
    settings = {epoch: _setting(folder, epoch, models[epoch]) for epoch, folder in results.items()}
    _evaluated_alike(results, settings)
    stages = {epoch: read_stage(f"epoch {epoch}", folder) for epoch, folder in results.items()}
    groups = {name: group for name, group in suite.groups.items() if group.selects and name not in left_out}
    scores = {
        name: {epoch: _group_score(name, group, stage) for epoch, stage in stages.items()}
        for name, group in groups.items()
    }
    for name, group in groups.items():
        _asked_alike(name, group, stages.values())
    chosen = choose(scores)
    if left_out:
        chosen["notes"].append(f"Chosen without {', '.join(sorted(left_out))}.")
    if (limit := next(iter(settings.values()))["limit"]) is not None:
        chosen["notes"].append(f"Only {limit} questions a task: a first look, no ground to choose on.")
    if left := sorted(set(epochs_of(run)) - set(results)):
        chosen["notes"].append(f"Epoch {', '.join(map(str, left))} of {run} was not among them.")
    folders = {epoch: str(folder) for epoch, folder in results.items()}
    record = {"run": str(run), "suite": suite.name, "scores": scores, **chosen, "results": folders}
    record |= {"model": str(models[chosen["epoch"]])}
    write_text(run / "select.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    link(run / "best", models[chosen["epoch"]])
    link(run / "best_results", results[chosen["epoch"]])
    return record


def table(chosen: dict[str, Any]) -> str:
    """The scores, the normalised mean and the choice as text; fractions as percentages."""
    totals = chosen["totals"]
    rows = [("", *(f"epoch {epoch}" for epoch in totals))]
    for group, of_group in chosen["scores"].items():
        factor = scale_of(group)
        rows.append((group, *(f"{factor * of_group[epoch]:.2f}" for epoch in totals)))
    rows.append(("normalised mean", *("-" if total is None else f"{total:.2f}" for total in totals.values())))
    width = max(len(row[0]) for row in rows)
    lines = ["  ".join([row[0].ljust(width), *(cell.rjust(7) for cell in row[1:])]) for row in rows]
    links = [f"{chosen['run']}/best -> {chosen['model']}"] if "run" in chosen else []
    return "\n".join([*lines, f"chosen: epoch {chosen['epoch']}", *chosen["notes"], *links])


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, replacing a former link in one step."""
    if path.exists() and not path.is_symlink():
        raise ValueError(f"{path} is there and no link; move it away")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=True)
    os.replace(new, path)


def named(pairs: Iterable[str]) -> dict[int, Path]:
    """{epoch: folder} of arguments given as EPOCH=FOLDER, in the order of the epochs."""
    found: dict[int, Path] = {}
    for pair in pairs:
        epoch, equals, folder = pair.partition("=")
        if not (epoch.isdigit() and equals and folder):
            raise ValueError(f"{pair}: give it as EPOCH=FOLDER")
        if int(epoch) in found:
            raise ValueError(f"epoch {epoch} is given twice")
        found[int(epoch)] = Path(folder)
    return dict(sorted(found.items()))


def _setting(folder: Path, epoch: int, model: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no run.json; evaluate with `hermes3 eval RUN --epoch {epoch} --out {folder}`")
    setting = json.loads(path.read_text(encoding="utf-8"))["setting"]
    if Path(setting["model"]).resolve() != model.resolve():
        raise ValueError(f"{folder}: results of {setting['model']}, but epoch {epoch} is {model}")
    if setting["weights"] != fingerprint(model):
        raise ValueError(f"{folder}: {model} has changed since it was evaluated; evaluate it again")
    return setting


def _evaluated_alike(results: dict[int, Path], settings: dict[int, dict[str, Any]]) -> None:
    first, *others = settings
    for epoch in others:
        for key in settings[first].keys() - {"model", "weights"}:
            ours, theirs = settings[first][key], settings[epoch].get(key)
            if ours != theirs:
                raise ValueError(
                    f"{results[epoch]}: {key} is {theirs}, in {results[first]} it is {ours}; evaluate all epochs alike"
                )


def _asked_alike(name: str, group: Group, stages: Iterable[Stage]) -> None:
    """`ValueError` where a task of the group asked other questions, or was rated by another judge, at some epoch."""
    first, *others = stages
    for other in others:
        for ours, theirs in zip(_members(name, group, first), _members(name, group, other), strict=True):
            versions = [stage.tasks[key]["version"] for stage, key in ((first, ours), (other, theirs))]
            asked = [
                {doc: hashes[0] for doc, hashes in stage.docs[key].items()}
                for stage, key in ((first, ours), (other, theirs))
            ]
            if versions[0] != versions[1]:
                wrong = f"version {versions[1]}, in {first.folder} it is {versions[0]}"
            elif asked[0] != asked[1]:
                wrong = f"{len(asked[1])} samples, not the {len(asked[0])} of {first.folder}"
            else:
                continue
            raise ValueError(f"{other.folder}: {name}: {theirs} has {wrong}; evaluate all epochs alike")


def _group_score(name: str, group: Group, stage: Stage) -> float:
    values, weights = [], []
    for task in group.tasks:
        for key in _keys(name, group, task, stage):
            of_metrics = [_value(stage, key, metric) for metric in group.metrics(task)]
            values.append(sum(of_metrics) / len(of_metrics))
            weights.append(stage.tasks[key]["samples"] if group.aggregation == "weighted" else 1)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _members(name: str, group: Group, stage: Stage) -> list[str]:
    return [key for task in group.tasks for key in _keys(name, group, task, stage)]


def _keys(name: str, group: Group, task: str, stage: Stage) -> list[str]:
    """The stage's names of the tasks that `task` stands for."""
    found = []
    for leaf in _leaves(task, stage):
        other = with_shots(leaf, group.num_fewshot)  # where the newest results are of another number of shots
        key = other if other in stage.tasks else leaf
        if key not in stage.tasks:
            remedy = f"evaluate it there, or leave the group out with --without {name}"
            raise ValueError(f"{stage.folder}: {name} needs {leaf}, which was not measured; {remedy}")
        shots = stage.tasks[key]["n_shot"]
        if shots != group.num_fewshot:
            raise ValueError(f"{stage.folder}: {leaf} has {shots} shots, {name} wants {group.num_fewshot}")
        found.append(key)
    return found


def _leaves(task: str, stage: Stage) -> list[str]:
    return [leaf for one in stage.subtasks.get(task, []) for leaf in _leaves(one, stage)] or [task]


def _value(stage: Stage, task: str, metric: str) -> float:
    wanted, _, filter_key = metric.partition(",")
    found = [
        score
        for (of_task, name, of_filter), score in stage.scores.items()
        if (of_task, name) == (task, wanted) and filter_key in ("", of_filter)
    ]
    if len(found) != 1:
        raise ValueError(f"{stage.folder}: {task} has {len(found)} scores {metric}; name one, as METRIC,FILTER")
    return found[0].value
