"""`python -m hermes3.slurm.start RECIPE`: may this job train the recipe? What launch/train.sbatch asks first.

Prints the folder of this attempt's logs and `needs(RECIPE)`, one line. A job of another size than the recipe's submits
itself anew, and nothing is printed on stdout. Refused are a run that another job trains, and one that is made of
something else than its first attempt was: `made_of.json` in output_dir says of what.
"""

import hashlib
import itertools
import json
import os
import re
import shlex
import sys
import time
from datetime import datetime
from os.path import exists
from pathlib import Path
from typing import Any

from hermes3.files import UserError, sha256, write_text
from hermes3.git import commit
from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.read import deepspeed_config, read
from hermes3.slurm import queue
from hermes3.slurm.record import STAMP
from hermes3.train.checkpoints import newest_complete, step_of

RESIZED = "HERMES3_RESIZED"  # set in a job that has been submitted anew
CLAIM = ".job"  # in output_dir, `.job.1` and so on: links whose target is the id of a job that trains into it
MADE_OF = "made_of.json"
# Keys that a run may change: where it reports, how it is watched, how often it can be taken up again
FREE = re.compile(
    r"(use_)?(wandb|mlflow|comet|tensorboard|trackio|swanlab|otel)|(hub|logging|dataloader)_|"
    r"(restart_steps|save_total_limit|ddp_timeout|output_dir|dataset_prepared_path|dataset_num_proc|"
    r"(auto_)?resume_from_checkpoints?|hardware|gradient_accumulation_steps|reproduces)$"
)
NOT_READ = re.compile(r"\.|optimizer|scheduler|rng_state|trainer_state|README")  # of a model's folder
SAMPLES, SAMPLE = 16, 2**16  # places in a file, and bytes of each, that tell it from another of its size
# What `scontrol show job` knows of the options that a job was submitted with
KEPT = {
    "Partition": "partition", "TimeLimit": "time", "Account": "account", "QOS": "qos", "Reservation": "reservation",
    "Features": "constraint", "ExcNodeList": "exclude",
}  # fmt: skip


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
    digest = hashlib.sha256(json.dumps(values(path, recipe), sort_keys=True, default=str).encode()).hexdigest()
    return f"{hardware.nodes} {hardware.gpus_per_node} {hardware.gpu} {prepared}/recipe-{digest[:12]}"


def start(path: Path) -> str:
    """The line, or "" when the job was submitted anew. `UserError` says why it may not train, and the remedy."""
    recipe, line = read(path), needs(path)
    job = queue.shown(os.environ["SLURM_JOB_ID"])
    if "ArrayTaskId" in job:  # the variable of that name also reaches a job that an array's task submits
        raise UserError(f"{path}: the jobs of an array would all train into one output_dir; submit it without --array")
    hardware, gpus = hardware_of(path, recipe), os.environ.get("SLURM_GPUS_ON_NODE")
    counted = hardware.gpu != CPU and (gpus is not None or _counts_gpus())
    if int(os.environ["SLURM_NNODES"]) != hardware.nodes or (counted and int(gpus or 0) < hardware.gpus_per_node):
        resubmit(path, hardware, counted, job)
        return ""
    output_dir = Path(recipe.get("output_dir") or "model-out")
    restarts = int(job.get("Restarts") or os.environ.get("SLURM_RESTART_COUNT", 0))
    claim(output_dir, os.environ["SLURM_JOB_ID"])
    submitted = datetime.fromisoformat(job.get("SubmitTime", "9999-01-01")).timestamp()
    for file in [path, Path(str(recipe.get("deepspeed")))]:
        if not restarts and file.is_file() and file.stat().st_mtime >= submitted:
            print(f"train: {file} has changed since this job was submitted; it counts as it is now", file=sys.stderr)
    hold(path, recipe, output_dir)
    logs = Path("logs") / os.environ["SLURM_JOB_ID"]
    if not restarts and logs.exists():  # of another cluster's job, or from before Slurm's numbers began anew
        logs.rename(f"{logs}.{time.time():.0f}")
    newest = newest_complete(output_dir)
    begun = {"output_dir": str(output_dir), "step": step_of(newest) if newest else 0}
    write_text(logs / f"attempt_{restarts + 1}/start.json", json.dumps(begun))
    return f"{logs}/attempt_{restarts + 1} {line}"


def _counts_gpus() -> bool:
    """Whether this partition's GPUs are known to Slurm; where not, the preflight counts them."""
    partition = os.environ["SLURM_JOB_PARTITION"]
    return "gpu" in queue.slurm("sinfo", "--noheader", "--format=%G", f"--partition={partition}", strict=False)


def resubmit(path: Path, hardware: Hardware, gpus: bool, job: dict[str, str]) -> None:
    """Submit the same training with the declared size; `gpus`: Slurm counts them; `job`: as `queue.shown` has it."""
    line = ["sbatch", "--parsable", f"--nodes={hardware.nodes}", f"--job-name={os.environ['SLURM_JOB_NAME']}"]
    line += [f"--gpus-per-node={hardware.gpus_per_node}"] if gpus else []
    line += [f"--{option}={job[name]}" for name, option in KEPT.items() if name in job]
    line += ["launch/train.sbatch", str(path)]
    text = f"{path} is for {hardware.nodes} nodes of {hardware.gpus_per_node} ({hardware.gpu}), this job has "
    text += f"{os.environ['SLURM_NNODES']} nodes of {os.environ.get('SLURM_GPUS_ON_NODE', 0)} GPUs"
    if STAMP in os.environ:
        raise UserError(f"{text}; the stages behind this one wait for this very job: see sinfo, and launch again")
    if RESIZED in os.environ:
        raise UserError(f"{text}, though it was submitted so: see the partition with sinfo")
    print(f"train: {text}:\n  {shlex.join(line)}", file=sys.stderr)
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del os.environ[name]  # this job's variables would be taken for the new one's options
    os.environ[RESIZED] = "1"
    try:
        text = f"Submitted batch job {queue.submit(line)}: any other option is lost, and what waits for this job does "
    except UserError as error:
        raise UserError(f"{error}\n  a site may forbid it to jobs: then type that on a login node") from None
    print(f"{text}not wait for that one; `hermes3 launch` asks for the right size at once", file=sys.stderr)


