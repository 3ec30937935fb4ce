"""`python -m hermes3.slurm.start RECIPE`: may this job train the recipe? What launch/train.sbatch asks first.

Prints `LOGS GPUS_PER_NODE MARK`, or nothing where a job of another size than the recipe's submits itself anew. Refused
are a run that another job trains, and one that is made of something else than at first (`made_of.json`).
"""

import hashlib
import itertools
import json
import os
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from hermes3.files import UserError, commit, sha256, write_text
from hermes3.recipe.hardware import CPU, hardware_of
from hermes3.recipe.read import deepspeed_config, read
from hermes3.slurm import queue
from hermes3.slurm.record import STAMP
from hermes3.train.checkpoints import newest_complete, step_of, unready

RESIZED = "HERMES3_RESIZED"  # set in a job that has been submitted anew
CLAIM = ".job"  # in output_dir, `.job.1` and so on: links whose target is the id of a job that trains into it
MADE_OF = "made_of.json"
FREE, NOT_READ = queue.pattern("start", "free"), queue.pattern("start", "not_read")
SAMPLES, SAMPLE = 16, 2**16  # places in a file, and bytes of each, that tell it from another of its size
KEPT = queue.WORDS["start"]["kept"]


def mark_of(path: Path, recipe: dict[str, Any]) -> str:
    """The file that says that the mix is prepared for this very recipe: beside the prepared data, it goes with them."""
    if not (prepared := recipe.get("dataset_prepared_path")):
        raise UserError(f"{path}: dataset_prepared_path is missing; set it to `prepared` in the folder of the mix")
    digest = hashlib.sha256(json.dumps(values(path, recipe), sort_keys=True, default=str).encode()).hexdigest()
    return f"{prepared}/recipe-{digest[:12]}"


def start(path: Path) -> str:
    """The line, or "" when the job was submitted anew. `UserError` says why it may not train, and the remedy."""
    recipe, number = read(path), os.environ["SLURM_JOB_ID"]
    job, mark = queue.shown(number), mark_of(path, recipe)
    if "ArrayTaskId" in job:  # the variable of that name also reaches a job that an array's task submits
        raise UserError(f"{path}: the jobs of an array would all train into one output_dir; submit it without --array")
    if resubmit(path, recipe, job):
        return ""
    output_dir = Path(recipe.get("output_dir") or "model-out")
    restarts = int(job.get("Restarts") or os.environ.get("SLURM_RESTART_COUNT", 0))
    claim(output_dir, number)
    submitted = datetime.fromisoformat(job.get("SubmitTime", "9999-01-01")).timestamp()
    for file in [path, Path(str(recipe.get("deepspeed")))]:
        if not restarts and file.is_file() and file.stat().st_mtime >= submitted:  # which is in whole seconds
            changes = "has changed since its submission (or just before); it counts as it is"
            print(f"train: {file} {changes}", file=sys.stderr)
    hold(path, recipe, output_dir)
    logs = Path("logs") / number
    if not restarts and logs.exists():  # of another cluster's job, or from before Slurm's numbers began anew
        logs.rename(f"{logs}.{time.time():.0f}")
    newest = newest_complete(output_dir)
    begun = {"output_dir": str(output_dir), "step": step_of(newest) if newest else 0}
    attempt = logs / f"attempt_{restarts + 1}"
    write_text(attempt / "start.json", json.dumps(begun))
    return f"{attempt} {hardware_of(path, recipe).gpus_per_node} {mark}"


