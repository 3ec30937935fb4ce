"""The ledger: a record per training in runs/NAME.yml, and RUNS.md, the table of them all."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from hermes3.files import ROOT, UserError, read_json, read_model, write_text
from hermes3.page.shell import environment
from hermes3.recipe.hardware import gpu_of, hardware_of
from hermes3.recipe.read import read

RUNS = ROOT / "runs"
TEMPLATE = Path(__file__).with_name("runs.md.jinja")


class Record(BaseModel, extra="forbid", strict=True):
    """A training. None is not recorded."""

    title: str
    date: date
    measured_by: str
    recipe: str
    recipe_sha256: str | None = None  # of the file at `commit`, as that of the lock
    commit: str | None = None
    lock_sha256: str | None = None
    hardware: str
    gpus: int  # 0 on CPUs
    mix: str | None = None
    mix_sha256: str | None = None  # of its rows, as in the manifest
    steps: int | None = None
    tokens_per_second_per_gpu: float | None = None
    mfu_percent: float | None = None
    gpu_hours: float | None = None
    cost_usd: float | None = None
    scores: dict[str, list[float | None]] = {}  # percent or points: value, low, high (95 %), number of questions
    links: dict[str, str] = {}
    notes: list[str] = []


def load(folder: Path = RUNS) -> dict[str, Record]:
    """Name -> record, by date. `UserError` names the file and the key that is wrong."""
    records = {path.stem: read_model(path, Record) for path in sorted(folder.glob("*.yml"))}
    return dict(sorted(records.items(), key=lambda item: item[1].date))


def page(records: dict[str, Record]) -> str:
    """RUNS.md."""
    filters = {"known": lambda value, digits=0: "–" if value is None else f"{value:,.{digits}f}"}
    return environment(TEMPLATE, filters).get_template(TEMPLATE.name).render(records=records)


def record(report: Path, run: str, stage: str, measured_by: str, title: str) -> Record:
    """The record of training `run`, with the scores of `stage`, from a report.json. `UserError` says what it lacks."""
    facts = read_json(report, "runs", "recipes", "costs", "scores", "repository", "mixes")
    by_run = {one["name"]: one for one in facts["runs"]}
    if run not in by_run or stage not in facts["scores"]["stages"]:
        names = f"runs {', '.join(by_run)}; stages {', '.join(facts['scores']['stages'])}"
        raise UserError(f"{report}: no run {run!r} or no stage {stage!r}; it has {names}")
    recipe = next(one for one in facts["recipes"] if one["run"] == run)
    if not recipe["path"]:
        raise UserError(f"{report}: no recipe names the folder of run {run!r} as its output_dir; put it into recipes/")
    if facts["repository"]["changed"] or not facts["repository"]["commit"]:
        raise UserError(f"{report}: made from files that are in no commit; commit them, and make the report again")
    path, trained, of = ROOT / recipe["path"], by_run[run], facts["repository"]
    begun = Path(trained["folder"]) / "made_of.json"  # launch/train.sbatch notes there with what the run began
    made_of = read_json(begun, "commit", "lock") if begun.is_file() else of | {"lock": of["lock"]["sha256"]}
    hardware = hardware_of(path, read(path))
    gpu = gpu_of(hardware.gpu)
    hours = next(one["measured"] for one in facts["costs"] if one["run"] == run)
    speed = trained["performance"]
    mix = next((one for one in facts["mixes"] if one["kind"] == trained["kind"]), None)
    return Record(
        title=title,
        date=date.today(),
        measured_by=measured_by,
        recipe=recipe["path"],
        recipe_sha256=recipe["sha256"],
        commit=made_of["commit"],
        lock_sha256=made_of["lock"],
        hardware=f"{hardware.gpus} {'CPU process' if gpu.is_cpu else gpu.name}",
        gpus=0 if gpu.is_cpu else hardware.gpus,
        mix=mix and mix["name"],
        mix_sha256=mix and mix["output_sha256"],
        steps=trained["steps"],
        tokens_per_second_per_gpu=round(speed["tokens_per_second_per_gpu"], 1) if speed else None,
        mfu_percent=round(100 * speed["mfu"], 1) if "mfu" in speed else None,
        gpu_hours=hours and round(hours, 3),
        cost_usd=round(hours * gpu.price, 2) if hours and not gpu.is_cpu else None,
        scores=scores_of(facts, stage),
    )


def scores_of(report: dict[str, Any], stage: str) -> dict[str, list[float | None]]:
    """A record's `scores`: those of a stage that are of all questions."""
    scores = {}
    for one in report["scores"]["rows"]:
        if (score := one["scores"][stage]) and not one["part"]:
            bounds = (score[key] and round(one["scale"] * score[key], 2) for key in ("value", "low", "high"))
            scores[one["task_label"]] = [*bounds, score.get("n")]
    return scores


def add(name: str, new: Record, records: Path = RUNS) -> Path:
    """Write runs/NAME.yml. `UserError` if it is there."""
    path = records / f"{name}.yml"
    if path.exists():
        raise UserError(f"{path} is there already; give another name")
    flat = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True, "width": 120}  # a list on one line
    write_text(path, yaml.safe_dump(new.model_dump(exclude_defaults=True), **flat))
    return path
