"""Choosing an epoch by the paper's rule (its Table 2): every group's scores are min-max-normalised over the epochs, and
the epoch with the highest mean of the groups is kept."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hermes3.evaluate.run import fingerprint
from hermes3.files import UserError, read_json, write_text
from hermes3.model_folder import check_model
from hermes3.results.comparable import why_not
from hermes3.results.groups import resolve, value_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.published import load as load_published
from hermes3.results.suite import load
from hermes3.train.checkpoints import epochs_of, whole_model


def choose(scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The rule. `scores`: group -> epoch -> score, higher is better. `UserError` where an epoch lacks a score.
    Returns `epoch`, `totals` (epoch -> 0 to 100, None for a single epoch) and `notes` in words."""
    if not scores:
        raise UserError("no group is left to choose by; leave fewer out")
    epochs = sorted({epoch for of_group in scores.values() for epoch in of_group})
    for group, of_group in scores.items():
        if missing := [epoch for epoch in epochs if of_group.get(epoch) is None or of_group[epoch] != of_group[epoch]]:
            raise UserError(f"{group}: no score of epoch {', '.join(map(str, missing))}; evaluate it there too")
    if len(epochs) == 1:
        return {"epoch": epochs[0], "totals": {epochs[0]: None}, "notes": ["One epoch: nothing to choose from."]}
    notes, sums = [], dict.fromkeys(epochs, 0.0)
    for group, of_group in scores.items():
        low, high = min(of_group.values()), max(of_group.values())
        if low == high:  # 0 / 0 of the rule; the same for every epoch, so it decides nothing
            notes.append(f"{group} is {low:g} at every epoch: it counts 0 for each, and decides nothing.")
        for epoch in epochs:
            sums[epoch] += (of_group[epoch] - low) / (high - low or 1.0)
    totals = {epoch: 100 * total / len(scores) for epoch, total in sums.items()}
    best = [epoch for epoch in epochs if totals[epoch] > max(totals.values()) - 1e-9]
    if len(best) > 1:
        notes.append(f"Epochs {', '.join(map(str, best))} are equal: the first of them is taken, as it trained least.")
    return {"epoch": best[0], "totals": totals, "notes": notes}


