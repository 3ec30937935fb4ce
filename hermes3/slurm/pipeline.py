"""A pipeline's stages in the queue: which are complete, which wait or run, and submitting those that must run.
Under logs/pipeline/NAME/ lie submit.sh, `commands/` and each stage's record and stamp (`hermes3.slurm.record`)."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hermes3.files import UserError, lock, make_folder, write_text
from hermes3.mix import lock as locks
from hermes3.mix import spec as specs
from hermes3.recipe.read import read
from hermes3.slurm import chain, queue, record, start, submit
from hermes3.slurm.chain import Stage

FOLDER = Path("logs/pipeline")
COMPLETE, ACTIVE, RUN = "complete", "in the queue", "to run"


class State(NamedTuple):
    what: str
    why: str  # for people
    job: int | None = None  # in the queue


def changed(one: Stage) -> str:
    """What is another now than when the stage's job read it; "" for nothing. Of an unfinished training its record."""
    if one.spec:
        return ""
    if one.stamp.exists():
        return record.changed(one.stamp, [*map(str, one.reads + one.inputs)], one.command)
    path = Path(one.arguments[0])
    return "; ".join(start.changed(path, read(path), one.run)) if one.run and path.exists() else ""


def unfinished(one: Stage, last: record.Record | None) -> str:
    """Why a stage is not complete; "" if it is. A mix is if it is what its spec says now, whoever built it."""
    if one.spec:
        if not one.leaves.is_file():
            return f"{one.leaves.parent} is not built"
        manifest, spec = json.loads(one.leaves.read_text(encoding="utf-8")), specs.load(one.spec)
        if manifest.get("spec") != spec.model_dump(mode="json"):
            return f"{one.spec} has changed since {one.leaves.parent} was built"
        return "" if manifest.get("lock") == locks.read(one.spec) else f"the lock of {one.spec} is another"
    if one.stamp.exists():
        return "" if one.leaves.exists() else f"{one.leaves} is gone"
    if not last or not last.job:
        return "never run"
    ended = f"ended unfinished: see {last.log}" if Path(last.log).is_file() else "was cancelled before it began"
    return f"job {last.job} {ended}"


@dataclass
class Submission:
    """What is to be submitted of a pipeline.
    `UserError` where a stage must run again and cannot: what follows it runs, or checkpoints are in its way."""

    again: str  # the user's command
    folder: Path  # of what is written
    stages: list[Stage]
    jobs: dict[str, queue.Job]  # in the queue
    done: list[str] = field(default_factory=list)  # stages to take for complete
    options: list[str] = field(default_factory=list)  # the user's for sbatch
    times: dict[str, str | None] = field(default_factory=dict)  # limits, of trainings
    missing: list[str] = field(default_factory=list)
    unknown: str = ""  # why the queue was not looked at

    def __post_init__(self) -> None:
        names = [one.name for one in self.stages]
        if unknown := sorted(set(self.done) - set(names)):
            raise UserError(f"--done {unknown[0]}: no such stage; there are {', '.join(names)}")
        self.states: dict[str, State] = {}
        for one in self.stages:
            self.states[one.name] = self._state(one)
            job = self.states[one.name].job
            for need in one.needs:
                if job and self.states[need].what == RUN:
                    wrong = f"{need}, which it needs, must run first ({self.states[need].why})"
                    ways = f"end it with scancel {job}, and launch again"
                    raise UserError(f"{one.name} is in the queue as job {job}, and {wrong}; {ways}")

    def _state(self, one: Stage) -> State:
        job, finished = self.jobs.get(one.job), one.stamp.exists()
        if one.name in self.done:
            if not one.leaves.exists():
                raise UserError(f"--done {one.name}: {one.leaves} is not there")
            return State(COMPLETE, "as --done says")
        if job and not finished:
            return State(ACTIVE, f"job {job.id} {job.state}" + f" ({job.reason})" * (job.reason != "None"), job.id)
        last = record.read(one.stamp)
        why, other = unfinished(one, last), changed(one)
        rerun = [need for need in one.needs if self.states[need].what != COMPLETE]
        if not (why or other or rerun):
            return State(COMPLETE, f"job {last.job}" if last and last.job and finished else f"{one.leaves} is there")
        if one.run and (other or rerun) and any(one.run.glob("checkpoint-*")):
            ways = "to go on from them, put that back and launch again"
            if finished or not other:  # what is finished stays, or goes on with what the stage before has left
                ways = f"to keep them as they are: {self.again} --done {one.name if finished else rerun[0]}"
            wrong = other or f"{rerun[0]}, which it needs, runs again"
            wrong += f", and {one.run} holds the checkpoints of another run, from which this one would go on"
            raise UserError(f"{one.name}: {wrong}; to train anew: mv {one.run} {one.run}.old; {ways}")
        return State(RUN, why or other or f"{', '.join(rerun)}: not complete")

    def lines(self) -> Iterator[tuple[Stage, list[str], list[str]]]:
        """(stage, its sbatch line without dependencies, the stages that it waits for), of those that are to run."""
        for one in self.stages:
            if self.states[one.name].what == RUN:
                words, options = [one.script, *one.arguments], [*one.options, *self.options]
                line = submit.sbatch(words, one.job, one.hardware, self.times.get(one.name), options, one.stamp)
                yield one, line, [need for need in one.needs if self.states[need].what != COMPLETE]

    def submit(self, check: bool = True) -> dict[str, int]:
        """Submit the lines; {stage: job}. `UserError` when one is refused: those before it are cancelled."""
        submit.refuse(self.missing)
        ids = {name: state.job for name, state in self.states.items() if state.job}
        submitted: dict[str, int] = {}
        try:
            for one, line, _ in self.lines() if check else ():  # noqa: B007, the error names it
                queue.test(line)
            for one in self.stages:
                if one.name in self.done:
                    record.write(one.stamp, self._record(one))
                    one.stamp.with_suffix(".begun").unlink(missing_ok=True)
                    record.begin(one.stamp)
                    record.done(one.stamp)
            for one, line, needs in self.lines():
                noted = self._record(one)
                one.stamp.unlink(missing_ok=True)
                record.write(one.stamp, noted)  # before there is a job: this process may be killed at any time
                job = queue.submit(waiting(line, [ids[need] for need in needs]))
                ids[one.name] = submitted[one.name] = job
                record.write(one.stamp, replace(noted, job=job, log=f"logs/{one.job}-{job}.log"))
        except BaseException as error:  # an interrupt of the keyboard, too
            if submitted:
                queue.slurm("scancel", *map(str, submitted.values()))
            if not isinstance(error, UserError):
                raise
            before = f"the {len(submitted)} before it are cancelled, so " if submitted else ""
            raise UserError(f"stage {one.name} was refused; {before}nothing is submitted\n  {error}") from None
        return submitted

    def _record(self, one: Stage) -> record.Record:
        needed_by: list[str] = []  # directly or not
        for other in self.stages:
            if {one.name, *needed_by} & set(other.needs):
                needed_by.append(other.name)
        return record.Record(one.name, one.command, [*map(str, one.reads + one.inputs)], needed_by, self.again)

    def write(self) -> None:
        """submit.sh, with jobs' ids in variables; the records that jobs look for; commands/NN-STAGE for the report."""
        text = f"#!/usr/bin/env bash\n# What `{self.again}` submits now\nset -euo pipefail\n"
        text += "".join(f"{name}={state.job}\n" for name, state in self.states.items() if state.job)
        for one, line, needs in self.lines():
            shown = submit.shell(waiting(line, [f"JOB_{need}" for need in needs]))
            shown = re.sub(r":JOB_(\w+)", r':"$\1"', shown)  # shlex would have quoted the variables
            text += f"\n{one.name}=$({shown})\n"
            if not record.read(one.stamp):
                record.write(one.stamp, self._record(one))
        write_text(self.folder / "submit.sh", text)
        for number, one in enumerate(self.stages, 1):
            write_text(self.folder / f"commands/{number:02}-{one.name}", one.command + "\n")

    def rows(self, submitted: dict[str, int]) -> list[dict[str, Any]]:
        """What is printed of each stage."""
        rows = []
        for one, (what, why, job) in zip(self.stages, self.states.values(), strict=True):
            size, time = "CPUs", self.times.get(one.name)
            if one.hardware:
                size = "{nodes} x {gpus_per_node} {gpu}".format(**one.hardware.model_dump())
            size += f", {time.split(':')[0]} h" if time else ""
            row = {"stage": one.name, "state": "submitted" if one.name in submitted else what, "hardware": size}
            row |= {"needs": one.needs, "why": why, "command": one.command}
            rows.append(row | {"job": submitted.get(one.name, job)})
        return rows


