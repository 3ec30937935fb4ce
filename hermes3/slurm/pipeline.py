"""A pipeline's stages in the queue: which are complete, which wait or run, and submitting those that must run.

Under logs/pipeline/NAME/ lie submit.sh (the sbatch lines), `commands/` (one file per stage, which the report shows) and
each stage's record and stamp (`hermes3.slurm.record`).
"""

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hermes3.files import UserError, write_text
from hermes3.mix import lock as locks
from hermes3.mix import spec as specs
from hermes3.recipe.read import read
from hermes3.slurm import chain, queue, record, start, submit
from hermes3.slurm.chain import Pipeline, Stage

FOLDER = Path("logs/pipeline")
COMPLETE, ACTIVE, RUN = "complete", "in the queue", "to run"


@dataclass(frozen=True)
class State:
    """`what`: complete, in the queue (as job `job`), or to run; `why`: for people."""

    what: str
    why: str
    job: int | None = None


def job_name(name: str, one: Stage) -> str:
    """A training is named as `hermes3 launch RECIPE` names it, a mix alike for all sizes: each sees others' jobs."""
    if one.run:
        return Path(one.arguments[0]).stem
    return f"mix_{one.leaves.parent.name}" if one.spec else f"{name}_{one.name}"


def stamp_of(name: str, one: Stage) -> Path:
    """Mixes are shared by the sizes, and their records too."""
    return FOLDER / "mixes" / f"{one.leaves.parent.name}.done" if one.spec else FOLDER / name / f"{one.name}.done"


def states(again: str, name: str, stages: list[Stage], jobs: dict[str, queue.Job], done: list[str]) -> dict[str, State]:
    """The state of each stage. `done`: stages to take for complete as they are; `again`: the user's command.

    Raises UserError where a stage must run again and cannot: what follows it runs already, or a finished training's
    checkpoints are in its way.
    """
    if unknown := sorted(set(done) - {one.name for one in stages}):
        raise UserError(f"--done {unknown[0]}: no such stage; there are {', '.join(one.name for one in stages)}")
    by_name: dict[str, State] = {}
    for one in stages:
        by_name[one.name] = _state(again, name, one, jobs, by_name, one.name in done)
    for one in stages:
        rerun = [need for need in one.needs if by_name[need].what == RUN]
        if by_name[one.name].what == ACTIVE and rerun:
            job = by_name[one.name].job
            raise UserError(
                f"{one.name} is in the queue as job {job}, and {rerun[0]}, which it needs, must run first "
                f"({by_name[rerun[0]].why}); end it with scancel {job}, and launch again"
            )
    return by_name


def _state(
    again: str, name: str, one: Stage, jobs: dict[str, queue.Job], before: dict[str, State], done: bool
) -> State:
    stamp, job = stamp_of(name, one), jobs.get(job_name(name, one))
    if done:
        if not one.leaves.exists():
            raise UserError(f"--done {one.name}: {one.leaves} is not there")
        return State(COMPLETE, "as --done says")
    if job and not stamp.exists():
        return State(ACTIVE, f"job {job.id} {job.state}" + (f" ({job.reason})" if job.reason != "None" else ""), job.id)
    last = record.read(stamp)
    why, changed = (_unbuilt(one), "") if one.spec else (_unfinished(one, stamp, last), _changed(one, stamp))
    rerun = [need for need in one.needs if before[need].what != COMPLETE]
    if not (why or changed or rerun):
        by_job = last and last.job and stamp.exists()
        return State(COMPLETE, f"job {last.job}" if by_job else f"{one.leaves} is there")
    if one.run and (changed or rerun) and any(one.run.glob("checkpoint-*")):
        ways = "to go on from them, put that back and launch again"
        if stamp.exists() or not changed:  # what is finished stays, or goes on with what the stage before has left
            ways = f"to keep them as they are: {again} --done {one.name if stamp.exists() else rerun[0]}"
        raise UserError(
            f"{one.name}: {changed or f'{rerun[0]}, which it needs, runs again'}, and {one.run} holds the checkpoints "
            f"of another run, from which this one would go on; to train anew: mv {one.run} {one.run}.old; {ways}"
        )
    return State(RUN, why or changed or f"{', '.join(rerun)}: not complete")


