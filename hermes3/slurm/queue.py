"""The one place that talks to Slurm: its queue, this job, and steps on this job's nodes.

A job of ours is known by its name and its working folder.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hermes3.files import UserError

SECONDS = 180  # for a step of the preflight: python from a cold shared file system, DCGM's tests
GRACE = 15  # seconds that srun has to end its step once it is told to


def slurm(*argv: str, strict: bool = True) -> str:
    """What a command of Slurm prints. `UserError` with its own words if it fails; "" then where not `strict`."""
    if not shutil.which(argv[0]):
        raise UserError(
            f"{argv[0]}: no such command here; run this on a login node of the cluster (--dry-run runs anywhere)"
        )
    done = subprocess.run(argv, text=True, capture_output=True)
    if done.returncode and strict:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise UserError(f"{reason}\n  the command was: {' '.join(argv)}")
    return done.stdout


@dataclass(frozen=True)
class Job:
    """A job that waits or runs. `state` and `reason` in Slurm's words: PENDING, Dependency."""

    id: int
    name: str
    state: str
    reason: str


def jobs() -> dict[str, Job]:
    """This user's jobs from this folder, by name. `UserError` when Slurm does not answer."""
    by_name = {}
    for line in slurm("squeue", "--noheader", "--me", "--format=%i|%j|%T|%r|%Z").splitlines():
        jid, name, state, reason, folder = line.split("|", 4)
        if Path(folder) == Path.cwd():
            by_name[name] = Job(int(jid.partition("_")[0]), name, state, reason)
    return by_name


def state(job: str) -> str:
    """RUNNING, COMPLETING, ...; "" for a job that Slurm no longer has. `UserError` when it does not answer."""
    try:
        return slurm("squeue", "--noheader", f"--job={job}", "--format=%T").strip()
    except UserError as error:
        if "Invalid job id" in str(error):
            return ""
        raise


def shown(job: str) -> dict[str, str]:
    """What `scontrol show job` says: JobState, NodeList, TimeLimit and so on; {} where it says nothing."""
    pairs = re.findall(r"(\w+)=(\S*)", slurm("scontrol", "-o", "show", "job", job, strict=False))
    return dict(reversed(pairs))  # of a name that a comment repeats, the first


def preempted(job: str) -> bool:
    """Whether Slurm takes this job's nodes for another: it ends the ranks some time (GraceTime) before the job."""
    fields = shown(job)
    started, taken = (fields.get(name, "") for name in ("StartTime", "PreemptTime"))
    return taken[:1].isdigit() and taken > started  # an earlier one was of an attempt before


def submit(line: list[str]) -> int:
    """Run an sbatch line that has --parsable; the job's id. `UserError` with what sbatch says."""
    return int(slurm(*line).split(";")[0])


def test(line: list[str]) -> None:
    """Ask whether this cluster can run an sbatch line. `UserError` with what sbatch says, if not.

    By default (EnforcePartLimits=NO) Slurm takes a job for 99 nodes where there are 4, and it waits for ever.
    """
    try:
        slurm(*line[:1], "--test-only", *line[1:])
    except UserError as error:
        raise UserError(f"{error}\n  nodes that are down count as none; --no-check submits all the same") from None


def cancel(ids: list[int]) -> None:
    """Take jobs out of the queue."""
    slurm("scancel", *map(str, ids))


# steps of this job


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def limit() -> float:
    """Seconds after which a step has hung."""
    return float(os.environ.get("HERMES3_PREFLIGHT_SECONDS", SECONDS))


@dataclass
class Srun:
    """Runs commands on nodes of this job, each for a limited time; without a job, on this machine.

    `options`: further ones of srun, such as a container's.
    """

    options: list[str]

    def nodes(self) -> list[str]:
        """The job's nodes in Slurm's order, the first being the one that the batch script runs on."""
        if "SLURM_JOB_ID" not in os.environ:
            return [node_name()]
        return slurm("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()

    def running(self) -> bool:
        """False once somebody has cancelled or requeued the job: its steps end before this process. A guess is True."""
        if not (job := os.environ.get("SLURM_JOB_ID")):
            return True
        return slurm("squeue", "--noheader", f"--job={job}", "--format=%T", strict=False).strip() in ("RUNNING", "")

    def python(
        self, nodes: list[str], arguments: list[str], text: str = "", env: dict[str, str] | None = None
    ) -> tuple[int | None, str, str]:
        """`run` of `python arguments`: in a container it is the container's own."""
        return self.run(nodes, ["python" if self.options else sys.executable, *arguments], text, env)

    def run(
        self, nodes: list[str], command: list[str], text: str = "", env: dict[str, str] | None = None
    ) -> tuple[int | None, str, str]:
        """(exit code, stdout, stderr) of `command`, once on each of `nodes`. No exit code: out of time.

        `text` goes to the first node's stdin.
        """
        prefix: list[str] = []
        if "SLURM_JOB_ID" in os.environ:
            prefix = [
                *("srun", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}"),
                *("--ntasks-per-node=1", "--kill-on-bad-exit=0"),
                f"--cpus-per-task={os.environ['SLURM_CPUS_ON_NODE']}",  # else a node's ranks would share one core
                "--overlap",  # a step that hangs keeps nothing from the next
                *self.options,
            ]
        pipe, env = subprocess.PIPE, os.environ | (env or {})
        process = subprocess.Popen([*prefix, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        try:
            stdout, stderr = process.communicate(text, timeout=limit())
            return process.returncode, stdout, stderr
        except subprocess.TimeoutExpired:
            process.terminate()  # srun then ends its step on all nodes
        try:
            stdout, stderr = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
        return None, stdout, stderr
