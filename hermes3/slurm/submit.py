"""`hermes3 launch RECIPE`: what is asked of Slurm for one training run, written as files to read, and submitted."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hermes3.files import UserError, write_text
from hermes3.git import commit
from hermes3.plan.cost import batches, mix_of
from hermes3.plan.plan import Plan, plan
from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.read import ERROR, on_hub, read
from hermes3.slurm import queue, start

TRAIN = "launch/train.sbatch"
# Options of sbatch that would break how jobs are known, logged and queued again; and those that a pipeline sets itself
BY_NAME = ("--job-name", "-J", "--output", "-o", "--error", "-e", "--chdir", "-D", "--array", "-a", "--clusters", "-M")
NEVER = (*BY_NAME, "--no-requeue", "--test-only")
KNOWN_BY = dict.fromkeys(NEVER, "jobs are known by name, folder and log, and queued again")
OF_PIPELINE = KNOWN_BY | dict.fromkeys(
    ("--dependency", "-d", "--nodes", "-N", "--export"), "the pipeline sets it, for every job"
)
FOLDER = Path("logs/launch")


@dataclass(frozen=True)
class Launch:
    """One run: `line` is its sbatch command, `settings` what it will be, `missing` what it reads that is not there."""

    name: str
    line: list[str]
    settings: dict[str, Any]
    missing: list[str]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


def prepare(path: Path, nodes: int | None, options: list[str], check: bool = True) -> Launch:
    """Make the launch of the recipe at `path`, on `nodes` nodes or its own. Nothing is submitted.

    Another number of nodes writes the changed recipe into logs/launch/NAME. `check`: hold the recipe to
    `hermes3 check`, and to the memory that `hermes3 plan` says. Raises UserError for a recipe that would fail.
    """
    in_repository()
    by_nodes = "give hermes3 launch --nodes N, which keeps the global batch"
    reject(options, KNOWN_BY | {"--nodes": by_nodes, "-N": by_nodes})
    name, recipe = path.stem, read(path)
    if nodes not in (None, hardware_of(path, recipe).nodes):
        name = f"{path.stem}-{nodes}nodes"
        path = resize(path, nodes, FOLDER / name)
        recipe = read(path)
    hardware = hardware_of(path, recipe)
    planned = look([path], check)[path]
    line = sbatch(TRAIN, [str(path)], path.stem, hardware, time_limit(planned), options)
    settings = {
        "recipe": str(path),
        "hardware": hardware.model_dump(),
        "gpus": hardware.gpus,
        "micro_batch_size": recipe.get("micro_batch_size") or 1,
        "gradient_accumulation_steps": recipe.get("gradient_accumulation_steps") or 1,
        "global_batch": batches(path, recipe, hardware.gpus)[0],
        "base_model": recipe.get("base_model"),
        "mix": str(mix_of(recipe)),
        "output_dir": recipe.get("output_dir"),
        "git_commit": commit(Path()),
        "expected_hours": round(planned.cost.hours, 1) if planned else None,
        "expected_gpu_hours": round(planned.cost.gpu_hours) if planned else None,
        "expected_from": planned.schedule.source if planned else None,
        "time_limit": time_limit(planned) or "the partition's",
    }
    return Launch(name, line, settings, missing(path, recipe))


def write(launch: Launch) -> None:
    """Write submit.sh and settings.yml into the launch's folder."""
    write_text(launch.folder / "submit.sh", f"#!/usr/bin/env bash\n{shell(launch.line)}\n")
    write_text(launch.folder / "settings.yml", yaml.safe_dump(launch.settings, sort_keys=False))


def submit(launch: Launch, check: bool = True) -> int:
    """Submit it; the job's id. `check`: ask first whether the cluster can run it.

    Raises UserError when what it reads is missing, or it waits or runs already.
    """
    if launch.missing:
        raise UserError("\n  ".join(["nothing is submitted:", *launch.missing]))
    recipe = launch.settings["recipe"]
    if job := queue.jobs().get(Path(recipe).stem):
        raise UserError(
            f"{recipe}: job {job.id} ({job.state}) of this folder trains it already, into the same output_dir; "
            f"wait for it, or end it with scancel {job.id}"
        )
    if check:
        queue.test(launch.line)
    return queue.submit(launch.line)


def sbatch(
    script: str,
    arguments: list[str],
    job: str,
    hardware: Hardware | None,
    time: str | None,
    options: list[str],
    stamp: Path | None = None,
) -> list[str]:
    """The sbatch command. A user's `options` come last, so that they win over these and over the script's own.

    GPUs are asked for by their number alone: what a site calls its types is not what recipes call them.
    """
    line = ["sbatch", "--parsable", f"--job-name={job}"]
    if hardware:
        line.append(f"--nodes={hardware.nodes}")
        if hardware.gpu != CPU:
            line.append(f"--gpus-per-node={hardware.gpus_per_node}")
    if time and "SBATCH_TIMELIMIT" not in os.environ:
        line.append(f"--time={time}")
    if stamp:
        line.append(f"--export=ALL,HERMES3_STAMP={stamp}")
    return [*line, *options, script, *arguments]