def _unfinished(one: Stage, stamp: Path, last: record.Record | None) -> str:
    """Why a stage is not complete; "" if it is."""
    if stamp.exists():
        return "" if one.leaves.exists() else f"{one.leaves} is gone"
    if not last or not last.job:
        return "never run"
    ended = f"ended unfinished: see {last.log}" if Path(last.log).is_file() else "was cancelled before it began"
    return f"job {last.job} {ended}"


def _changed(one: Stage, stamp: Path) -> str:
    """What is another now than when the stage's job read it; "" for nothing. Of an unfinished training its record."""
    if stamp.exists():
        return record.changed(stamp, [*map(str, one.reads + one.inputs)], one.command)
    path = Path(one.arguments[0])
    return "; ".join(start.changed(path, read(path), one.run)) if one.run and path.exists() else ""


def _unbuilt(one: Stage) -> str:
    """Why a mix is not what its spec says now; "" if it is, whoever built it."""
    if not one.leaves.is_file():
        return f"{one.leaves.parent} is not built"
    manifest, spec = json.loads(one.leaves.read_text(encoding="utf-8")), specs.load(one.spec)
    if manifest.get("spec") != spec.model_dump(mode="json"):
        return f"{one.spec} has changed since {one.leaves.parent} was built"
    return "" if manifest.get("lock") == locks.read(one.spec) else f"the lock of {one.spec} is another"


@dataclass(frozen=True)
class Submission:
    """What is to be submitted of pipeline `name`. `again`: the user's command; `states`: of each stage.

    `times`: limits of some stages; `options`: the user's for sbatch; `done`: stages to take for complete; `missing`:
    what the stages read and is not there; `unknown`: why the queue was not looked at.
    """

    again: str
    name: str
    stages: list[Stage]
    states: dict[str, State]
    times: dict[str, str | None] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: str = ""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def lines(self) -> Iterator[tuple[Stage, list[str], list[str]]]:
        """(stage, its sbatch line without dependencies, the stages that it waits for), of those that are to run."""
        for one in self.stages:
            if self.states[one.name].what == RUN:
                line = submit.sbatch(
                    one.script,
                    one.arguments,
                    job_name(self.name, one),
                    one.hardware,
                    self.times.get(one.name),
                    [*one.options, *self.options],
                    stamp_of(self.name, one),
                )
                yield one, line, [need for need in one.needs if self.states[need].what != COMPLETE]

    def submit(self, check: bool = True) -> dict[str, int]:
        """Submit the lines; {stage: job}. `check`: ask first whether the cluster can run them.

        `UserError` when something is missing, or a stage is refused. Those before it are then cancelled: no half chain
        is left.
        """
        if self.missing:
            raise UserError("\n  ".join(["nothing is submitted:", *self.missing]))
        for one, line, _ in self.lines() if check else ():
            try:
                queue.test(line)
            except UserError as error:
                wrong = f"stage {one.name}: this cluster cannot run it now; nothing is submitted\n  {error}"
                raise UserError(wrong) from None
        for one in self.stages:
            stamp = stamp_of(self.name, one)
            if one.name in self.done:
                record.write(stamp, self._record(one))
                stamp.with_suffix(".begun").unlink(missing_ok=True)
                record.begin(stamp)
                record.done(stamp)
        ids = {name: state.job for name, state in self.states.items() if state.job}
        submitted: dict[str, int] = {}
        try:
            for one, line, needs in self.lines():
                stamp, noted = stamp_of(self.name, one), self._record(one)
                stamp.unlink(missing_ok=True)
                record.write(stamp, noted)  # before there is a job: this process may be killed at any time
                job = queue.submit(waiting(line, [ids[need] for need in needs]))
                ids[one.name] = submitted[one.name] = job
                record.write(stamp, replace(noted, job=job, log=f"logs/{job_name(self.name, one)}-{job}.log"))
        except BaseException as error:  # an interrupt of the keyboard, too
            if submitted:
                queue.cancel(list(submitted.values()))
            if not isinstance(error, UserError):
                raise
            before = f"the {len(submitted)} before it are cancelled, so " if submitted else ""
            raise UserError(f"stage {one.name} was refused; {before}nothing is submitted\n  {error}") from None
        return submitted

    def script(self) -> str:
        """submit.sh: the lines as a user would type them, each job's id in a variable of its stage's name."""
        text = f"#!/usr/bin/env bash\n# What `{self.again}` submits now; it keeps the records of the stages, too.\n"
        text += "# shellcheck disable=SC2034 # the last id is for you\nset -euo pipefail\n"
        for name, state in self.states.items():
            text += f"# {name}: {state.what}, {state.why}\n" + (f"{name}={state.job}\n" if state.job else "")
        for one, line, needs in self.lines():
            shown = submit.shell(waiting(line, [f"JOB_{need}" for need in needs]))
            for need in needs:  # variables, which shlex would have quoted
                shown = shown.replace(f":JOB_{need}", f':"${need}"')
            text += f"\n{one.name}=$({shown})\n"
        return text

    def write(self) -> None:
        """submit.sh, with the records that its jobs look for, and commands/NN-STAGE, as the report lists them."""
        write_text(self.folder / "submit.sh", self.script())
        for one, _, _ in self.lines():
            if not record.read(stamp_of(self.name, one)):
                record.write(stamp_of(self.name, one), self._record(one))
        for number, one in enumerate(self.stages, 1):
            write_text(self.folder / f"commands/{number:02}-{one.name}", one.command + "\n")

    def rows(self, submitted: dict[str, int]) -> list[dict[str, Any]]:
        """What is printed of each stage."""
        rows = []
        for one in self.stages:
            state = self.states[one.name]
            row = {"stage": one.name, "state": "submitted" if one.name in submitted else state.what}
            row |= {"hardware": one.hardware.model_dump() if one.hardware else None, "time": self.times.get(one.name)}
            row |= {"needs": one.needs, "why": state.why, "command": one.command}
            rows.append(row | {"job": submitted.get(one.name, state.job)})
        return rows

    def _record(self, one: Stage) -> record.Record:
        after = {one.name}  # it, and the stages that need it, directly or not
        for other in self.stages:
            if after & set(other.needs):
                after.add(other.name)
        needed_by = [other.name for other in self.stages if other.name in after - {one.name}]
        return record.Record(one.name, one.command, [*map(str, one.reads + one.inputs)], needed_by, self.again)


