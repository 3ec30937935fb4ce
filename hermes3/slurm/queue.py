"""Asking Slurm and telling it: squeue, sbatch, scancel. A job of ours is known by its name and its working folder."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A job that waits or runs. `state` and `reason` in Slurm's words: PENDING, Dependency."""

    id: int
    name: str
    state: str
    reason: str


def jobs() -> dict[str, Job]:
    """This user's jobs from this folder, by name. `ValueError` when Slurm does not answer."""
    lines = _slurm("squeue", "--noheader", "--me", "--format=%i|%j|%T|%r|%Z").splitlines()
    found = {}
    for line in lines:
        jid, name, state, reason, folder = line.split("|", 4)
        if Path(folder) == Path.cwd():
            found[name] = Job(int(jid.partition("_")[0]), name, state, reason)
    return found


def submit(line: list[str]) -> int:
    """Run an sbatch line that has --parsable; the job's id. `ValueError` with what sbatch says."""
    return int(_slurm(*line).split(";")[0])


def test(line: list[str]) -> None:
    """Ask whether this cluster can run an sbatch line. `ValueError` with what sbatch says, if not.

    By default (EnforcePartLimits=NO) Slurm takes a job for 99 nodes where there are 4, and it waits for ever.
    """
    try:
        _slurm(*line[:1], "--test-only", *line[1:])
    except ValueError as error:
        raise ValueError(f"{error}\n  nodes that are down count as none; --no-check submits all the same") from None


def cancel(ids: list[int]) -> None:
    """Take jobs out of the queue."""
    _slurm("scancel", *map(str, ids))


def _slurm(*argv: str) -> str:
    if not shutil.which(argv[0]):
        raise ValueError(
            f"{argv[0]}: no such command here; run this on a login node of the cluster (--dry-run runs anywhere)"
        )
    done = subprocess.run(argv, text=True, capture_output=True)
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise ValueError(f"{said}\n  the command was: {' '.join(argv)}")
    return done.stdout
