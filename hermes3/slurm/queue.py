"""The one place that talks to Slurm. A job of ours is known by its name and its working folder.
`python -m hermes3.slurm.queue` queues this job again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hermes3.files import UserError, read_yaml

# Seconds
GRACE = 15  # that srun has to end its step once it is told to
PATIENCE, ON_LOGIN_NODE = 300, 60  # slurmctld restarts, or fails over, within two minutes; a user waits
LIMIT = float(os.environ.get("HERMES3_PREFLIGHT_SECONDS", 180))  # for a step: python from a cold shared file system
NODE = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
WORDS = read_yaml(Path(__file__).with_name("words.yml"))


def pattern(part: str, *names: str) -> re.Pattern[str]:
    """What one of these lists of words.yml matches."""
    return re.compile("|".join(word for name in names for word in WORDS[part][name]), re.MULTILINE)


NOT_SENT, AWAY = pattern("queue", "not_sent"), pattern("queue", "not_sent", "lost")
NO_STEP, DROPPED = pattern("queue", "no_step"), pattern("queue", "dropped")


def slurm(*argv: str, strict: bool = True) -> str:
    """What a command of Slurm prints. `UserError` with its own words if it fails; "" then where not `strict`."""
    if not shutil.which(argv[0]):
        remedy = "run this on a login node of the cluster (--dry-run runs anywhere)"
        raise UserError(f"{argv[0]}: no such command here; {remedy}")
    env = {name: value for name, value in os.environ.items() if not DROPPED.match(name)}
    done = patiently(NOT_SENT if argv[0] == "sbatch" else AWAY, argv, env=env)
    if done.returncode and strict:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise UserError(f"{reason}\n  the command was: {' '.join(argv)}")
    return done.stdout


def patiently(away: re.Pattern[str], argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; again for `PATIENCE` seconds, or what is left of this job, while it fails with words of `away`."""
    end = time.time() + ON_LOGIN_NODE
    if "SLURM_JOB_ID" in os.environ:
        end = min(time.time() + PATIENCE, float(os.environ.get("SLURM_JOB_END_TIME") or "inf") - GRACE)
    while True:
        done = subprocess.run(argv, text=True, capture_output=True, **options)
        if not done.returncode or not away.search(done.stderr) or time.time() > end:
            return done
        print(f"{argv[0]}: {done.stderr.strip()}; asked again in 5 s", file=sys.stderr, flush=True)
        time.sleep(5)


class Job(NamedTuple):
    id: int
    state: str  # in Slurm's words: PENDING
    reason: str  # Dependency


def jobs() -> dict[str, Job]:
    """This user's jobs from this folder, by name. `UserError` when Slurm does not answer."""
    lines = slurm("squeue", "--noheader", "--me", "--format=%i|%j|%T|%r|%Z").splitlines()
    rows = [line.split("|", 4) for line in lines]
    return {name: Job(int(jid.partition("_")[0]), *more) for jid, name, *more, at in rows if Path(at) == Path.cwd()}


def shown(job: str) -> dict[str, str]:
    """What `scontrol show job` says: JobState, NodeList, TimeLimit and so on; {} where it says nothing."""
    pairs = re.findall(r"(\w+)=(\S*)", slurm("scontrol", "-o", "show", "job", job, strict=False))
    return {name: value for name, value in reversed(pairs) if value != "(null)"}  # of a name twice, the first


def hosts(nodes: str) -> list[str]:
    """Names of the nodes of an expression such as `n[1-3]`, in its order."""
    return slurm("scontrol", "show", "hostnames", nodes).split() if nodes else []


def submit(line: list[str]) -> int:
    """Run an sbatch line that has --parsable; the job's id. `UserError` with what sbatch says."""
    printed = slurm(*line)
    if not (ids := re.findall(r"^(\d+)(?:;.*)?$", printed, re.MULTILINE)):  # a site may print a greeting before it
        raise UserError(f"sbatch printed no job's id, see squeue --me: {printed.strip()}")
    return int(ids[-1])


