"""Submitting what is to run of a pipeline, as jobs that wait for each other, and saying so.

Under logs/pipeline/NAME/ lie submit.sh (the sbatch lines), `commands/` (one file a stage, which the report shows), and
each stage's record and stamp (`hermes3.slurm.stage`).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermes3.files import write_text
from hermes3.slurm import queue, stage, submit
from hermes3.slurm.chain import Stage
from hermes3.slurm.states import COMPLETE, RUN, State, job_name, stamp_of


@dataclass(frozen=True)
class Submission:
    """`again`: the user's command, `name`: the pipeline's, `found`: the state of each stage, `times`: limits of some.

    `options`: the user's for sbatch; `done`: stages that he takes for complete.
    """

    again: str
    name: str
    stages: list[Stage]
    found: dict[str, State]
    times: dict[str, str | None] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[tuple[Stage, list[str], list[str]]]:
        """(stage, its sbatch line without dependencies, the stages that it waits for), of those that are to run."""
        for one in self.stages:
            if self.found[one.name].what == RUN:
                line = submit.sbatch(
                    one.script,
                    one.arguments,
                    job_name(self.name, one),
                    one.hardware,
                    self.times.get(one.name),
                    [*one.options, *self.options],
                    stamp_of(self.name, one),
                )
                yield one, line, [need for need in one.needs if self.found[need].what != COMPLETE]

    def test(self) -> None:
        """`ValueError` for the first stage that this cluster cannot run; nothing is submitted."""
        for one, line, _ in self.lines():
            try:
                queue.test(line)
            except ValueError as error:
                raise ValueError(
                    f"stage {one.name}: this cluster cannot run it now; nothing is submitted\n  {error}"
                ) from None

    def submit(self) -> dict[str, int]:
        """Submit the lines; {stage: job}. When one is refused, those before it are cancelled: no half chain is left."""
        for one in self.stages:
            if one.name in self.done:
                stage.write(stamp_of(self.name, one), self._record(one, None))
                stage.done(stamp_of(self.name, one))
        ids = {name: state.job for name, state in self.found.items() if state.job}
        submitted: dict[str, int] = {}
        try:
            for one, line, needs in self.lines():
                stamp_of(self.name, one).unlink(missing_ok=True)  # before: the job may end before it is noted
                job = queue.submit(waiting(line, [ids[need] for need in needs]))
                ids[one.name] = submitted[one.name] = job
                stage.write(stamp_of(self.name, one), self._record(one, job))
        except BaseException as error:  # an interrupt of the keyboard, too
            if submitted:
                queue.cancel(list(submitted.values()))
            if not isinstance(error, ValueError):
                raise
            before = f"the {len(submitted)} before it are cancelled, so " if submitted else ""
            raise ValueError(f"stage {one.name} was refused; {before}nothing is submitted\n  {error}") from None
        return submitted

    def script(self) -> str:
        """submit.sh: the lines as a user would type them, each job's id in a variable of its stage's name."""
        text = f"#!/usr/bin/env bash\n# What `{self.again}` submits now; it keeps the records of the stages, too.\n"
        text += "# shellcheck disable=SC2034 # the last id is for you\nset -euo pipefail\n"
        for name, state in self.found.items():
            text += f"# {name}: {state.what}, {state.why}\n" + (f"{name}={state.job}\n" if state.job else "")
        for one, line, needs in self.lines():
            shown = submit.shell(waiting(line, [f"JOB_{need}" for need in needs]))
            for need in needs:  # variables, which shlex would have quoted
                shown = shown.replace(f":JOB_{need}", f':"${need}"')
            text += f"\n{one.name}=$({shown})\n"
        return text

    def write_commands(self, folder: Path) -> None:
        """NN-STAGE in `folder`, one a stage, as the report lists them."""
        for number, one in enumerate(self.stages, 1):
            write_text(folder / f"{number:02}-{one.name}", one.command + "\n")

    def rows(self, submitted: dict[str, int]) -> list[dict[str, Any]]:
        """What is said of each stage."""
        return [
            {
                "stage": one.name,
                "state": "submitted" if one.name in submitted else self.found[one.name].what,
                "hardware": one.hardware.model_dump() if one.hardware else None,
                "time": self.times.get(one.name),
                "needs": one.needs,
                "why": self.found[one.name].why,
                "command": one.command,
                "job": submitted.get(one.name, self.found[one.name].job),
            }
            for one in self.stages
        ]

    def _record(self, one: Stage, job: int | None) -> stage.Record:
        after = {one.name}  # it, and the stages that need it, directly or not
        for other in self.stages:
            if after & set(other.needs):
                after.add(other.name)
        return stage.Record(
            stage=one.name,
            job=job,
            log=f"logs/{job_name(self.name, one)}-{job}.log",
            command=one.command,
            reads=stage.hashes(one.reads),
            needed_by=[other.name for other in self.stages if other.name in after - {one.name}],
            again=self.again,
            made=[str(path) for path in one.made],
        )


def reject(options: list[str], where: str = "") -> None:
    """`ValueError` for options of sbatch that the pipeline sets itself; it begins with `where`."""
    names = ("--dependency", "-d", "--nodes", "-N", "--export")  # the last tells a job its stamp
    try:
        submit.reject(options, dict.fromkeys(names, "the pipeline sets it"))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


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
    """Hold the pipeline in `folder` while it is submitted. `ValueError` when another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another `hermes3 launch --pipeline` is at work; wait for it") from None
        yield
