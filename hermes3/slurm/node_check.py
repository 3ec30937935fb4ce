"""What a node says of itself before it may train: `python -m hermes3.slurm.node_check <expected.json`.

A node that lacks the shared file system must be able to say so: the answer is JSON on stdout. It takes seconds, as
torch is not imported. What is looked for, and the remedies, are in words.yml.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from hermes3 import files
from hermes3.slurm.queue import NODE, WORDS

SHM = 1e9  # bytes: NCCL and the data loaders' workers share memory there; a container has 64 MB unless told otherwise


@dataclass
class Expected:
    """What the head node asks. Paths are absolute; `base_model` is None where it names no folder."""

    gpu: str
    gpus_per_node: int
    repository: str
    recipe: str
    output_dir: str
    storage: float  # bytes
    host_memory: float  # bytes
    base_model: str | None
    mix: str
    tokens: dict[str, str]  # file -> what the head node wrote in it, in each folder that this node must write
    share: tuple[int, int] = (0, 1)  # node i of n, which read the mix's files between them


class Check(NamedTuple):
    ok: bool | None  # None: not looked at, and `text` says why
    text: str
    same: str | None = None  # what must be the same on every node


def versions(expected: Expected) -> Check:
    """The driver, the packages and the code are one on all nodes; else ranks compute different things, or hang."""
    parts = {}
    if expected.gpu != "cpu":
        parts["driver"] = ask_nvidia_smi().findtext("driver_version", "?")
    for package in WORDS["node_check"]["packages"]:
        with suppress(PackageNotFoundError):
            parts[package] = version(package)
    if code := files.commit(Path(expected.repository), digits=12, dirty=False):  # an edited file is no node's fault
        parts["commit"] = code
    parts["recipe"] = sha256(Path(expected.recipe).read_bytes()).hexdigest()[:12]
    text = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    return Check(True, text, same=text)


def disk(expected: Expected) -> Check:
    """Room for all that the run will hold there at once, less what it has written already."""
    out = Path(expected.output_dir)
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    return _enough(shutil.disk_usage(there).free, max(0.0, expected.storage - held), f"free at {there}")


def shm(expected: Expected) -> Check:
    return _enough(shutil.disk_usage("/dev/shm").free, SHM, "free in /dev/shm")


def memory(expected: Expected) -> Check:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return _enough(int(lines["MemAvailable"].split()[0]) * 1024, expected.host_memory, "of memory available")


def _enough(free: float, needed: float, what: str) -> Check:
    return Check(free >= needed, f"{free / 1e9:,.1f} GB {what}, {needed / 1e9:,.1f} GB needed")


def shared(expected: Expected) -> Check:
    """The head node's files are seen with their content, and their folders, of logs and output, can be written."""
    for path, content in expected.tokens.items():
        if Path(path).read_text(encoding="utf-8") != content:
            return Check(False, f"{path}: another content than the head node wrote")
    for folder in {expected.output_dir, *(str(Path(path).parent) for path in expected.tokens)}:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    return Check(True, f"{len(expected.tokens)} files of the head node seen, their folders written")


def model(expected: Expected) -> Check:
    from hermes3.model_folder import check_model

    if expected.base_model is None:
        return Check(None, "base_model is a name on the Hub")
    folder = Path(expected.base_model)
    check_model(folder)
    names = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    small = [(folder / name).read_bytes() for name, _ in names if name.endswith((".json", ".jinja"))]
    seen = sha256(repr((names, small)).encode()).hexdigest()[:12]
    return Check(True, f"{len(names)} files, {seen}", same=seen)


def mix(expected: Expected) -> Check:
    from hermes3.mix.manifest import prepared_folder

    folder = Path(expected.mix)
    text = (folder / "manifest.json").read_bytes()
    name = prepared_folder(json.loads(text))
    if (folder / "prepared").resolve() != folder.resolve() / name:
        return Check(False, f"{folder}/prepared does not lead to {name}")
    seen = sha256(text).hexdigest()[:12]
    return Check(True, f"manifest {seen}", same=seen)


