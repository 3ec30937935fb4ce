"""`python -m hermes3.slurm.start RECIPE`: may this job train the recipe? What launch/train.sbatch asks first.

Prints `needs(RECIPE)`, one line. A job of another size than the recipe's submits itself anew, and nothing is printed on
stdout. A run that another job trains is refused.
"""

import os
import shlex
import sys
import time
from pathlib import Path

from hermes3.files import UserError, sha256
from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import queue
from hermes3.slurm.record import STAMP

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


def needs(path: Path) -> str:
    """What a batch script must know of a recipe: `NODES GPUS_PER_NODE GPU PREPARED`.

    E.g. `16 8 h100-80gb mixes/hermes3_sft/prepared/recipe-1f0a...`. GPU is `cpu` where processes take the place of
    GPUs. PREPARED is the file that says that the mix is prepared for this very recipe: it lies in the mix's prepared
    data, and so goes with them. `UserError` names the file, the key and the remedy.
    """
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    prepared = recipe.get("dataset_prepared_path")
    if not prepared:
        raise UserError(f"{path}: dataset_prepared_path is missing; set it to `prepared` in the folder of the mix")
    return f"{hardware.nodes} {hardware.gpus_per_node} {hardware.gpu} {prepared}/recipe-{sha256(path)[:12]}"


def start(path: Path) -> str:
    """The line, or "" when the job was submitted anew. `UserError` says why it may not train, and the remedy."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError(f"{path}: the jobs of an array would all train into one output_dir; submit it without --array")
    recipe, line = read(path), needs(path)
    hardware, gpus = hardware_of(path, recipe), os.environ.get("SLURM_GPUS_ON_NODE")
    counted = hardware.gpu != CPU and (gpus is not None or _counts_gpus())
    if int(os.environ["SLURM_NNODES"]) != hardware.nodes or (counted and int(gpus or 0) < hardware.gpus_per_node):
        resubmit(path, hardware, counted)
        return ""
    claim(Path(recipe.get("output_dir") or "model-out"))  # Axolotl's default
    return line


def _counts_gpus() -> bool:
    """Whether this partition's GPUs are known to Slurm; where not, the preflight counts them."""
    partition = os.environ["SLURM_JOB_PARTITION"]
    return "gpu" in queue.slurm("sinfo", "--noheader", "--format=%G", f"--partition={partition}", strict=False)


def resubmit(path: Path, hardware: Hardware, gpus: bool) -> None:
    """Submit the same training with the declared size; `gpus`: Slurm counts them."""
    fields = queue.shown(os.environ["SLURM_JOB_ID"])
    line = ["sbatch", "--parsable", f"--nodes={hardware.nodes}", f"--job-name={os.environ['SLURM_JOB_NAME']}"]
    line += [f"--gpus-per-node={hardware.gpus_per_node}"] if gpus else []
    line += [f"{option}={fields[name]}" for name, option in KEPT.items() if fields.get(name, "(null)") != "(null)"]
    line += ["launch/train.sbatch", str(path)]
    size = f"{hardware.nodes} nodes of {hardware.gpus_per_node} ({hardware.gpu})"
    here = f"{os.environ['SLURM_NNODES']} nodes of {os.environ.get('SLURM_GPUS_ON_NODE', 0)} GPUs"
    if STAMP in os.environ:
        raise UserError(f"{path} is for {size}, this stage has {here}: the stages behind it wait for this very job")
    if RESIZED in os.environ:
        raise UserError(f"{path} is for {size}; submitted so, and yet given {here}: see the partition with sinfo")
    print(f"train: {path} is for {size}, this job has {here}:\n  {shlex.join(line)}", file=sys.stderr)
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del os.environ[name]  # this job's variables would be taken for the new one's options
    os.environ[RESIZED] = "1"
    try:
        job = queue.submit(line)
    except UserError as error:
        raise UserError(f"{error}\n  a site may forbid it to jobs: then type that on a login node") from None
    print(
        f"Submitted batch job {job}: any other option is lost, and what waits for this job does not wait for that one; "
        "`hermes3 launch` asks for the right size at once",
        file=sys.stderr,
    )


def claim(output_dir: Path) -> None:
    """Note this job in `output_dir`. `UserError` when another one trains into it, from whichever folder."""
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
            raise UserError(
                f"{file}: job {holder or 'that starts just now'} trains into it already; wait for it, or end it with "
                f"scancel {holder}; if it is no training, delete the file"
            )
        file.unlink(missing_ok=True)


def _active(job: str) -> bool:
    """Whether Slurm still has the job. One that is ending is waited for, up to five minutes."""
    state = ""
    try:
        for _ in range(60):
            if (state := queue.state(job)) != "COMPLETING":
                break
            time.sleep(5)
    except UserError as error:
        raise UserError(f"{error}\n  asked whether job {job} still trains into the same output_dir") from None
    return bool(state)


if __name__ == "__main__":
    try:
        print(start(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))
