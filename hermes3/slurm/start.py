"""`python -m hermes3.slurm.start RECIPE`: may this job train the recipe? What launch/train.sbatch asks first.

Prints the line of `declared`. A job of another size than the recipe's submits itself anew, and nothing is printed on
stdout. A run that another job trains is refused.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import queue, stage
from hermes3.slurm.declared import declared

RESIZED = "HERMES3_RESIZED"  # set in a job that has been submitted anew
CLAIM = ".job"  # in output_dir: the id of the job that trains into it
# What `scontrol show job` knows of the options that a job was submitted with
KEPT = {
    "Partition": "--partition",
    "TimeLimit": "--time",
    "Account": "--account",
    "QOS": "--qos",
    "Reservation": "--reservation",
    "Features": "--constraint",
    "ExcNodeList": "--exclude",
}


def start(path: Path) -> str:
    """The line, or "" when the job was submitted anew. `ValueError` says why it may not train, and the remedy."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise ValueError(f"{path}: the jobs of an array would all train into one output_dir; submit it without --array")
    recipe = read(path)
    hardware, line = hardware_of(path, recipe), declared(path)
    given = os.environ.get("SLURM_GPUS_ON_NODE")
    counted = hardware.gpu != CPU and (given is not None or _counts_gpus())
    if int(os.environ["SLURM_NNODES"]) != hardware.nodes or (counted and int(given or 0) < hardware.gpus_per_node):
        resubmit(path, hardware, counted)
        return ""
    claim(Path(recipe.get("output_dir") or "model-out"))  # Axolotl's default
    return line


def _counts_gpus() -> bool:
    """Whether this partition's GPUs are known to Slurm; where not, the preflight counts them."""
    line = ["sinfo", "--noheader", "--format=%G", f"--partition={os.environ['SLURM_JOB_PARTITION']}"]
    return "gpu" in subprocess.run(line, text=True, capture_output=True).stdout


def resubmit(path: Path, hardware: Hardware, gpus: bool) -> None:
    """Submit the same training with the declared size."""
    said = subprocess.run(["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]], text=True, capture_output=True)
    shown = dict(re.findall(r"(\w+)=(\S*)", said.stdout))
    line = ["sbatch", "--parsable", f"--nodes={hardware.nodes}", f"--job-name={os.environ['SLURM_JOB_NAME']}"]
    line += [f"--gpus-per-node={hardware.gpus_per_node}"] if gpus else []
    line += [f"{option}={shown[name]}" for name, option in KEPT.items() if shown.get(name, "(null)") != "(null)"]
    line += ["launch/train.sbatch", str(path)]
    size = f"{hardware.nodes} nodes of {hardware.gpus_per_node} ({hardware.gpu})"
    found = f"{os.environ['SLURM_NNODES']} nodes of {os.environ.get('SLURM_GPUS_ON_NODE', 0)} GPUs"
    if stage.VARIABLE in os.environ:
        raise ValueError(f"{path} is for {size}, this stage has {found}: the stages behind it wait for this very job")
    if RESIZED in os.environ:
        raise ValueError(f"{path} is for {size}; submitted so, and yet given {found}: see the partition with sinfo")
    print(f"train: {path} is for {size}, this job has {found}:\n  {shlex.join(line)}", file=sys.stderr)
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del os.environ[name]  # this job's variables would be taken for the new one's options
    os.environ[RESIZED] = "1"
    try:
        job = queue.submit(line)
    except ValueError as error:
        raise ValueError(f"{error}\n  a site may forbid it to jobs: then type that on a login node") from None
    print(
        f"Submitted batch job {job}: any other option is lost, and what waits for this job does not wait for that one; "
        "`hermes3 launch` asks for the right size at once",
        file=sys.stderr,
    )


def claim(output_dir: Path) -> None:
    """Note this job in `output_dir`. `ValueError` when another one trains into it, from whichever folder."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file, mine = output_dir / CLAIM, os.environ["SLURM_JOB_ID"]
    while True:
        try:
            with file.open("x") as new:
                new.write(mine)
            return
        except FileExistsError:
            holder = file.read_text(encoding="utf-8")
        if holder == mine:
            return
        if not holder or _active(holder):
            raise ValueError(
                f"{file}: job {holder or 'that starts just now'} trains into it already; wait for it, or end it with "
                f"scancel {holder}; if it is no training, delete the file"
            )
        file.unlink(missing_ok=True)


def _active(job: str) -> bool:
    """Whether Slurm still has the job. One that is ending is waited for, up to five minutes."""
    for _ in range(60):
        line = ["squeue", "--noheader", f"--job={job}", "--format=%T"]
        done = subprocess.run(line, text=True, capture_output=True)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise ValueError(f"{done.stderr.strip()}\n  asked whether job {job} still trains into the same output_dir")
        if done.stdout.strip() != "COMPLETING":
            break
        time.sleep(5)
    return bool(done.stdout.strip())


if __name__ == "__main__":
    try:
        print(start(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))
