"""What is complete, what waits or runs, and what must run of a pipeline's stages, and why."""

import json
from dataclasses import dataclass
from pathlib import Path

from hermes3.mix import lock as locks
from hermes3.mix import spec as specs
from hermes3.slurm import queue, stage
from hermes3.slurm.chain import Stage

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

    Raises ValueError where a stage must run again and cannot: what follows it runs already, or a finished training's
    checkpoints are in its way.
    """
    if unknown := sorted(set(done) - {one.name for one in stages}):
        raise ValueError(f"--done {unknown[0]}: no such stage; there are {', '.join(one.name for one in stages)}")
    found: dict[str, State] = {}
    for one in stages:
        found[one.name] = _state(again, name, one, jobs, found, one.name in done)
    for one in stages:
        rerun = [need for need in one.needs if found[need].what == RUN]
        if found[one.name].what == ACTIVE and rerun:
            job = found[one.name].job
            raise ValueError(
                f"{one.name} is in the queue as job {job}, and {rerun[0]}, which it needs, must run first "
                f"({found[rerun[0]].why}); end it with scancel {job}, and launch again"
            )
    return found


def _state(
    again: str, name: str, one: Stage, jobs: dict[str, queue.Job], before: dict[str, State], done: bool
) -> State:
    stamp, job = stamp_of(name, one), jobs.get(job_name(name, one))
    record = stage.read(stamp)
    if done:
        if not one.leaves.exists():
            raise ValueError(f"--done {one.name}: {one.leaves} is not there")
        return State(COMPLETE, "as --done says")
    if job and not stamp.exists():
        return State(ACTIVE, f"job {job.id} {job.state}" + (f" ({job.reason})" if job.reason != "None" else ""), job.id)
    why = _unbuilt(one) if one.spec else _unfinished(one, stamp, record)
    stale = _changed(one, stamp, record) if record and not one.spec else ""
    rerun = [need for need in one.needs if before[need].what != COMPLETE]
    if not (why or stale or rerun):
        return State(
            COMPLETE, f"job {record.job}" if record and record.job and stamp.exists() else f"{one.leaves} is there"
        )
    if one.run and (stale or rerun) and any(one.run.glob("checkpoint-*")):
        raise ValueError(
            f"{one.name}: {stale or f'{rerun[0]}, which it needs, runs again'}, and {one.run} holds the checkpoints of "
            f"another run, from which this one would go on. To train anew: mv {one.run} {one.run}.old. "
            + _kept(again, one, stamp.exists(), "" if stale else rerun[0])
        )
    return State(RUN, why or stale or f"{', '.join(rerun)}: not complete")


def _kept(again: str, one: Stage, finished: bool, need: str) -> str:
    """The way out that keeps a training's checkpoints. `need`: the stage before it that runs again, if that is why."""
    if finished:
        return f"To keep them as they are: {again} --done {one.name}"
    if need:
        return f"To go on from them, with what {need} has left: {again} --done {need}"
    return f"To go on from them: hermes3 launch {one.arguments[0]}, and when that is trained: {again} --done {one.name}"


def _unfinished(one: Stage, stamp: Path, record: stage.Record | None) -> str:
    """Why a stage is not complete; "" if it is."""
    if stamp.exists():
        return "" if one.leaves.exists() else f"{one.leaves} is gone"
    if record is None:
        return "never run"
    if Path(record.log).is_file():
        return f"job {record.job} ended unfinished: see {record.log}"
    return f"job {record.job} was cancelled before it began"


def _changed(one: Stage, stamp: Path, record: stage.Record) -> str:
    """What has changed since a stage was submitted; "" for nothing."""
    now = stage.hashes(one.reads)
    files = sorted(file for file in now.keys() | record.reads.keys() if now.get(file) != record.reads.get(file))
    made = stage.made(stamp)
    files += [file for file, was in made.items() if stage.hashes([Path(file)]).get(file) != was]
    if files:
        return f"{files[0]} has changed since job {record.job}"
    return "" if record.command == one.command else f"its command is another than job {record.job}'s"


def _unbuilt(one: Stage) -> str:
    """Why a mix is not what its spec says now; "" if it is, whoever built it."""
    if not one.leaves.is_file():
        return f"{one.leaves.parent} is not built"
    manifest, spec = json.loads(one.leaves.read_text(encoding="utf-8")), specs.load(one.spec)
    if manifest.get("spec") != spec.model_dump(mode="json"):
        return f"{one.spec} has changed since {one.leaves.parent} was built"
    return "" if manifest.get("lock") == locks.read(one.spec) else f"the lock of {one.spec} is another"
