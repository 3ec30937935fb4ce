"""`hermes3 launch RECIPE`: what is asked of Slurm for one training run, written as files to read, and submitted."""

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hermes3.files import UserError, write_text
from hermes3.model_folder import on_hub
from hermes3.plan.cost import mix_of
from hermes3.plan.plan import Plan, plan
from hermes3.recipe.check import check_all
from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import queue, start

TRAIN = "launch/train.sbatch"
REFUSED = queue.WORDS["submit"]  # options of sbatch
KNOWN_BY = dict.fromkeys(REFUSED["known_by"], "jobs are known by name, folder and log, and queued again")
OF_PIPELINE = KNOWN_BY | dict.fromkeys(REFUSED["of_pipeline"], "the pipeline sets it, for every job")
FOLDER = Path("logs/launch")
ALL_THE_SAME = "(--no-check launches all the same)"


class Launch(NamedTuple):
    """One run, of this recipe; submit.sh lies in `folder`, and the recipe if it is changed."""

    recipe: Path
    folder: Path
    line: list[str]  # its sbatch command
    planned: Plan | None
    missing: list[str]  # what it reads that is not there


def prepare(path: Path, nodes: int | None, options: list[str], check: bool = True) -> Launch:
    """Make the launch of the recipe at `path`, on `nodes` nodes or its own, and write it, to read."""
    by_nodes = "give hermes3 launch --nodes N, which keeps the global batch"
    reject(options, KNOWN_BY | {"--nodes": by_nodes, "-N": by_nodes})
    folder, recipe = FOLDER / path.stem, read(path)
    if nodes not in (None, hardware_of(path, recipe).nodes):
        folder = FOLDER / f"{path.stem}-{nodes}nodes"
        path = resize(path, nodes, folder)
        recipe = read(path)
    planned = look([path], check)[path]
    line = sbatch([TRAIN, str(path)], path.stem, hardware_of(path, recipe), time_limit(planned), options)
    write_text(folder / "submit.sh", f"#!/usr/bin/env bash\n{shell(line)}\n")
    return Launch(path, folder, line, planned, missing(path, recipe))


def submit(launch: Launch, check: bool = True) -> int:
    """Submit it; the job's id. `UserError` when what it reads is missing, or it is in the queue already."""
    refuse(launch.missing)
    if job := queue.jobs().get(launch.recipe.stem):
        wrong = f"job {job.id} ({job.state}) of this folder trains it already, into the same output_dir"
        raise UserError(f"{launch.recipe}: {wrong}; wait for it, or end it with scancel {job.id}")
    if check:
        queue.test(launch.line)
    return queue.submit(launch.line)


def refuse(missing: list[str]) -> None:
    if missing:
        raise UserError("\n  ".join(["nothing is submitted:", *missing]))


def sbatch(
    words: list[str], job: str, size: Hardware | None, time: str | None, options: list[str], stamp: Path | None = None
) -> list[str]:
    """The sbatch command of a script and its arguments. A user's `options` come last: they win over all others."""
    line = ["sbatch", "--parsable", f"--job-name={job}"]
    if size:
        line.append(f"--nodes={size.nodes}")
        # by their number alone: what a site calls its types is not what recipes call them
        line += [] if size.gpu == CPU else [f"--gpus-per-node={size.gpus_per_node}"]
    if time and "SBATCH_TIMELIMIT" not in os.environ:
        line.append(f"--time={time}")
    if stamp:
        line.append(f"--export=ALL,HERMES3_STAMP={stamp}")
    return [*line, *options, *words]


def shell(line: list[str]) -> str:
    """The command as a user would type it: a line an option, and the script with its arguments on the last."""
    at = next(place for place, part in enumerate(line) if part.endswith(".sbatch"))
    options = shlex.join(line[:at]).replace(" --", " \\\n  --")
    return f"{options} \\\n  {shlex.join(line[at:])}"


