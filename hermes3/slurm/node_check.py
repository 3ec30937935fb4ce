"""What a node says of itself before it may train: `python -m hermes3.slurm.node_check <expected.json`, JSON to stdout.

It runs on each node of a job, and imports neither torch nor Axolotl: seconds. The question comes by stdin, the
answer goes by stdout, as a node that lacks the shared file system must be able to say so.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hermes3.git import commit
from hermes3.slurm.queue import node_name

SHM = 1e9  # bytes: NCCL and the data loaders' workers share memory there; a container has 64 MB unless told otherwise
PACKAGES = (
    "torch", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "axolotl", "transformers", "accelerate", "deepspeed", "trl",
    "peft", "flash-attn", "liger-kernel",
)  # fmt: skip


@dataclass
class Expected:
    """What the head node asks. Paths are absolute; `base_model` and `mix` None where there is no folder to look at.

    `tokens`: file -> its content, written by the head node, in each folder that this node must write. `hash_files`:
    files of the mix that this node reads whole.
    """

    gpu: str
    gpus_per_node: int
    repository: str
    recipe: str
    output_dir: str
    storage: float  # bytes
    host_memory: float  # bytes
    base_model: str | None
    mix: str | None
    tokens: dict[str, str]
    hash_files: list[str] = field(default_factory=list)


@dataclass
class Check:
    """`ok` None: not looked at, and `text` why. `same`: what must be the same on every node."""

    ok: bool | None
    text: str
    same: str | None = None


def versions(expected: Expected) -> Check:
    """The driver, the packages and the code are one on all nodes; else ranks compute different things, or hang."""
    parts = {}
    if expected.gpu != "cpu":
        parts["driver"] = ask_nvidia_smi().findtext("driver_version", "?")
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            parts[package] = version(package)
    if code := commit(Path(expected.repository), digits=12, dirty=False):  # a file edited meanwhile is no node's fault
        parts["commit"] = code
    parts["recipe"] = sha256(Path(expected.recipe).read_bytes()).hexdigest()[:12]
    text = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    return Check(True, text, same=text)


def disk(expected: Expected) -> Check:
    """Room for all that the run will hold there at once, less what it has written already."""
    out = Path(expected.output_dir)
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    free, needed = shutil.disk_usage(there).free, max(0.0, expected.storage - held)
    return Check(free >= needed, f"{free / 1e9:,.1f} GB free at {there}, {needed / 1e9:,.1f} GB needed")


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
    files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    small = [(folder / name).read_bytes() for name, _ in files if name.endswith((".json", ".jinja"))]
    seen = sha256(repr((files, small)).encode()).hexdigest()[:12]
    return Check(True, f"{len(files)} files, {seen}", same=seen)


def mix(expected: Expected) -> Check:
    from hermes3.mix.manifest import prepared_folder

    if expected.mix is None:
        return Check(None, "datasets name no mix")
    folder = Path(expected.mix)
    text = (folder / "manifest.json").read_bytes()
    name = prepared_folder(json.loads(text))
    if (folder / "prepared").resolve() != folder.resolve() / name:
        return Check(False, f"{folder}/prepared does not lead to {name}")
    seen = sha256(text).hexdigest()[:12]
    return Check(True, f"manifest {seen}", same=seen)


def mix_files(expected: Expected) -> dict[str, Check]:
    """The hash of each file of this node's share, against the manifest."""
    if expected.mix is None or not expected.hash_files:
        return {}
    from hermes3.files import sha256 as of_file

    folder, checks = Path(expected.mix), {}
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["output"].get("files", {})
    for name in expected.hash_files:
        ok = of_file(folder / name) == listed.get(name)
        text = "as in the manifest" if ok else f"{folder / name}: not the hash that the manifest has"
        checks[f"mix {name}"] = Check(ok, text)
    return checks


def shm(expected: Expected) -> Check:
    size = shutil.disk_usage("/dev/shm").free
    return Check(size >= SHM, f"{size / 1e9:,.1f} GB free in /dev/shm, {SHM / 1e9:g} needed")


def memory(expected: Expected) -> Check:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    text = f"{free / 1e9:,.0f} GB of memory available, {expected.host_memory / 1e9:,.0f} needed"
    return Check(free >= expected.host_memory, text)


# GPUs: nvidia-smi says, and NVIDIA's DCGM too where it is installed

DCGM_SECONDS = 90  # `-r 1` takes a few on an idle node
# Tags of `nvidia-smi -q -x`, values of them by which a GPU must not be used, and what these mean. Drivers differ in
# which they have: clocks_throttle_reason_* before 535, clocks_event_reason_* from it on. Idle and capped are normal
FAULTS = (
    (r"remapped_row_pending|pending_(retirement|blacklist)|channel_repair_pending", "Yes", "a repair awaits a reset"),
    (r"remapped_row_failure|unrepairable_memory|sram_threshold_exceeded", "Yes", "its memory has failed"),
    (r"clocks_.*_reason_(hw_.*|sw_thermal)_?slowdown", "Active", "its clocks are held down"),
    (r"gpu_recovery_action", r"(?!None$|N/A$).+", "the driver asks for it"),
)


