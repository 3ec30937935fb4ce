"""What only a GPU can show: `make gpu-check`, or `python -m bench.gpu_check --help`.

Sections in the order of their worth, each with a time limit. A run ends when its minutes are over, and the same command
goes on with the sections that are left: two runs of six minutes. Each training is written to bench/baselines/ as JSON,
from which `hermes3 plan` takes its speed, and to docs/benchmarks.md. Without CUDA it ends with code 2 and changes
nothing. `--device cpu` runs every section on a stand-in, whose figures say nothing of GPUs: they are printed, and not
written down.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu_run import ROOT, Failed, Training, train, versions
from hermes3.recipe.hardware import GPUS, Gpu, gpu_of

NO_CUDA = 2
LEAST = 20  # seconds that must be left for a section to begin
CPU_TIME = 4  # times the limits on a CPU
FEW = 8  # layers: they load in a quarter of the time, and leave room for settings that take more memory

RECOMPUTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
ZERO3 = {"deepspeed": "deepspeed_configs/zero3_bf16.json", **RECOMPUTED}
# What the recipe's speed is compared with, one change at a time
SETTINGS = {
    "recomputed": RECOMPUTED,
    "no ZeRO": {"deepspeed": None},
    "plain loss": {"liger_fused_linear_cross_entropy": None},
    "compiled": {"torch_compile": True, "torch_compile_regional": True},  # layer by layer
}
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@dataclass
class Section:
    """`run(gpu, out, limit)` returns what was seen, and the run of a training; it raises `Failed`."""

    name: str
    limit: float  # seconds
    run: Callable[[Gpu, Path, float], tuple[str, dict[str, Any] | None]]


def command(arguments: list[str], limit: float, env: dict[str, str] | None = None) -> str:
    """What a Python command printed. `Failed` with its last lines if it fails, or takes longer than `limit` seconds."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"} | (env or {})
    try:
        ended = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"more than {limit:.0f} s") from None
    if ended.returncode:
        raise Failed(f"exit code {ended.returncode}\n{(ended.stdout + ended.stderr)[-1500:]}")
    return ended.stdout.strip()


def imports(gpu: Gpu, out: Path, limit: float) -> tuple[str, None]:
    names = ["torch", "deepspeed", "axolotl.cli.train", "axolotl.core.builders", "trl", "hermes3.train.plugin"]
    names += [] if gpu.is_cpu else ["flash_attn", "liger_kernel.transformers"]
    command(["-c", f"import {', '.join(names)}"], limit)
    return ", ".join(f"{name} {version}" for name, version in versions().items()), None


def packing(gpu: Gpu, out: Path, limit: float) -> tuple[str, None]:
    """Packed samples do not see each other: with flash-attention, on a CPU with that of torch."""
    chosen = ["-k", "sdpa and logits_in_a_pack"] if gpu.is_cpu else ["-m", "gpu"]
    last = command(["-m", "pytest", "-q", *chosen, "tests/test_packing.py"], limit).splitlines()[-1].strip("= ")
    if "skipped" in last:  # as without flash-attention
        raise Failed(f"the packing proof was skipped: {last}")
    return last, None


def first_loss(gpu: Gpu, out: Path, limit: float) -> tuple[str, dict[str, Any]]:
    """Without noise the first loss is ln 2 to six digits, and sums of log-probabilities are not in steps of bf16."""
    import torch

    run = train(Training("8b_dpo", layers=FEW, setting="first loss", steps=4), gpu, out, limit)
    loss, sums = run["losses"][0], torch.tensor(run["logps"])
    seen = f"first loss {loss:.6f}, logps {', '.join(f'{one:.3f}' for one in sums)}"
    if abs(loss - math.log(2)) > 5e-7 or torch.equal(sums, sums.bfloat16().float()):
        raise Failed(f"DPO takes its differences in bf16: {seen}; ln 2 is 0.693147 (docs/traps.md, row 38)")
    return seen, run