def prepare(path: str, options: list[str], done: list[str], check: bool, dry_run: bool) -> Submission:
    """Look at recipes, files and queue, and write what would be submitted. A dry run goes on without Slurm."""
    name, declared = chain.load(path)
    submit.reject(options, submit.OF_PIPELINE)
    for script, site in declared.sbatch.items():
        submit.reject(site, submit.OF_PIPELINE, f"{path}: sbatch: {script}: ")
    stages = chain.stages(declared, FOLDER / name)
    jobs, unknown = {}, ""
    try:
        jobs = queue.jobs()
    except UserError as error:
        if not dry_run:
            raise
        unknown = f"; the queue is not known: {str(error).splitlines()[0]}"
    again = f"hermes3 launch --pipeline {path}"
    it = Submission(again, FOLDER / name, stages, jobs, done, options, unknown=unknown)
    to_run = [one for one in stages if it.states[one.name].what == RUN]
    plans = submit.look([one.reads[0] for one in to_run if one.run], check)
    it.times = {one.name: submit.time_limit(plans[one.reads[0]]) for one in to_run if one.run}
    it.missing = chain.missing(to_run)
    it.write()
    return it


def waiting(line: list[str], jobs: list[object]) -> list[str]:
    """The line for a job that starts when `jobs` have ended well, and is cancelled when one has not."""
    after = ["--dependency=afterok:" + ":".join(map(str, jobs)), "--kill-on-invalid-dep=yes"] if jobs else []
    return [*line[:2], *after, *line[2:]]


def table(rows: list[dict[str, Any]]) -> str:
    """The graph as lines: stage, state, hardware, what it needs, why."""
    cells = [("stage", "state", "hardware", "needs", "why")]
    for row in rows:
        state = f"job {row['job']}" if row["state"] == "submitted" else row["state"]
        cells.append((row["stage"], state, row["hardware"], ", ".join(row["needs"]) or "-", row["why"]))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[4]]).rstrip() for line in cells)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the pipeline in `folder` while it is submitted. `UserError` when another process does."""
    make_folder(folder)
    with (folder / "lock").open("w") as file:
        locked = lock(file)
        if locked is False:
            raise UserError(f"{folder}: another `hermes3 launch --pipeline` is at work; wait for it")
        if locked is None:
            print(f"{folder}: cannot be locked here: launch this pipeline once at a time", file=sys.stderr)
        yield