def resubmit(path: Path, recipe: dict[str, Any], job: dict[str, str]) -> bool:
    """Submit the same training anew if this job has not the declared size; `job`: as `queue.shown` has it."""
    declared, nodes, gpus = hardware_of(path, recipe), os.environ["SLURM_NNODES"], os.environ.get("SLURM_GPUS_ON_NODE")
    counted = declared.gpu != CPU  # where Slurm knows no GPUs, the preflight counts them
    if counted and gpus is None:
        query = ("sinfo", "--noheader", "--format=%G", f"--partition={os.environ['SLURM_JOB_PARTITION']}")
        counted = "gpu" in queue.slurm(*query, strict=False)
    if int(nodes) == declared.nodes and (not counted or int(gpus or 0) >= declared.gpus_per_node):
        return False
    line = ["sbatch", "--parsable", f"--nodes={declared.nodes}", f"--job-name={os.environ['SLURM_JOB_NAME']}"]
    line += [f"--gpus-per-node={declared.gpus_per_node}"] if counted else []
    line += [f"--{option}={job[name]}" for name, option in KEPT.items() if name in job]
    line += ["launch/train.sbatch", str(path)]
    text = f"{path} is for {declared.nodes} nodes of {declared.gpus_per_node} ({declared.gpu})"
    text += f", this job has {nodes} nodes of {gpus or 0} GPUs"
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
    return True


def claim(output_dir: Path, job: str) -> None:
    """Note the job in `output_dir`. `UserError` when another one trains into it, from whichever folder.

    Claims are never removed: of two jobs that find the newest one's job gone, one can make the next link (atomically).
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
            ways = f"wait for it, or end it with scancel {holder}; if it is no training, delete the file"
            raise UserError(f"{file}: job {holder} trains into it already; {ways}")


def _active(job: str) -> bool:
    """Whether Slurm still has the job. One that is ending is waited for, up to five minutes."""
    try:
        for _ in range(60):
            state = queue.slurm("squeue", "--noheader", f"--job={job}", "--format=%T").strip()
            if state != "COMPLETING":
                break
            time.sleep(5)
        return bool(state)
    except UserError as error:
        if "Invalid job id" in str(error):
            return False
        raise UserError(f"{error}\n  asked whether job {job} still trains into the same output_dir") from None


def values(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what a run may change; its global batch, and what `deepspeed` holds in place of its name."""
    micro, steps = (recipe.get(key) or 1 for key in ("micro_batch_size", "gradient_accumulation_steps"))
    kept = {key: value for key, value in recipe.items() if not FREE.match(key)}
    kept["global_batch"] = micro * steps * hardware_of(path, recipe).gpus
    return kept | ({"deepspeed": deepspeed_config(path, recipe)} if recipe.get("deepspeed") else {})


def made_of(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """`values`, and `files`: hashes of the mix and of what values name."""
    kept = values(path, recipe)
    named = [Path(value) for value in kept.values() if isinstance(value, str)]
    # an empty folder is a mount that this node lacks, and no base model: the preflight will say so
    there = [path for path in named if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    files = {str(path): fingerprint(path) for path in there}
    for data in {str(entry.get("path")) for entry in recipe.get("datasets") or []}:
        manifest = Path(data).parent / "manifest.json"
        if manifest.is_file():
            output = json.loads(manifest.read_text(encoding="utf-8")).get("output", {})
            files[str(manifest)] = output.get("sha256") or sha256(manifest)
        elif Path(data).exists():
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
    old, new = was["values"], now["values"]
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    lines = [f"{path} has changed: {key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys]
    both = sorted(was["files"].keys() & now["files"].keys())  # what is gone may be so on this node, says the preflight
    lines += [f"{name} has changed" for name in both if was["files"][name] != now["files"][name]]
    newest = newest_complete(output_dir)
    return lines + (unready(newest, hardware_of(path, recipe).gpus) if newest else [])


def hold(path: Path, recipe: dict[str, Any], output_dir: Path) -> None:
    """Note what this run is made of, the first time; later `UserError` where that has changed, with the ways out.

    A folder without checkpoints is begun anew by another job. Another commit is said, and no hindrance.
    """
    file, job = output_dir / MADE_OF, os.environ["SLURM_JOB_ID"]
    last = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    started = any(output_dir.glob("checkpoint-*"))
    if last and (started or last["job"] == job):
        if lines := changed(path, recipe, output_dir):
            ways = f"to go on, put that back and submit again; to train anew: mv {output_dir} {output_dir}.old"
            wrong = f"{path}: its run in {output_dir} was begun with something else:"
            raise UserError("\n  ".join([wrong, *lines, ways]))
        now = {"commit": commit(Path()), "recipe": str(path), "hardware": hardware_of(path, recipe).model_dump()}
        for key, value in now.items():
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