def trains(training: Training) -> Callable[[Gpu, Path, float], tuple[str, dict[str, Any]]]:
    def run(gpu: Gpu, out: Path, limit: float) -> tuple[str, dict[str, Any]]:
        result = train(training, gpu, out, limit)
        return f"{result['tokens_per_s']:,.0f} tokens/s", result

    return run


def node(gpu: Gpu, out: Path, limit: float) -> tuple[str, None]:
    """The preflight's own checks of this machine: NCCL adds up, nvidia-smi finds no fault."""
    device, seen = ("cpu" if gpu.is_cpu else "cuda"), []
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 10_000)}
    reduced = command(["-m", "hermes3.slurm.allreduce", "1", device], limit, env)
    seen.append(json.loads(reduced.splitlines()[-1])[-1])  # ["busbw", GB/s, what was done]
    if not gpu.is_cpu:
        code = "from hermes3.slurm.node_check import ask_nvidia_smi, gpu_faults as f; "
        code += "print(*(fault for gpu in ask_nvidia_smi().iter('gpu') for fault in f(gpu)), sep='; ')"
        if faults := command(["-c", code], limit):
            raise Failed(faults)
        seen.append("nvidia-smi finds nothing")
    return ", ".join(seen), None


SECTIONS = [
    Section("imports", 90, imports),
    Section("packing", 120, packing),
    Section("dpo: first loss", 90, first_loss),
    Section("sft: speed", 90, trains(Training("8b_sft", layers=FEW))),
    *(
        Section(f"sft: {name}", 75, trains(Training("8b_sft", layers=FEW, setting=name, changes=changes, steps=9)))
        for name, changes in SETTINGS.items()
    ),
    Section("sft: segments", 75, trains(Training("8b_sft", layers=FEW, setting="segments", env=SEGMENTS, steps=9))),
    Section("sft: memory", 170, trains(Training("8b_sft", steps=7))),
    Section("dpo: speed", 150, trains(Training("8b_dpo", layers=32, steps=9))),
    Section("dpo: ZeRO-3", 150, trains(Training("8b_dpo", layers=32, setting="ZeRO-3", changes=ZERO3, steps=9))),
    Section("fsdp2", 90, trains(Training("8b_sft_fsdp", layers=FEW, steps=9))),
    Section("node", 60, node),
]


def main() -> None:
    """Run what is left to run, print the table, and write down what was measured on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--section", action="append", choices=[one.name for one in SECTIONS], help="again, this alone")
    parser.add_argument("--minutes", type=float, default=6, help="after which no section begins (6)")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="20 GB; /dev/shm is quickest")
    parser.add_argument("--again", action="store_true", help="from the start, not only what is left or failed")
    args = parser.parse_args()
    gpu, out = find_gpu(args.device), args.out.absolute()
    (out / "results").mkdir(parents=True, exist_ok=True)
    measured = run_sections(gpu, out, args.minutes * 60, args.section, args.again)
    results = {one.name: result_of(out, one.name) for one in SECTIONS}
    Console(width=140).print(table(results, gpu))
    if not gpu.is_cpu and measured:
        write_down(measured, results, gpu)
    if left := [name for name, result in results.items() if result is None]:
        print(f"left: {', '.join(left)}; run the same command again")
    sys.exit(any(result and not result["ok"] for result in results.values()))


def find_gpu(device: str) -> Gpu:
    """The device's row of hermes3/recipe/gpus.yml: the one with the nearest memory among those that its name has."""
    if device == "cpu":
        return gpu_of("cpu")
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device here, nothing was checked; run it on a machine with one", file=sys.stderr)
        sys.exit(NO_CUDA)
    name, total = torch.cuda.get_device_name().lower(), torch.cuda.get_device_properties(0).total_memory
    known = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in name]
    if not known:
        raise ValueError(f"{name}: add it to hermes3/recipe/gpus.yml, with its peak FLOP/s and memory")
    return replace(min(known, key=lambda gpu: abs(gpu.memory - total)), memory=total)