def shell(line: list[str]) -> str:
    """The command as a user would type it: a line an option, and the script with its arguments on the last."""
    at = next(place for place, part in enumerate(line) if part.endswith(".sbatch"))
    options = shlex.join(line[:at]).replace(" --", " \\\n  --")
    return f"{options} \\\n  {shlex.join(line[at:])}"


def time_limit(planned: Plan | None) -> str | None:
    """A quarter more than planned, and an hour for starting and saving; whole hours, None where nothing is planned.

    The limit need not be right: a run that meets it goes on by itself in another job. But schedulers start short jobs
    sooner, and a site's default is often an hour.
    """
    return f"{math.ceil(planned.cost.hours * 1.25 + 1)}:00:00" if planned else None


def look(paths: list[Path], check: bool = True) -> dict[Path, Plan | None]:
    """The plan of each recipe, SFT's with the paper's tokens; None for CPUs, whose speed is not known.

    `check`: raise UserError with what `hermes3 check` finds, and for a model that does not fit.
    """
    if check and paths:
        hold(paths)
    plans = {path: None if hardware_of(path, read(path)).gpu == CPU else plan(path, packed=False) for path in paths}
    if check:
        fit(plans)
    return plans


def hold(paths: list[Path]) -> None:
    """`UserError` with every error that `hermes3 check` finds.

    It runs as a process of its own: it loads Axolotl, which prints, and hides the GPUs from all that comes after it.
    """
    argv = [sys.executable, "-m", "hermes3.cli", "check", "--json", *map(str, paths)]
    done = subprocess.run(argv, text=True, capture_output=True)
    # a library may print a line before, as with WANDB_MODE=offline
    if not (page := re.search(r"^\[$.*", done.stdout, re.MULTILINE | re.DOTALL)):
        raise UserError(done.stderr.strip().removeprefix("hermes3: ") or f"{argv}: exit code {done.returncode}")
    errors = [
        "{recipe}: {key}: {wrong}; {remedy}".format(recipe=report["recipe"], **finding)
        for report in json.loads(page[0])
        for finding in report["findings"]
        if finding["level"] == ERROR
    ]
    if errors:
        raise UserError("\n  ".join(["`hermes3 check` refuses (--no-check launches all the same):", *errors]))


def fit(plans: dict[Path, Plan | None]) -> None:
    """`UserError` for the first plan whose model does not fit."""
    for path, planned in plans.items():
        if planned and not planned.own.fits:
            fewest = planned.nodes_to_run[planned.own.setting.name] or "no number"
            raise UserError(
                f"{path}: does not fit on {planned.nodes} nodes ({fewest} would do); see `hermes3 plan {path}` "
                "(--no-check launches all the same)"
            )


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


def in_repository() -> None:
    """`UserError` elsewhere than at the repository's root, from where scripts and recipes name their files."""
    if not Path(TRAIN).is_file():
        raise UserError(f"{TRAIN}: no such file in {Path.cwd()}; run this from the root of the repository")


def reject(options: list[str], refused: dict[str, str], where: str = "") -> None:
    """`UserError` for sbatch options that are none, or at odds with ours. `refused`: option -> remedy."""
    if options and not options[0].startswith("-"):
        wrong = f"{where}{options[0]}: options of sbatch go last, after --, as in: hermes3 launch RECIPE -- -A NAME"
        raise UserError(wrong)
    for option in options:
        word = option.partition("=")[0]
        for name, remedy in refused.items():
            short = re.fullmatch(r"-\w", name) and option.startswith(name)
            if short or (len(word) > 3 and name.startswith(word)):  # sbatch takes --job for --job-name
                raise UserError(f"{where}{option}: not for sbatch; {remedy}")


def resize(path: Path, nodes: int, out: Path) -> Path:
    """Write the recipe at `path` for `nodes` nodes into the folder `out`, under its own name; returns the new file.

    gradient_accumulation_steps is set so that micro_batch_size x gradient_accumulation_steps x GPUs stays. `UserError`
    names the numbers of nodes that can, when this one cannot.
    """
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    micro, accumulation = (recipe.get(key) or 1 for key in ("micro_batch_size", "gradient_accumulation_steps"))
    slots = accumulation * hardware.nodes  # micro-batches of a step that a GPU of each node takes, over all nodes
    if slots % nodes:
        possible = ", ".join(str(n) for n in range(1, slots + 1) if slots % n == 0)
        raise UserError(
            f"--nodes {nodes}: {path} has a global batch of {micro * accumulation * hardware.gpus}, which {nodes} "
            f"nodes of {hardware.gpus_per_node} GPUs cannot make with micro_batch_size {micro}; take {possible}"
        )
    recipe |= {"hardware": hardware.model_dump() | {"nodes": nodes}, "gradient_accumulation_steps": slots // nodes}
    head = f"# {path} for {nodes} nodes instead of {hardware.nodes}, at the same global batch"
    write_text(out / path.name, f"{head}\n{yaml.safe_dump(recipe, sort_keys=False)}")
    return out / path.name
