"""What only a GPU can show: `make gpu-check`, or `python -m bench.gpu_check --help`.

The packing proof with flash-attention; then a recipe's own settings through Axolotl, on random weights and generated
rows: as many layers of its model as the plan says fit one GPU. Speed, MFU and peak memory stand beside the plan's and
are appended to docs/benchmarks.md. Without CUDA it ends with code 2 and changes nothing. `--device cpu` runs the same
path on a small stand-in of the model, whose figures say nothing of GPUs: they are printed, and not written down.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from bench.llama_tokenizer import make
from hermes3.plan.cost import ROW_TOKENS, flops_per_token, paper_mfu
from hermes3.plan.memory import OVERHEAD, Memory, memory, setting_of
from hermes3.plan.plan import plannable, size
from hermes3.plan.shapes import Shape, Work, published, work_of
from hermes3.recipe.hardware import Gpu, gpu_of, gpus
from hermes3.recipe.paper import paper_of

if TYPE_CHECKING:
    from transformers import LlamaConfig

ROOT = Path(__file__).parents[1]
NO_CUDA = 2
WARM = 3  # steps that are not timed: kernels are compiled and ZeRO-3 learns the order of the modules
ROOM = 0.9  # of a GPU that the plan may fill: it does not know the allocator's fragments
PACKAGES = ("torch", "axolotl", "transformers", "deepspeed", "flash-attn", "liger-kernel")
# What a recipe for GPUs must leave out on a CPU
CPU = {"bf16": False, "tf32": False, "attn_implementation": "sdpa", "deepspeed": None}
QUICK = {"dataset_num_proc": 1, "dataloader_num_workers": 0, "dataloader_prefetch_factor": None}  # few rows


def main() -> None:
    """Prove, measure, compare, write down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/8b_sft.yml"), help="an SFT recipe (8b_sft)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=int, help="of the model; as many as fit by default")
    parser.add_argument("--width", type=int, help="hidden size of a stand-in; the recipe's own by default")
    parser.add_argument("--sequence-len", type=int, help="the recipe's own by default")
    parser.add_argument("--steps", type=int, default=13, help=f"of which the first {WARM} are not timed (13)")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="folder for model, rows and run")
    args = parser.parse_args()
    gpu = find_gpu(args.device)
    proof = prove_packing() if args.device == "cuda" else "needs CUDA, not run"
    args.out.mkdir(parents=True, exist_ok=True)
    recipe, shape, held = prepare(args, gpu)
    table = compare(shape, work_of(recipe)[0], held, gpu, train(args.out, recipe, args.steps), proof)
    Console(width=120).print(table)
    if args.device == "cuda":
        record(table, args.recipe)


def find_gpu(device: str) -> Gpu:
    """The device's row of hermes3/recipe/gpus.yml: the one with the nearest memory among those that its name has."""
    if device == "cpu":
        return gpu_of("cpu")
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device here, nothing was checked; run it on a machine with one", file=sys.stderr)
        sys.exit(NO_CUDA)
    name, total = torch.cuda.get_device_name().lower(), torch.cuda.get_device_properties(0).total_memory
    known = [gpu for gpu in gpus().values() if gpu.name.split("-")[0] in name]
    if not known:
        raise ValueError(f"{name}: add it to hermes3/recipe/gpus.yml, with its peak FLOP/s and memory")
    return replace(min(known, key=lambda gpu: abs(gpu.memory - total)), memory=total)


def prove_packing() -> str:
    """Run the tests that need a GPU; they must pass before anything is measured."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_packing.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines()[-1].strip("= ")
    if done.returncode or "skipped" in said:  # without flash-attention it would be
        raise ValueError(f"the packing proof failed or was skipped:\n{done.stdout[-3000:]}")
    return said


def prepare(args: argparse.Namespace, gpu: Gpu) -> tuple[dict[str, Any], Shape, Memory]:
    """The recipe as it is run, its model's shape, and the plan for that; model and rows are written."""
    recipe = plannable(args.recipe)
    if gpu.is_cpu:
        liger = [key for key in recipe if key.startswith("liger_")]
        recipe = {key: value for key, value in (recipe | CPU | QUICK).items() if key not in liger and value is not None}
        recipe["plugins"] = [name for name in recipe["plugins"] if "liger" not in name]
    recipe["sequence_len"] = args.sequence_len or recipe["sequence_len"]
    paper = paper_of(args.recipe)
    if paper is None or recipe.get("rl"):
        raise ValueError(f"{args.recipe}: give an SFT recipe of a size that the paper has, such as recipes/8b_sft.yml")
    shape = stand_in(published()[paper.base], args.width)
    work, setting = work_of(recipe)[0], setting_of(args.recipe, recipe)

    def plan(layers: int) -> Memory:
        return memory(replace(shape, layers=layers), work, setting, gpu, nodes=1, per_node=1)

    fitting = [n for n in range(1, shape.layers + 1) if plan(n).headroom >= 1 - ROOM]
    layers = args.layers or (fitting[-1] if fitting else 1)
    shape = replace(shape, layers=layers)
    write_model(args.out / "base", shape, gpu)
    longest = recipe["sequence_len"]
    write_rows(args.out / "mix/train", args.steps * longest * recipe["micro_batch_size"], longest)
    recipe |= {
        "base_model": str(args.out / "base"),
        "dataset_prepared_path": str(args.out / "mix/prepared"),
        "output_dir": str(args.out / "run"),
        "hardware": {"gpu": gpu.name, "nodes": 1, "gpus_per_node": 1},
        "gradient_accumulation_steps": 1,
        "max_steps": args.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_wandb": False,
        "plugins": [*recipe["plugins"], "bench.gpu_meter.MeterPlugin"],
    }
    recipe["datasets"][0]["path"] = str(args.out / "mix/train")
    for key in ("restart_steps", "wandb_project", "wandb_name"):
        recipe.pop(key, None)
    return recipe, shape, plan(layers)