def time_limit(planned: Plan | None) -> str | None:
    """A quarter more than planned, and an hour for starting and saving. Schedulers start short jobs sooner."""
    return f"{math.ceil(planned.cost.hours * 1.25 + 1)}:00:00" if planned else None


def look(paths: list[Path], check: bool = True) -> dict[Path, Plan | None]:
    """The plan of each recipe, SFT's with the paper's tokens; None for CPUs. `check`: refuse what would fail."""
    reports = check_all(paths) if check and paths else []
    if errors := [f"{report.path}: {error}" for report in reports for error in report.errors]:
        raise UserError("\n  ".join([f"`hermes3 check` refuses {ALL_THE_SAME}:", *errors]))
    plans = {path: None if hardware_of(path, read(path)).gpu == CPU else plan(path, packed=False) for path in paths}
    for path, planned in plans.items():
        if check and planned and not planned.own.fits:
            fewest = planned.nodes_to_run[planned.own.setting.name] or "no number"
            wrong = f"does not fit on {planned.nodes} nodes ({fewest} would do); see `hermes3 plan {path}`"
            raise UserError(f"{path}: {wrong} {ALL_THE_SAME}")
    return plans


def missing(path: Path, recipe: dict[str, Any]) -> list[str]:
    """What the run reads and is not there, or is not what it was begun with, each with its remedy."""
    lacks, base, mix, output = [], str(recipe.get("base_model")), mix_of(recipe), Path(str(recipe.get("output_dir")))
    if any(output.glob("checkpoint-*")):
        ways = f"and {output} has checkpoints of a run before: put that back, or mv {output} {output}.old"
        lacks += [f"{line}, {ways}" for line in start.changed(path, recipe, output)]
    if not Path(base).is_dir() and not on_hub(base):
        lacks.append(f"{path}: base_model: {base} is not there; see the comment on its line")
    if not (mix / "manifest.json").is_file():
        lacks.append(f"{path}: datasets: {mix} is not built; sbatch launch/mix.sbatch data_mixes/{mix.name}.yml")
    return lacks


def reject(options: list[str], refused: dict[str, str], where: str = "") -> None:
    """`UserError` for sbatch options that are none, or at odds with ours. `refused`: option -> remedy."""
    if options and not options[0].startswith("-"):
        remedy = "options of sbatch go last, after --, as in: hermes3 launch RECIPE -- -A NAME"
        raise UserError(f"{where}{options[0]}: {remedy}")
    for option in options:
        word = option.partition("=")[0]
        for name, remedy in refused.items():
            short = re.fullmatch(r"-\w", name) and option.startswith(name)
            if short or (len(word) > 3 and name.startswith(word)):  # sbatch takes --job for --job-name
                raise UserError(f"{where}{option}: not for sbatch; {remedy}")


def resize(path: Path, nodes: int, out: Path) -> Path:
    """Write the recipe at `path` for `nodes` nodes into the folder `out`, at the same global batch; the new file."""
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    micro, accumulation = (recipe.get(key) or 1 for key in ("micro_batch_size", "gradient_accumulation_steps"))
    slots = accumulation * hardware.nodes  # micro-batches of a step that a GPU of each node takes, over all nodes
    if slots % nodes:
        possible = ", ".join(str(n) for n in range(1, slots + 1) if slots % n == 0)
        batch = f"{path} has a global batch of {micro * accumulation * hardware.gpus}"
        cannot = f"{nodes} nodes of {hardware.gpus_per_node} GPUs cannot make with micro_batch_size {micro}"
        raise UserError(f"--nodes {nodes}: {batch}, which {cannot}; take {possible}")
    recipe |= {"hardware": hardware.model_dump() | {"nodes": nodes}, "gradient_accumulation_steps": slots // nodes}
    head = f"# {path} for {nodes} nodes instead of {hardware.nodes}, at the same global batch"
    write_text(out / path.name, f"{head}\n{yaml.safe_dump(recipe, sort_keys=False)}")
    return out / path.name