def mix_files(expected: Expected) -> Iterator[tuple[str, Check]]:
    """The hash of each training file of this node's share (0.8 GB/s), against the manifest.
    Two nodes read each file, where there are two: broken for one, it is that node's fault, for both the file's."""
    folder, (i, n) = Path(expected.mix), expected.share
    listed = json.loads((folder / "manifest.json").read_bytes())["output"].get("files", {})
    names = sorted(name for name in listed if name.startswith("train/"))
    for name in sorted({*names[i::n], *names[(i - 1) % n :: n]}):
        ok = files.sha256(folder / name) == listed[name]
        yield f"mix {name}", Check(ok, "as in the manifest" if ok else f"{folder / name}: not the manifest's hash")


def gpus(expected: Expected) -> Check:
    count = len(list(ask_nvidia_smi().iter("gpu")))
    return Check(count == expected.gpus_per_node, f"{count} GPUs, the recipe declares {expected.gpus_per_node}")


def health(expected: Expected) -> Check:
    """No uncorrected memory errors, no repairs that wait for a reset, no clocks that the hardware lowers."""
    faults = [f"GPU {n}: {fault}" for n, gpu in enumerate(ask_nvidia_smi().iter("gpu")) for fault in gpu_faults(gpu)]
    return Check(not faults, "; ".join(faults) or "nvidia-smi finds nothing")


def idle(expected: Expected) -> Check:
    """Nothing computes on the GPUs already; a display server does not count."""
    running = []
    for index, gpu in enumerate(ask_nvidia_smi().iter("gpu")):
        for process in gpu.iter("process_info"):
            kind, name = process.findtext("type", ""), process.findtext("process_name", "?")
            if "C" in kind and "nvidia-cuda-mps-server" not in name:
                running.append(f"GPU {index}: {name} (pid {process.findtext('pid', '?')})")
    return Check(not running, "; ".join(running) or "nothing runs on the GPUs")


def ask_nvidia_smi() -> ET.Element:
    """What `nvidia-smi -q -x` says. `OSError` when it is not installed, `ValueError` when it has no driver."""
    ran = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True)
    if ran.returncode:
        lines = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing"]
        raise ValueError(f"nvidia-smi ended with {ran.returncode}: {lines[-1]}")
    return ET.fromstring(ran.stdout)


def gpu_faults(gpu: ET.Element) -> Iterator[str]:
    """What is wrong with one GPU, by its part of `nvidia-smi -q -x`."""
    for count in gpu.iterfind("ecc_errors/volatile/*"):
        if "uncorrectable" in count.tag and (count.text or "").strip().isdigit() and int(count.text):
            yield f"{int(count.text)} uncorrected ECC errors ({count.tag}) since the driver was loaded"
    for element in gpu.iter():
        value = (element.text or "").strip()
        for tags, bad, meaning in WORDS["node_check"]["faults"]:
            if re.fullmatch(tags, element.tag) and re.fullmatch(bad, value):
                yield f"{meaning} ({element.tag}: {value})"


CHECKS = {check.__name__: check for check in (gpus, health, idle, versions, disk, shared, model, mix, shm, memory)}


def answer(expected: Expected) -> dict[str, Any]:
    """All checks of this node. A check that fails by an error is bad, and says the error."""
    start, checks = time.time(), {}
    for name, check in CHECKS.items():
        print(name, file=sys.stderr, flush=True)  # where a node that hangs has come to
        try:
            of_gpus = check in (gpus, health, idle) and expected.gpu == "cpu"
            checks[name] = Check(None, "the recipe declares CPUs") if of_gpus else check(expected)
            if check is mix and checks[name].ok:
                checks |= mix_files(expected)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            checks[name] = Check(False, f"{error}")
    remedies = WORDS["node_check"]["remedies"]
    said = {name: check._asdict() | {"remedy": remedies[name.split()[0]]} for name, check in checks.items()}
    return {"node": NODE, "clock": time.time(), "seconds": round(time.time() - start, 2), "checks": said}


if __name__ == "__main__":
    print(json.dumps(answer(Expected(**json.load(sys.stdin)))))
