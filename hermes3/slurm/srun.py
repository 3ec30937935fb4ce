"""Running a command on some nodes of this job, each for a limited time; without a job, on this machine."""

import os
import subprocess
import sys
from dataclasses import dataclass

from hermes3.slurm.node_check import node_name

SECONDS = 180  # for a step of the preflight: python from a cold shared file system, DCGM's tests
GRACE = 15  # seconds that srun has to end its step once it is told to


def limit() -> float:
    """Seconds after which a step has hung."""
    return float(os.environ.get("HERMES3_PREFLIGHT_SECONDS", SECONDS))


@dataclass
class Srun:
    """`options`: further ones of srun, such as a container's."""

    options: list[str]

    def nodes(self) -> list[str]:
        """The job's nodes in Slurm's order, the first being the one that the batch script runs on."""
        if "SLURM_JOB_ID" not in os.environ:
            return [node_name()]
        names = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        return subprocess.run(names, check=True, capture_output=True, text=True).stdout.split()

    def running(self) -> bool:
        """False once somebody has cancelled or requeued the job: its steps end before this process. A guess is True."""
        if not (job := os.environ.get("SLURM_JOB_ID")):
            return True
        asked = ["squeue", "--noheader", f"--job={job}", "--format=%T"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip() in ("RUNNING", "")

    def python(
        self, nodes: list[str], arguments: list[str], text: str = "", env: dict[str, str] | None = None
    ) -> tuple[int | None, str, str]:
        """(exit code, stdout, stderr) of `python arguments`, once on each of `nodes`. No exit code: out of time.

        `text` goes to the first node's stdin.
        """
        python = "python" if self.options else sys.executable  # in a container it is the container's own
        return self.run(nodes, [python, *arguments], text, env)

    def run(
        self, nodes: list[str], command: list[str], text: str = "", env: dict[str, str] | None = None
    ) -> tuple[int | None, str, str]:
        prefix: list[str] = []
        if "SLURM_JOB_ID" in os.environ:
            prefix = [
                *("srun", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}"),
                *("--ntasks-per-node=1", "--kill-on-bad-exit=0"),
                f"--cpus-per-task={os.environ['SLURM_CPUS_ON_NODE']}",  # else a node's ranks would share one core
                "--overlap",  # a step that hangs keeps nothing from the next
            ]
        process = subprocess.Popen(
            [*prefix, *(self.options if prefix else []), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
        )
        try:
            said, errors = process.communicate(text, timeout=limit())
            return process.returncode, said, errors
        except subprocess.TimeoutExpired:
            process.terminate()  # srun then ends its step on all nodes
        try:
            said, errors = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
        return None, said, errors
