"""One training for `make gpu-check`: a recipe's own settings, on random weights and generated rows, on one device."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hermes3.files import commit
from hermes3.plan.cost import RATES
from hermes3.plan.memory import Memory, memory, setting_of
from hermes3.plan.plan import plannable
from hermes3.plan.shapes import PUBLISHED, Shape, work_of
from hermes3.recipe.hardware import Gpu
from hermes3.recipe.paper import paper_of

if TYPE_CHECKING:
    from transformers import LlamaConfig

ROOT = Path(__file__).parents[1]
WARM = 3  # steps that are not timed: kernels are compiled and ZeRO-3 learns the order of the modules
ROOM = 0.9  # of a GPU that the plan may fill: it does not know the allocator's fragments
PACKAGES = ("torch", "axolotl", "transformers", "trl", "peft", "deepspeed", "flash-attn", "liger-kernel")
LEFT_OUT = ("restart_steps", "wandb_project", "wandb_name", "neftune_noise_alpha")
# What a recipe for GPUs must have otherwise on a CPU, where Liger's kernels do not run
CPU = {"tf32": False, "attn_implementation": "sdpa", "dataloader_num_workers": 0, "dataloader_prefetch_factor": None}
CPU_SIZE = {"hidden": 64, "layers": 2, "sequence_len": 256}
WORDS = "the of and to in a is that it was for on are as with they at be this from have or by one had not".split()  # noqa: SIM905


@dataclass
class Training:
    """`changes`: of the recipe's keys; None: without the key. `layers` None: as many as fit. `env`: variables."""

    recipe: str
    layers: int | None = None
    setting: str = "as shipped"
    changes: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    steps: int = 13


class Failed(Exception):
    """A training that did not do what it should; the text says where its log is."""


def versions() -> dict[str, str]:
    """Of the packages that a speed depends on, and of CUDA."""
    import torch

    there = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    for package in PACKAGES:
        try:
            there[package] = version(package)
        except PackageNotFoundError:
            continue
    return there


def train(training: Training, gpu: Gpu, out: Path, limit: float) -> dict[str, Any]:
    """Train, and return a run as bench/baselines/ has it. `Failed` if it fails or takes over `limit` s."""
    recipe, shape, plan = prepare(training, gpu, out)
    run = Path(recipe["output_dir"])
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    path, log = out / "recipe.yml", out / "training.log"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    code = torchrun(path, training.env, limit, log)
    meter = run / "meter.json"
    if code or not meter.is_file():
        why = f"more than {limit:.0f} s" if code is None else f"exit code {code}"
        raise Failed(f"{training.recipe}, {training.setting}: {why}\n{log.read_text(errors='replace')[-1500:]}")
    measured = json.loads(meter.read_text(encoding="utf-8"))
    archived = ROOT / "COMMIT"  # of a wheelhouse
    timed = measured["steps"][WARM:] or measured["steps"]
    seconds = sum(step["seconds"] for step in timed)

    def mean(name: str) -> float | None:
        """Over time; None where the run does not log it."""
        return sum(step[name] * step["seconds"] for step in timed) / seconds if name in timed[0] else None

    return {
        "gpu": gpu.name,
        "gpus": 1,
        "recipe": training.recipe,
        "setting": training.setting,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "sequence_len": recipe["sequence_len"],
        "recomputed": bool(recipe.get("gradient_checkpointing")),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": archived.read_text() if archived.is_file() else commit(ROOT, digits=7),
        "tokens_per_s": mean("perf/tokens_per_second_per_gpu"),
        "mfu": mean("perf/mfu"),
        "memory_gb": measured.get("used", measured["resident"]) / 1e9,
        "allocated_gb": measured.get("allocated", 0) / 1e9,
        "reserved_gb": measured.get("reserved", 0) / 1e9,
        "planned_gb": sum(plan.gpu.values()) / 1e9,
        "step_seconds": [round(step["seconds"], 3) for step in measured["steps"]],
        "losses": [step["loss"] for step in measured["steps"]],
        "logps": [step.get("logps/chosen") for step in measured["steps"]],
    }