def stand_in(shape: Shape, width: int | None) -> Shape:
    """The shape at another hidden size, in the 8B's proportions."""
    if width is None:
        return shape
    heads = max(4, width // 128)
    return replace(
        shape,
        hidden=width,
        intermediate=width * 7 // 2,
        heads=heads,
        kv_heads=heads // 4,
        head_dim=width // heads,
        layers=min(shape.layers, 32),
    )


def llama_config(shape: Shape, **others: Any) -> "LlamaConfig":
    """The transformers configuration of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        **others,
    )


def write_model(out: Path, shape: Shape, gpu: Gpu) -> None:
    """Random weights with the Hermes tokenizer over Llama 3.1's vocabulary."""
    import torch
    from transformers import LlamaForCausalLM

    shutil.rmtree(out, ignore_errors=True)
    made = make(out.parent / "tokenizer")
    config = llama_config(shape, max_position_embeddings=131_072, dtype="float32" if gpu.is_cpu else "bfloat16")
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(config.dtype)  # on the CPU: this process must hold nothing on the GPU
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    model.save_pretrained(out)
    for file in made.iterdir():
        if file.name != "config.json" and file.is_file():
            shutil.copy(file, out)


def write_rows(out: Path, tokens: int, longest: int) -> None:
    """Generated rows, twice `tokens`, that bear loss throughout; lognormal about the mean of real conversations."""
    from datasets import Dataset

    shutil.rmtree(out.parent, ignore_errors=True)
    out.mkdir(parents=True)
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(np.log(ROW_TOKENS) - 0.8**2 / 2, 0.8, 2 * tokens // ROW_TOKENS + 8)
    rows = [draw.integers(1000, 100_000, n).tolist() for n in np.clip(lengths, 8, longest).astype(int)]
    columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "labels": rows}
    Dataset.from_dict(columns).to_parquet(out / "rows.parquet")


def train(out: Path, recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train the recipe as its users do, and read what the meter wrote."""
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "run").mkdir()
    (out / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command = ["accelerate", "launch", "--num_processes", "1", "-m", "axolotl.cli.train", str(out / "recipe.yml")]
    environment = os.environ | {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    meter = out / "run/meter.json"
    if done.returncode or not meter.is_file():
        raise ValueError(f"training failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = json.loads(meter.read_text(encoding="utf-8"))
    if len(found["steps"]) != steps:
        raise ValueError(f"{len(found['steps'])} steps were made, not {steps}")
    return found


def compare(shape: Shape, work: Work, held: Memory, gpu: Gpu, found: dict[str, Any], proof: str) -> Table:
    """Measured beside planned."""
    timed = found["steps"][WARM:] or found["steps"]
    speed = sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed)
    each = flops_per_token(shape, work, ROW_TOKENS)
    whole = None if gpu.is_cpu else paper_mfu(published()[shape.name])
    what = f"{shape.name} cut to {shape.layers} layers of width {shape.hidden:,}, {shape.parameters:,} parameters"
    table = Table(title=f"{what}; 1 {gpu.name}{', a stand-in' * gpu.is_cpu}")
    for name in ("", "measured", "plan", "plan / measured"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("packing proof with flash-attention", proof, "", "")
    table.add_row("setting", held.setting.name, "", "")
    table.add_row("tokens per micro-batch", f"{work.tokens:,}", "", "")
    table.add_row("tokens/s", f"{speed:,.0f}", f"{whole * gpu.flops / each:,.0f}" if whole else "", "")
    mfu = f"{whole:.1%}" if whole else ""
    table.add_row("MFU (plan: what explains the paper's GPU-hours)", f"{speed * each / gpu.flops:.1%}", mfu, "")
    planned = sum(held.gpu.values())
    peaks = [("resident memory, imports and all", found["resident"], planned)] if gpu.is_cpu else []
    if not gpu.is_cpu:
        peaks = [
            ("peak that tensors take", found["allocated"], planned - OVERHEAD),
            ("peak with the allocator's fragments", found["reserved"], planned - OVERHEAD),
            ("used on the device", found["used"], planned),
        ]
    for name, measured, plan in peaks:
        table.add_row(name, size(measured), size(plan), f"{plan / measured:.2f}")
    return table


def record(table: Table, recipe: Path) -> None:
    """Append the table with hardware, versions and date to docs/benchmarks.md."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [f"{name} {installed}" for name in PACKAGES if (installed := _version(name))]
    head = [str(column.header) for column in table.columns]
    lines = [
        f"\n## On a GPU: {recipe.name}, {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}",
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; Python {platform.python_version()}, "
        + ", ".join(found),
        "",
        f"{table.title}",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    cells = zip(*(column.cells for column in table.columns), strict=True)
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in cells]
    with (ROOT / "docs/benchmarks.md").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