def test(line: list[str]) -> None:
    """`UserError` if this cluster cannot run an sbatch line: Slurm lets a job for 99 nodes wait where there are 4."""
    try:
        slurm(*line[:1], "--test-only", *line[1:])
    except UserError as error:
        remedy = "nodes that are down count as none; --no-check submits all the same"
        if "gres" in str(error):
            remedy = "does the partition count no GPUs (sinfo --format=%G)? then add: -- --gpus-per-node=0"
        raise UserError(f"{error}\n  {remedy}") from None


def bad_nodes(file: Path) -> list[str]:
    """The nodes that this job is to leave out: `NODE<tab>why`, a line each. None without the file."""
    return [line.split("\t")[0] for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def requeue() -> str:
    """Queue this job again, without the nodes in logs/JOB/bad_nodes. What to print; `UserError` if it cannot be.

    Only a pending job can be given nodes to exclude, and only a running one can call for itself. A requeued job is
    pending while its script still runs: for KillWait seconds (30 by default) after the TERM that a requeue sends, which
    is ignored here, and must be by the script. The job cannot start before that has ended, and so has the new list.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job = os.environ["SLURM_JOB_ID"]
    fields, bad = shown(job), bad_nodes(Path("logs") / job / "bad_nodes")
    if named := sorted({*bad} & {*hosts(fields.get("ReqNodeList", "") if bad else "")}):
        raise UserError(f"{', '.join(named)}: bad, and asked for by name (--nodelist); submit it anew without it there")
    excluded = ",".join(dict.fromkeys([*hosts(fields.get("ExcNodeList", "")), *bad]))
    if "ArrayTaskId" in fields:  # one task has the id of the whole array, which would be queued again
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    slurm("scontrol", "requeue", job)
    if not bad:
        return f"job {job} is queued again"
    slurm("scontrol", "update", f"JobId={job}", f"ExcNodeList={excluded}")
    return f"job {job} is queued again without {excluded}; pending for long: the partition has no other nodes"


@dataclass
class Srun:
    """Runs steps on nodes of this job; without a job, on this machine. `options`: of srun, such as a container's."""

    options: list[str]

    def nodes(self) -> list[str]:
        """The job's nodes in Slurm's order, the first being the one that the batch script runs on."""
        return hosts(os.environ["SLURM_JOB_NODELIST"]) if "SLURM_JOB_ID" in os.environ else [NODE]

    def running(self) -> bool:
        """False once somebody has cancelled or requeued the job: its steps end before this process. A guess is True."""
        job = os.environ.get("SLURM_JOB_ID")
        return not job or shown(job).get("JobState", "RUNNING") == "RUNNING"

    def python(self, nodes: list[str], arguments: list[str], text: str = "", **env: str) -> tuple[int | None, str, str]:
        """(exit code, None: out of time; stdout; stderr) of `python arguments` on each of `nodes`. `text`: stdin."""
        command = ["python" if self.options else sys.executable, *arguments]
        if "SLURM_JOB_ID" in os.environ:
            srun = ["srun", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}"]
            # else a node's ranks would share one core; overlap: a step that hangs keeps nothing from the next
            srun += [f"--cpus-per-task={os.environ['SLURM_CPUS_ON_NODE']}", "--overlap"]
            command = [*srun, "--ntasks-per-node=1", "--kill-on-bad-exit=0", *self.options, *command]
        # timeout tells srun to end its step on all nodes; SIGKILL would leave it there
        argv = ["timeout", f"--kill-after={GRACE}", str(LIMIT), *command]
        done = patiently(NO_STEP, argv, input=text, env=os.environ | env)
        return (None if done.returncode in (124, 137, -9) else done.returncode), done.stdout, done.stderr


if __name__ == "__main__":
    try:
        print(f"hermes3: {requeue()}")
    except ValueError as error:
        sys.exit(f"hermes3: it may not be queued again: {error}")