def result_file(out: Path, name: str) -> Path:
    return out / "results" / f"{name.replace(': ', '_').replace(' ', '_')}.json"


def result_of(out: Path, name: str) -> dict[str, Any] | None:
    """None: not run yet, or cut short by the end of a run."""
    file = result_file(out, name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def run_sections(gpu: Gpu, out: Path, seconds: float, only: list[str] | None, again: bool) -> list[dict[str, Any]]:
    """Run the sections that have no good result, as long as there is time; the trainings that were measured."""
    end, measured = time.time() + seconds, []
    for one in SECTIONS:
        before = result_of(out, one.name)
        if one.name not in only if only else before and before["ok"] and not again:
            continue
        left, limit = end - time.time(), one.limit * (CPU_TIME if gpu.is_cpu else 1)
        if left < LEAST:
            break
        print(f"{one.name}: at most {min(limit, left):.0f} s", flush=True)
        start, run = time.time(), None
        try:
            seen, run = one.run(gpu, out, min(limit, left))
            ok = True
        except Failed as error:
            if left < limit and "more than" in str(error).split("\n")[0]:
                break  # it had less than its time: the next run gives it all
            seen, ok = str(error), False
        measured += [run] if run else []
        result = {"ok": ok, "seconds": round(time.time() - start, 1), "seen": seen, "run": run}
        result_file(out, one.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return measured


HEAD = ("section", "layers", "tokens/s", "MFU", "used GB", "plan GB", "plan / used", "seconds", "seen")


def cells(name: str, result: dict[str, Any] | None) -> list[str]:
    """One row of the table."""
    if result is None:
        return [name, *[""] * (len(HEAD) - 2), "not run yet"]
    run, seconds = result["run"], f"{result['seconds']:.0f}"
    seen = result["seen"].splitlines()[0] if result["ok"] else f"FAILED: {result['seen']}"
    if not run:
        return [name, *[""] * 6, seconds, seen]
    mfu, used, planned = f"{run['mfu']:.1%}" if run["mfu"] else "", run["memory_gb"], run["planned_gb"]
    sizes = [f"{used:.1f}", f"{planned:.1f}", f"{planned / used:.2f}"]
    return [name, f"{run['layers']}", f"{run['tokens_per_s']:,.0f}", mfu, *sizes, seconds, seen]


def table(results: dict[str, dict[str, Any] | None], gpu: Gpu) -> Table:
    table = Table(title=f"1 {gpu.name}" + ", a stand-in: its figures say nothing of GPUs" * gpu.is_cpu)
    for head in HEAD:
        table.add_column(head, justify="left" if head in ("section", "seen") else "right")
    for name, result in results.items():
        table.add_row(*cells(name, result))
    return table


def write_down(measured: list[dict[str, Any]], results: dict[str, dict[str, Any] | None], gpu: Gpu) -> None:
    """A JSON file per training to bench/baselines/, and the table to docs/benchmarks.md."""
    for run in measured:
        setting = run["setting"].replace(" ", "-")
        name = f"{run['date']}_{run['gpu']}_{run['recipe']}_{run['layers']}-layers_{setting}.json"
        (ROOT / "bench/baselines").mkdir(exist_ok=True)
        (ROOT / "bench/baselines" / name).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    head = f"\n## On one {gpu.name}, {measured[-1]['date']}, commit {measured[-1]['commit']}\n"
    lines = [head + ", ".join(f"{name} {version}" for name, version in measured[-1]["versions"].items()), ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * (len(HEAD) - 2) + "|---|"]
    rows = (cells(name, result) for name, result in results.items())
    lines += ["| " + " | ".join(cell.replace("\n", " ")[:200] for cell in row) + " |" for row in rows]
    with (ROOT / "docs/benchmarks.md").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