def gpus(expected: Expected) -> Check:
    count = len(list(ask_nvidia_smi().iter("gpu")))
    return Check(count == expected.gpus_per_node, f"{count} GPUs, the recipe declares {expected.gpus_per_node}")


def health(expected: Expected) -> Check:
    """No uncorrected memory errors, no repairs that wait for a reset, no clocks that the hardware lowers."""
    dcgm = dcgm_faults()
    faults = [f"GPU {n}: {fault}" for n, gpu in enumerate(ask_nvidia_smi().iter("gpu")) for fault in gpu_faults(gpu)]
    if faults := [*faults, *(dcgm or [])]:
        return Check(False, "; ".join(faults))
    return Check(True, "nvidia-smi and dcgmi find nothing" if dcgm is not None else "nvidia-smi finds nothing")


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
    """What `nvidia-smi -q -x` says. `ValueError` when it is not installed or cannot talk to the driver."""
    if not shutil.which("nvidia-smi"):
        raise ValueError("nvidia-smi is not on this node")
    ran = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True)
    if ran.returncode:
        lines = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing"]
        raise ValueError(f"nvidia-smi ended with {ran.returncode}: {lines[-1]}")
    return ET.fromstring(ran.stdout)


def gpu_faults(gpu: ET.Element) -> Iterator[str]:
    """What is wrong with one GPU, by its part of `nvidia-smi -q -x`."""
    volatile = gpu.find("ecc_errors/volatile")
    for count in volatile if volatile is not None else []:
        if "uncorrectable" in count.tag and (count.text or "").strip().isdigit() and int(count.text):
            yield f"{int(count.text)} uncorrected ECC errors ({count.tag}) since the driver was loaded"
    for element in gpu.iter():
        value = (element.text or "").strip()
        for tags, bad, meaning in FAULTS:
            if re.fullmatch(tags, element.tag) and re.fullmatch(bad, value):
                yield f"{meaning} ({element.tag}: {value})"


def dcgm_faults() -> list[str] | None:
    """Tests of `dcgmi diag -r 1` that failed; None where DCGM is not installed or its service does not answer."""
    if not shutil.which("dcgmi"):
        return None
    ran = subprocess.run(["dcgmi", "diag", "-r", "1"], capture_output=True, text=True, timeout=DCGM_SECONDS)
    results = re.findall(r"^\|\s*(\S[^|]*?)\s*\|\s*(Pass|Fail|Skip|Warn)", ran.stdout, re.MULTILINE)
    return [f"dcgmi diag: {name} failed" for name, result in results if result == "Fail"] if results else None


# the answer

CHECKS: dict[str, Callable[[Expected], Check]] = {
    check.__name__: check for check in (gpus, health, idle, versions, disk, shared, model, mix, shm, memory)
}
OF_GPUS = ("gpus", "health", "idle")
REMEDY = {
    "gpus": "one has fallen off the bus, so drain the node; or the job asked for fewer than the recipe declares",
    "health": "drain the node and reset its GPUs; ask the site for its driver",
    "idle": "another job's leftovers: ask the site to end them",
    "versions": "mount the repository on this node, with the same environment and driver, or leave it out",
    "disk": "free some, or set output_dir elsewhere (`hermes3 plan` says what takes it); is it mounted on this node?",
    "shared": "mount the file systems of output_dir and logs/ on this node, writable",
    "model": "build or copy the model again, and mount one file system on all nodes",
    "mix": "copy or build the mix again (`hermes3 mix verify` looks at all of it), and mount one file system",
    "shm": "in a container give more, e.g. --shm-size=16g, or mount the host's /dev/shm",
    "memory": "a larger node, or more of them (`hermes3 plan`); look for leftovers",
}


def answer(expected: Expected) -> dict[str, Any]:
    """All checks of this node. A check that fails by an error is bad, and says the error."""
    start, checks = time.time(), {}
    for name, check in CHECKS.items():
        if name in OF_GPUS and expected.gpu == "cpu":
            checks[name] = Check(None, "the recipe declares CPUs")
            continue
        print(name, file=sys.stderr, flush=True)  # where a node that hangs has come to
        try:
            checks[name] = check(expected)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            checks[name] = Check(False, f"{error}")
    try:
        checks |= mix_files(expected)
    except (OSError, ValueError, KeyError) as error:
        checks["mix"] = Check(False, f"{error}")
    answers = {name: asdict(check) | {"remedy": REMEDY[name.split()[0]]} for name, check in checks.items()}
    return {"node": node_name(), "clock": time.time(), "seconds": round(time.time() - start, 2), "checks": answers}


if __name__ == "__main__":
    print(json.dumps(answer(Expected(**json.load(sys.stdin)))))