def prepare(
    path: str, name: str, declared: Pipeline, options: list[str], done: list[str], check: bool, dry_run: bool
) -> Submission:
    """Look at recipes, files and queue, and write what would be submitted. `check`: as `submit.look`.

    A dry run goes on without Slurm. `UserError` for what cannot be launched.
    """
    again = f"hermes3 launch --pipeline {path}"
    stages = chain.stages(declared, FOLDER / name / "commands")
    jobs, unknown = {}, ""
    try:
        jobs = queue.jobs()
    except UserError as error:
        if not dry_run:
            raise
        unknown = f"; the queue is not known: {str(error).splitlines()[0]}"
    by_name = states(again, name, stages, jobs, done)
    to_run = [one for one in stages if by_name[one.name].what == RUN]
    recipes = {one.name: Path(one.arguments[0]) for one in to_run if one.run}
    plans = submit.look(list(recipes.values()), check)
    times = {stage: submit.time_limit(plans[path]) for stage, path in recipes.items()}
    missing = chain.missing(to_run)
    submission = Submission(again, name, stages, by_name, times, options, done, missing, unknown)
    submission.write()
    return submission


def waiting(line: list[str], jobs: list[object]) -> list[str]:
    """The line for a job that starts when `jobs` have ended well, and is cancelled when one has not."""
    if not jobs:
        return line
    after = ["--dependency=afterok:" + ":".join(map(str, jobs)), "--kill-on-invalid-dep=yes"]
    return [*line[:2], *after, *line[2:]]


def table(rows: list[dict[str, Any]]) -> str:
    """The graph as lines: stage, state, hardware, what it needs, why."""
    cells = [("stage", "state", "hardware", "needs", "why")]
    for row in rows:
        hardware = "{nodes} x {gpus_per_node} {gpu}".format(**row["hardware"]) if row["hardware"] else "CPUs"
        hardware += f", {row['time'].split(':')[0]} h" if row["time"] else ""
        state = f"job {row['job']}" if row["state"] == "submitted" else row["state"]
        cells.append((row["stage"], state, hardware, ", ".join(row["needs"]) or "-", row["why"]))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[4]]).rstrip() for line in cells)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the pipeline in `folder` while it is submitted. `UserError` when another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another `hermes3 launch --pipeline` is at work; wait for it") from None
        except OSError as error:  # Lustre without -o flock, NFS without lockd
            print(f"{folder}: not locked ({error}): launch this pipeline once at a time", file=sys.stderr)
        yield