def torchrun(recipe: Path, env: dict[str, str], limit: float, log: Path) -> int | None:
    """As launch/train.sbatch starts a rank; `accelerate launch` with one process has no FSDP. None: out of time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)} | env
    with log.open("w") as file:
        try:
            command += ["-m", "axolotl.cli.train", str(recipe)]
            return subprocess.run(command, env=os.environ | env, stdout=file, stderr=file, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return None


def prepare(training: Training, gpu: Gpu, out: Path) -> tuple[dict[str, Any], Shape, Memory]:
    """The recipe as it is run, its model's shape, and the plan for that; model and rows are written."""
    source = ROOT / f"recipes/{training.recipe}.yml"
    recipe = plannable(source) | {"bf16": True} | training.changes
    if gpu.is_cpu:
        recipe |= CPU | dict.fromkeys(key for key in recipe if key.startswith("liger_"))
        recipe |= {"plugins": [name for name in recipe["plugins"] if "liger" not in name]}
        recipe |= {"sequence_len": CPU_SIZE["sequence_len"]}
    recipe = {key: value for key, value in recipe.items() if value is not None and key not in LEFT_OUT}
    whole = PUBLISHED[paper_of(source).base]
    shape = stand_in(whole, CPU_SIZE["hidden"]) if gpu.is_cpu else whole
    work, setting = work_of(recipe)[0], setting_of(source, recipe)

    def plan(layers: int) -> Memory:
        return memory(replace(shape, layers=layers), work, setting, gpu, nodes=1, per_node=1)

    fitting = [n for n in range(1, shape.layers + 1) if plan(n).headroom >= 1 - ROOM]
    layers = CPU_SIZE["layers"] if gpu.is_cpu else training.layers or (fitting[-1] if fitting else 1)
    shape = replace(shape, layers=layers)
    mix, steps = out / "mix", training.steps
    shutil.rmtree(mix, ignore_errors=True)
    (mix / "train").mkdir(parents=True)
    length, micro = recipe["sequence_len"], recipe["micro_batch_size"]
    if recipe.get("rl"):
        write_pairs(mix / "train", steps * micro + 8, (20, 60) if gpu.is_cpu else (500, 1500))
    else:
        write_rows(mix / "train", steps * length * micro, length)
    recipe |= {
        "base_model": str(base_model(out / "models", shape, gpu)),
        "dataset_prepared_path": str(mix / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(out / "run"),
        "hardware": {"gpu": gpu.name, "nodes": 1, "gpus_per_node": 1},
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_wandb": False,
        "plugins": [*recipe["plugins"], "bench.gpu_meter.MeterPlugin"],
    }
    recipe["datasets"][0]["path"] = str(mix / "train")
    if "deepspeed" in recipe:
        recipe["deepspeed"] = str(ROOT / recipe["deepspeed"])
    return recipe, shape, plan(layers)


def stand_in(shape: Shape, width: int) -> Shape:
    """The shape at another hidden size, in the 8B's proportions."""
    heads = max(4, width // 128)
    sizes = {"hidden": width, "intermediate": width * 7 // 2, "heads": heads, "kv_heads": heads // 4}
    return replace(shape, **sizes, head_dim=width // heads, layers=min(shape.layers, 32))


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


def base_model(models: Path, shape: Shape, gpu: Gpu) -> Path:
    """The folder of a model with random weights and the Hermes tokenizer over Llama 3.1's vocabulary, made once."""
    from bench.llama_tokenizer import make

    folder = models / f"{shape.hidden}x{shape.layers}"
    if (folder / "tokenizer.json").is_file():  # written last
        return folder
    tokenizer = models / "tokenizer/hermes"
    if not (tokenizer / "tokenizer.json").is_file():
        make(models / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(shape, max_position_embeddings=131_072)
    if gpu.is_cpu:
        from bench.random_model import write

        write(folder, config, "cpu")
    else:  # in a process of its own, so that this one holds nothing on the device
        (models / "config.json").write_text(config.to_json_string(use_diff=True), encoding="utf-8")
        command = [sys.executable, "-m", "bench.random_model", str(folder), str(models / "config.json"), "cuda"]
        subprocess.run(command, cwd=ROOT, check=True)
    for file in sorted(tokenizer.iterdir()):
        if file.name != "config.json" and file.is_file():
            shutil.copy(file, folder)
    return folder


def write_rows(out: Path, tokens: int, longest: int) -> None:
    """Generated rows, twice `tokens`, that bear loss throughout; lognormal about the mean of real conversations."""
    from datasets import Dataset

    draw = np.random.default_rng(0)
    lengths = draw.lognormal(np.log(RATES.row_tokens) - 0.8**2 / 2, 0.8, 2 * tokens // RATES.row_tokens + 8)
    rows = [draw.integers(1000, 100_000, n).tolist() for n in np.clip(lengths, 8, longest).astype(int)]
    columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "labels": rows}
    Dataset.from_dict(columns).to_parquet(out / "rows.parquet")


def write_pairs(out: Path, pairs: int, tokens: tuple[int, int]) -> None:
    """Generated preference pairs as a mix holds them, in ChatML; a prompt and an answer have so many words in all."""
    from datasets import Dataset

    draw, rows = random.Random(0), []
    for _ in range(pairs):
        length = draw.randint(*tokens)
        words = [" ".join(draw.choices(WORDS, k=n)) for n in (length // 3, 2 * length // 3, 2 * length // 3)]
        prompt = f"<|im_start|>user\n{words[0]}<|im_end|>\n<|im_start|>assistant\n"
        rows.append({"prompt": prompt, "chosen": f"{words[1]}<|im_end|>\n", "rejected": f"{words[2]}<|im_end|>\n"})
    Dataset.from_list(rows).to_parquet(out / "rows.parquet")