# one job per output_dir


def claim(output_dir: Path, job: str) -> None:
    """Note the job in `output_dir`. `UserError` when another one trains into it, from whichever folder.

    Claims are numbered and never removed: of two jobs that find the newest one's job gone, only one can make the next.
    Making a link is atomic on network file systems, too, and needs no flock.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        file = output_dir / f"{CLAIM}{f'.{number}' if number else ''}"
        try:
            file.symlink_to(job)
            return
        except FileExistsError:
            holder = os.readlink(file) if file.is_symlink() else file.read_text(encoding="utf-8")
        last = not os.path.lexists(output_dir / f"{CLAIM}.{number + 1}")
        if last and holder == job:
            return
        if last and _active(holder):
            raise UserError(
                f"{file}: job {holder} trains into it already; wait for it, or end it with scancel {holder}; if it is "
                "no training, delete the file"
            )


def _active(job: str) -> bool:
    """Whether Slurm still has the job. One that is ending is waited for, up to five minutes."""
    try:
        for _ in range(60):
            if (state := queue.state(job)) != "COMPLETING":
                break
            time.sleep(5)
        return bool(state)
    except UserError as error:
        raise UserError(f"{error}\n  asked whether job {job} still trains into the same output_dir") from None


# one run per output_dir


def values(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what a run may change; its global batch, and what `deepspeed` holds in place of its name."""
    micro, steps = (recipe.get(key) or 1 for key in ("micro_batch_size", "gradient_accumulation_steps"))
    kept = {key: value for key, value in recipe.items() if not FREE.match(key)}
    kept["global_batch"] = micro * steps * hardware_of(path, recipe).gpus
    return kept | ({"deepspeed": deepspeed_config(path, recipe)} if recipe.get("deepspeed") else {})


def made_of(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """What a training of the recipe is made of: `values`, and `files`, hashes of the mix and of what values name."""
    kept = values(path, recipe)
    files = {value: fingerprint(Path(value)) for value in kept.values() if isinstance(value, str) and exists(value)}
    for data in {str(entry.get("path")) for entry in recipe.get("datasets") or []}:
        manifest = Path(data).parent / "manifest.json"
        if manifest.is_file():
            output = json.loads(manifest.read_text(encoding="utf-8")).get("output", {})
            files[str(manifest)] = output.get("sha256") or sha256(manifest)
        elif exists(data):
            files[data] = fingerprint(Path(data))
    lock, hardware = Path("requirements.txt"), hardware_of(path, recipe).model_dump()
    page = {"recipe": str(path), "values": kept, "files": files, "hardware": hardware}
    page |= {"commit": commit(Path()), "lock": sha256(lock) if lock.is_file() else None}
    return json.loads(json.dumps(page, default=str))  # as it is read back


def fingerprint(path: Path) -> str:
    """Hash of a file, or of the files in a folder but for `NOT_READ`: name, size and `SAMPLES` places of each."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and not NOT_READ.match(file.name):
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as data:
                for place in range(SAMPLES):
                    data.seek(size * place // SAMPLES)
                    digest.update(data.read(SAMPLE))
    return digest.hexdigest()


def changed(path: Path, recipe: dict[str, Any], output_dir: Path) -> list[str]:
    """What is another now than when the run in `output_dir` began, a line each; [] also where no record says."""
    file = output_dir / MADE_OF
    if not file.is_file():
        return []
    was, now = json.loads(file.read_text(encoding="utf-8")), made_of(path, recipe)
    lines = [
        f"{path} has changed: {key} was {was['values'].get(key)!r}, is {now['values'].get(key)!r}"
        for key in sorted(was["values"].keys() | now["values"].keys())
        if was["values"].get(key) != now["values"].get(key)
    ]
    both = sorted(was["files"].keys() & now["files"].keys())  # what is gone may be so on this node, says the preflight
    return lines + [f"{name} has changed" for name in both if was["files"][name] != now["files"][name]]


def hold(path: Path, recipe: dict[str, Any], output_dir: Path) -> None:
    """Note what this run is made of, the first time; later `UserError` where that has changed, with the ways out.

    A folder without checkpoints is begun anew by another job. Another commit or lock is said, and no hindrance.
    """
    file, job = output_dir / MADE_OF, os.environ["SLURM_JOB_ID"]
    last = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    started = any(output_dir.glob("checkpoint-*"))
    if last and (started or last["job"] == job):
        if lines := changed(path, recipe, output_dir):
            raise UserError(
                "\n  ".join([f"{path}: its run in {output_dir} was begun with something else:", *lines])
                + f"\n  to go on, put that back and submit again; to train anew: mv {output_dir} {output_dir}.old"
            )
        for key, value in {"commit": commit(Path()), "recipe": str(path)}.items():
            if value != last[key]:
                print(f"train: {key} is {value}, was {last[key]} when this run began", file=sys.stderr)
        return
    if started:
        print(f"train: {output_dir} has checkpoints and no {MADE_OF}: taken for this recipe's", file=sys.stderr)
    write_text(file, json.dumps({"job": job} | made_of(path, recipe), indent=1) + "\n")


if __name__ == "__main__":
    try:
        print(start(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))