def select(run: Path, suite_name: str | None, results: dict[int, Path], without: Iterable[str] = ()) -> dict[str, Any]:
    """Choose among the epochs of `run`, which were evaluated alike; `results`: epoch -> folder of `hermes3 eval`.
    Writes `run`/select.json, and links `run`/best to the model and `run`/best_results to its results."""
    suite, left_out = load(suite_name), set(without)
    if unknown := sorted(left_out - suite.groups.keys()):
        raise UserError(f"--without {unknown[0]}: no group of {suite.name}; there are {', '.join(suite.groups)}")
    models = {epoch: epoch_model(run, epoch) for epoch in results}
    settings = {epoch: _setting(folder, epoch, models[epoch]) for epoch, folder in results.items()}
    first = next(iter(results))
    for epoch, setting in settings.items():
        for key in settings[first].keys() - {"model", "weights"}:
            ours, theirs = settings[first][key], setting.get(key)
            if ours != theirs:
                wrong = f"{key} is {theirs}, in {results[first]} it is {ours}"
                raise UserError(f"{results[epoch]}: {wrong}; evaluate all epochs alike")
    evaluations = {epoch: read_evaluation(f"epoch {epoch}", folder) for epoch, folder in results.items()}
    scores, signed, scales = {}, {}, {}
    for name in (name for name, spec in suite.groups.items() if spec.selects and name not in left_out):
        group = resolve(list(evaluations.values()), suite.name, name, suite.groups[name])
        for one in evaluations.values():
            if reason := why_not(evaluations[first], one, group):
                remedy = f"evaluate all epochs alike, or leave the group out with --without {name}"
                raise UserError(f"{one.folder}: {name}, against {results[first]}: {reason}; {remedy}")
        score = evaluations[first].group_scores(group)[0]
        sign = -1 if score.higher_is_better is False else 1
        scales[name], scores[name] = score.scale, {epoch: value_of(one, group) for epoch, one in evaluations.items()}
        signed[name] = {epoch: sign * value for epoch, value in scores[name].items()}
    chosen = choose(signed)
    notes = chosen["notes"]
    if left_out:
        notes.append(f"Chosen without {', '.join(sorted(left_out))}.")
    if (limit := settings[first]["limit"]) is not None:
        notes.append(f"Only {limit} questions per task: a first look, no ground to choose on.")
    if left := sorted(set(epochs_of(run)) - set(results)):
        notes.append(f"Epoch {', '.join(map(str, left))} of {run} was not among them.")
    if len(results) > 1:
        notes.append("The chosen epoch's scores are the best of several on the same questions: a little too high.")
    model, folder = models[chosen["epoch"]], results[chosen["epoch"]]
    record = {"run": str(run), "suite": suite.name, "scores": scores, "scales": scales, **chosen, "model": str(model)}
    record["results"] = {epoch: str(folder) for epoch, folder in results.items()}
    write_text(run / "select.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    link(run / "best", model)
    link(run / "best_results", folder)
    return record


def select_published(name: str) -> dict[str, Any]:
    """The rule on the printed scores of table `name` of eval/published. `UserError` if its columns are no epochs."""
    printed = load_published(name)
    epochs = [column.removeprefix("epoch_") for column in printed.columns]
    if not all(epoch.isdigit() for epoch in epochs):
        raise UserError(f"--published {name}: its columns are models, not the epochs of one run; give table2")
    scores = {group: dict(zip(map(int, epochs), row.values, strict=True)) for group, row in printed.rows.items()}
    return {"scores": scores, "scales": dict.fromkeys(scores, 1), **choose(scores)}  # as printed, whatever the scale


def table(chosen: dict[str, Any]) -> str:
    totals = chosen["totals"]
    rows = {"": [f"epoch {epoch}" for epoch in totals]}
    for group, of_group in chosen["scores"].items():
        rows[group] = [f"{chosen['scales'][group] * of_group[epoch]:.2f}" for epoch in totals]
    rows["normalised mean"] = ["-" if total is None else f"{total:.2f}" for total in totals.values()]
    lines = ["  ".join([f"{name:<24}", *(f"{cell:>7}" for cell in cells)]) for name, cells in rows.items()]
    links = [f"{chosen['run']}/best -> {chosen['model']}"] if "run" in chosen else []
    return "\n".join([*lines, f"chosen: epoch {chosen['epoch']}", *chosen["notes"], *links])


def epoch_model(run: Path, epoch: int, make: bool = True) -> Path:
    """The epoch's checkpoint if it is a whole model, else RUN/epochs/N, joined from its parts if `make`.
    Without `make`, as in a dry run, the epoch need not be trained yet; stderr says so."""
    joined = run / "epochs" / str(epoch)
    try:
        epochs = epochs_of(run)
        if epoch not in epochs:
            raise UserError(f"{run}: no epoch {epoch}; there are {', '.join(map(str, sorted(epochs)))}")
        if make:
            return whole_model(epochs[epoch], joined)
        check_model(epochs[epoch])
        return epochs[epoch]
    except UserError as error:
        if make:
            raise
        print(f"not there yet, so its place may be another: {error}", file=sys.stderr)
        return joined


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, replacing a former link in one step."""
    if path.exists() and not path.is_symlink():
        raise UserError(f"{path} is there and no link; move it away")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=True)
    os.replace(new, path)


def _setting(folder: Path, epoch: int, model: Path) -> dict[str, Any]:
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: no run.json; evaluate with `hermes3 eval RUN --epoch {epoch} --out {folder}`")
    setting = read_json(folder / "run.json", "setting")["setting"]
    if Path(setting["model"]).resolve() != model.resolve():
        raise UserError(f"{folder}: results of {setting['model']}, but epoch {epoch} is {model}; evaluate that")
    if setting["weights"] != fingerprint(model):
        raise UserError(f"{folder}: {model} has changed since it was evaluated; evaluate it again")
    return setting
