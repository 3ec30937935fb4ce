"""Axolotl trainings on CPU ranks, as torchrun starts them, and what each rank saw.

A server imports Axolotl once and forks every rank of every run, so that a run takes 10 seconds instead of 30.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from unittest import mock

import torch
import yaml
from axolotl.integrations.base import BasePlugin
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from hermes3.train.cpu_ranks import use_gloo

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["warm_ranks"])
TIMEOUT = 400  # seconds; a minute or two of them to compile DeepSpeed's Adam for CPUs, once on a machine


def in_process(method):
    """datasets 5 starts a process where `num_proc` is 1: a fork of all that torch has loaded, seconds for few rows."""

    @wraps(method)
    def call(self, *args, num_proc=None, **kwargs):
        return method(self, *args, num_proc=None if num_proc == 1 else num_proc, **kwargs)

    return call


IN_PROCESS = {name: in_process(getattr(Dataset, name)) for name in ("map", "filter", "save_to_disk")}


class OnCPU(BasePlugin):
    """What lets Axolotl train on CPU ranks, and nothing else of our plugin."""

    def register(self, cfg) -> None:
        use_gloo(cfg)

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        cfg.device_map = {"": "cpu"}


class Recorder(BasePlugin):
    """Writes what each rank trains on to `record-RANK.jsonl` in the output folder: a line a step, one at the end."""

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        return [Record(trainer)]


class Record(TrainerCallback):
    """STOP_AT=STEP writes the stop file before the step after it; KEEP_MOMENTS=FILE has the optimizer's first moments.

    KILL_SAVING="STEP RANK METHOD": that rank is killed at that step's save, as the trainer's METHOD would begin.
    """

    def __init__(self, trainer):
        step, rank, method = os.environ.get("KILL_SAVING", "-1 0 save_model").split()
        save = getattr(trainer, method)

        def save_or_die(*args, **kwargs):
            if (trainer.state.global_step, trainer.args.process_index) == (int(step), int(rank)):
                os.kill(os.getpid(), signal.SIGKILL)
            return save(*args, **kwargs)

        setattr(trainer, method, save_or_die)
        self.trainer, self.packs, self.tokens = trainer, [], 0
        self.file = Path(trainer.args.output_dir) / f"record-{trainer.args.process_index}.jsonl"
        trainer.model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module, args, inputs) -> None:
        self.packs.append(hashlib.sha256(inputs["input_ids"].numpy().tobytes()).hexdigest()[:12])
        self.tokens += int((inputs["input_ids"] != self.trainer.processing_class.pad_token_id).sum())

    def write(self, line: dict) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("STOP_AT", -1)) and state.is_world_process_zero:
            Path(os.environ["HERMES3_STOP_FILE"]).touch()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.write({"step": state.global_step, "packs": self.packs, "tokens": self.tokens, **logs})
            self.packs, self.tokens = [], 0

    def on_train_end(self, args, state, control, **kwargs):
        optimizer = self.trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's, around torch's
            optimizer = optimizer.optimizer
        weights, states = zip(*optimizer.state.items(), strict=True)
        names = ("exp_avg", "exp_avg_sq", "square_avg")  # Adam's, and RMSProp's
        moments = [state[name] for state in states for name in names if name in state]
        self.write({"dtypes": [sorted({str(t.dtype) for t in tensors}) for tensors in (weights, moments)]})
        if file := os.environ.get("KEEP_MOMENTS"):
            torch.save(torch.cat([state["exp_avg"].flatten() for state in states]), file)


@dataclass
class Run:
    """One training. `codes` and `logs` are those of its ranks, in order."""

    folder: Path
    codes: list[int]
    logs: list[str]

    def lines(self, rank: int = 0) -> list[dict]:
        return [json.loads(line) for line in (self.folder / f"record-{rank}.jsonl").open()]

    def losses(self) -> list[float]:
        """Of each step, the mean of all ranks."""
        return [line["loss"] for line in self.lines() if "loss" in line]

    def steps(self) -> list[list[str]]:
        """The packs of each step: its micro-batches in turn, the ranks in turn within each."""
        ranks = [[line["packs"] for line in self.lines(rank) if "packs" in line] for rank in range(len(self.codes))]
        return [sum(map(list, zip(*step, strict=True)), []) for step in zip(*ranks, strict=True)]

    def dtypes(self) -> tuple[list[str], list[str]]:
        """Of the weights that the optimizer changes, and of its moments."""
        return tuple(self.lines()[-1]["dtypes"])

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model.safetensors")


def train(recipe: Path, ranks: int = 2, **env) -> Run:
    """Train `recipe` on so many ranks; `env`: further variables of theirs, such as STOP_AT and KILL_SAVING."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    env |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    processes = [FORK.Process(target=_rank, args=(recipe, rank, env)) for rank in range(ranks)]
    paths = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    with mock.patch.dict(
        os.environ, OMP_NUM_THREADS="1", PYTHONPATH=paths
    ):  # of the server, which the first run starts
        for process in processes:
            process.start()
    for process in processes:
        process.join(TIMEOUT)
        process.kill()
        process.join()
    return result(recipe, [process.exitcode for process in processes])


def result(recipe: Path, codes: list[int]) -> Run:
    folder = Path(yaml.safe_load(recipe.read_text())["output_dir"])
    logs = [path.read_text(errors="replace") for path in sorted(recipe.parent.glob("*.log"))]
    return Run(folder, codes, logs)


def _rank(recipe: Path, rank: int, env: dict) -> None:
    with recipe.with_name(f"rank-{rank}.log").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {key: str(value) for key, value in env.items()} | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)  # so small a model only waits for a second
    gc.freeze()  # the packer collects garbage at every packing: 0.4 s each over all that is imported
    sys.argv = ["axolotl.cli.train", str(recipe)]
    from axolotl.cli.train import do_cli

    do_cli(str(recipe))
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # as at the exit of a process that is no fork
