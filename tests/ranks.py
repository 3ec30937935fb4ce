"""Axolotl trainings on CPU ranks, as torchrun starts them, what each rank saw, and runs that are stopped and resumed. A
server imports Axolotl once and forks every rank of every run, so that a run takes 10 seconds instead of 30."""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from accelerate.utils.other import get_free_port
from axolotl.integrations.base import BasePlugin
from datasets import Dataset
from safetensors.torch import load_file
from small_mix import ROOT, SEQUENCE_LEN, write_mix, write_recipe
from transformers import TrainerCallback

from hermes3.recipe.read import read
from hermes3.train.cpu_ranks import use_gloo

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["warm_ranks"])
OURS = ["hermes3.train.plugin.HermesPlugin", "ranks.Recorder"]
EPOCH = 12  # steps of SFT on two ranks
PAIRS = 8
HALF = 20  # the step of SFT whose save is broken off; every fifth step has a restart point
SECRET = "hf_a-secret-of-the-environment"
TIMEOUT = 400  # seconds; a minute or two of them to compile DeepSpeed's Adam for CPUs, once on a machine


def in_process(method):
    """datasets 5 starts a process where `num_proc` is 1: a fork of all that torch has loaded, seconds for few rows."""

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
    KILL_SAVING="STEP RANK METHOD": that rank is killed at that step's save, as the trainer's METHOD would begin."""

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
        counters = [float(state["step"]) for state in states if "step" in state]
        of = {"counters": counters, "decays": [group["weight_decay"] for group in optimizer.param_groups]}
        self.write(of | {"dtypes": [sorted({str(t.dtype) for t in tensors}) for tensors in (weights, moments)]})
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
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": get_free_port(), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    processes = [FORK.Process(target=_rank, args=(recipe, rank, env)) for rank in range(ranks)]
    # of the server, which the first run starts
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}/tests:{ROOT}"):
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


@dataclass
class Stopped:
    """`attempts` are the parts of one run, in turn, all in one folder; `saved` its checkpoints after each."""

    through: Run
    wandb_dir: Path
    attempts: list[Run] = field(default_factory=list)
    saved: list[list[str]] = field(default_factory=list)
    final: list[bool] = field(default_factory=list)  # whether the final model was there after each attempt

    @property
    def last(self) -> Run:
        return self.attempts[-1]


def sft_recipe(folder: Path, base: Path, processes: int = 2, plugins: list[str] = OURS, **changes) -> Path:
    """The demo's SFT on 60 rows in 24 packs per epoch; two ranks take at once what one takes in two micro-batches. Of
    an odd number of packs two ranks would leave one out, and one rank would not. The mix lies beside `folder`."""
    mix = folder.parent / "mix"
    if not mix.exists():
        lengths = np.random.default_rng(2).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
        write_mix(mix, lengths.tolist())
    keys = {"logging_steps": 1, "num_epochs": 2, "warmup_steps": 2, "lr_scheduler": "constant", "plugins": plugins}
    keys |= {"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": processes}, "token_weighted_loss": True}
    return write_recipe(folder, mix, base, **keys | {"gradient_accumulation_steps": 2 // processes} | changes)


def dpo_recipe(folder: Path, base: Path, **changes) -> Path:
    """The demo's DPO, with LoRA and its dropout, on pairs of unlike lengths."""
    prompt, text = "<|im_start|>user\nHow is the weather?<|im_end|>\n<|im_start|>assistant\n", "It is warm and sunny. "
    answers = [("Gladly! " + n * text, n**2 // 2 * text) for n in range(2, PAIRS + 2)]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    keys = {key: value for key, value in read(ROOT / "recipes/tiny_dpo.yml").items() if "wandb" not in key}
    keys["datasets"] = [keys["datasets"][0] | {"path": f"{folder}/pairs.parquet", "ds_type": "parquet"}]
    keys |= {"base_model": str(base), "dataset_prepared_path": f"{folder}/prepared", "output_dir": f"{folder}/out"}
    keys |= {"test_datasets": keys["datasets"], "eval_strategy": "no", "plugins": OURS, "logging_steps": 1}
    (folder / "dpo.yml").write_text(yaml.safe_dump(keys | changes))
    return folder / "dpo.yml"


def _stopped(folder: Path, through: Path, stopped: Path, ranks: int, attempts: list[dict]) -> Stopped:
    """`through`, `stopped`: recipes; `attempts`: the variables of each, beside those of all."""
    env = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "WANDB_DIR": folder / "tracked"}
    (folder / "tracked").mkdir()
    of = Stopped(train(through, ranks, **env), folder / "tracked")
    for number, variables in enumerate(attempts):
        of.attempts.append(train(stopped, ranks, HERMES3_STOP_FILE=folder / f"stop-{number}", **env | variables))
        of.saved.append(sorted(path.name for path in of.last.folder.glob("checkpoint-*")))
        of.final.append(any(of.last.folder.glob("*.safetensors")))
    return of


def stopped_sft(base: Path, folder: Path) -> Stopped:
    """Two epochs on two ranks: stopped in the first, in its last step, killed as it saves, stopped in the very last."""
    keys = {"save_strategy": "epoch", "restart_steps": 5}
    through = sft_recipe(folder / "through", base, **keys, use_tensorboard=True)
    stopped = sft_recipe(folder / "stopped", base, **keys, wandb_project="hermes3", wandb_name="tiny_sft")
    killed = {"KILL_SAVING": f"{HALF} 1 _save_rng_state", "WANDB_MODE": "disabled"}  # wandb would write what it has got
    attempts = [{"STOP_AT": 2}, {"STOP_AT": EPOCH - 1}, killed, {"STOP_AT": 2 * EPOCH - 1}]
    return _stopped(folder, through, stopped, 2, attempts)


def stopped_dpo(base: Path, folder: Path) -> Stopped:
    """Four steps, stopped in the second."""
    keys = {"gradient_accumulation_steps": 2}
    stopped = dpo_recipe(folder / "stopped", base, **keys, wandb_project="hermes3", wandb_name="tiny_dpo")
    return _stopped(folder, dpo_recipe(folder / "through", base, **keys), stopped, 1, [{"STOP_AT": 1}, {}])


def _wandb_records(data: bytes) -> Iterator[Any]:
    """A `.wandb` file is LevelDB's log format with one protobuf message a record, whose pieces end with their block."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, last = 32768, (1, 4)  # bytes; kinds of pieces that end a record: a whole one, and the last of several
    assert data[:4] == b":W&B"
    at, pieces = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in last:
            yield Record.FromString(pieces)
            pieces = b""


def wandb_runs(wandb_dir: Path) -> list[SimpleNamespace]:
    """The offline runs of a WANDB_DIR in their order of time. `history`: the values logged, by key, a dict for each
    call of `wandb.log`; `ended`: whether it was closed."""
    runs = []
    for path in sorted(wandb_dir.glob("wandb/offline-run-*/*.wandb")):
        runs.append(run := SimpleNamespace(raw=path.read_bytes(), history=[], ended=False))
        for record in _wandb_records(run.raw):
            match record.WhichOneof("record_type"):
                case "run":
                    of = record.run
                    run.id, run.project, run.name = of.run_id, of.project, of.display_name
                    run.group, run.job_type, run.tags = of.run_group, of.job_type, list(of.tags)
                case "history":
                    items = record.history.item
                    run.history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
                case "exit":
                    run.ended = True
    return runs
