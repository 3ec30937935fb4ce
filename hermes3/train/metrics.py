"""What a run logs beside the loss: how fast it is, and the name that it has in wandb.

`perf/tokens_per_second_per_gpu`: tokens without padding, of all ranks, per second and rank; saves and evaluations are
no time (Axolotl's own rate counts them, and only tokens that bear loss). `perf/mfu`: model FLOPs of these tokens
(hermes3/plan/cost.py) per peak FLOPs of `hardware.gpu`. `perf/packing_efficiency`: the share of positions that are not
padding. `perf/memory_gb`: 1e9 bytes, the peak on the fullest rank; torch's on a GPU, the whole process on a CPU.
"""

import os
import resource
import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from axolotl.utils.logging import get_logger
from transformers import Trainer, TrainerCallback

from hermes3.files import ROOT, commit, write_text
from hermes3.plan.cost import flops_per_token
from hermes3.plan.shapes import shape_of, work_of
from hermes3.recipe.hardware import gpu_of

Mfu = Callable[[float, float], float]  # (tokens/s per GPU, mean tokens per row) -> share of the peak
RUN_ID = "wandb_id"  # file in output_dir


class Throughput(TrainerCallback):
    """Counts the trainer's inputs and adds the rates to its log. One gather of four numbers per log entry."""

    def __init__(self, trainer: Trainer, mfu: Mfu | None):
        self.trainer, self.mfu = trainer, mfu
        self.pad = getattr(trainer.processing_class, "pad_token_id", None)
        self.since = self.seconds = 0.0
        self.counts = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)  # tokens, positions, rows
        self.step, self.log = trainer.training_step, trainer.log
        trainer.training_step, trainer.log = self.count_and_step, self.add_and_log

    def count_and_step(self, model, inputs, *args, **kwargs):
        ids, mask, positions = (inputs.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
        real = ids != self.pad if mask is None else mask != 0
        tokens = real.sum()
        # a pack's rows each start at 0, and so does its padding
        rows = tokens.new_tensor(len(ids)) if positions is None else ((positions == 0) & real).sum()
        counts = torch.stack([tokens, tokens.new_tensor(ids.numel()), rows])
        self.counts += counts.to(self.counts.device)  # nothing waits for the GPU here
        return self.step(model, inputs, *args, **kwargs)

    def add_and_log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self.since:
            self.on_step_end()
            logs.update(self._rates())
        self.log(logs, *args, **kwargs)

    def on_train_begin(self, *args, **kwargs):
        self.since = time.perf_counter()

    on_save = on_evaluate = on_train_begin

    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now

    def _rates(self) -> dict[str, float]:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        ranks = self.trainer.accelerator.gather(torch.cat([self.counts, self.counts.new_tensor([memory])])).view(-1, 4)
        tokens, positions, rows = ranks[:, :3].sum(0).tolist()
        rate = tokens / self.seconds / len(ranks)
        memory_gb = ranks[:, 3].max().item() / 1e9
        rates = {"tokens_per_second_per_gpu": rate, "packing_efficiency": tokens / positions, "memory_gb": memory_gb}
        if self.mfu:
            rates["mfu"] = self.mfu(rate, tokens / rows)
        self.counts.zero_()
        self.seconds = 0.0
        return {f"perf/{name}": float(f"{value:.5g}") for name, value in rates.items()}


def mfu_of(cfg) -> Mfu | None:
    """None, with a line in the log, where no peak is known: on CPUs, undeclared GPUs, models other than Llama."""
    try:
        gpu = gpu_of((cfg.hardware or {}).get("gpu") or "unknown")
        if gpu.is_cpu:
            raise ValueError("a CPU has no peak to compare with")
        shape, work = shape_of(Path(cfg.axolotl_config_path), cfg.to_dict()), work_of(cfg.to_dict())[0]
    except ValueError as error:
        get_logger(__name__).warning(f"perf/mfu is left out: {error}")
        return None
    return lambda rate, row_tokens: rate * flops_per_token(shape, work, row_tokens) / gpu.flops


def name_run(cfg, trainer: Trainer) -> None:
    """Name the wandb run by recipe, size, phase, seed and commit, before the trainer's own callback starts it.

    All attempts at one run have one id, kept in its folder: offline ones are one run once `wandb sync` has uploaded
    them in their order. Variables that are set win. Rank 0 alone asks git.
    """
    if not trainer.is_world_process_zero():
        return
    recipe, phase = cfg.wandb_name or Path(cfg.axolotl_config_path).stem, str(getattr(cfg.rl, "value", cfg.rl) or "sft")
    code = commit(ROOT, digits=7) or version("hermes3-recipes")  # outside a checkout, or without git
    trainer.args.run_name = f"{recipe} seed {cfg.seed} {code}"
    file = Path(cfg.output_dir) / RUN_ID
    if not (cfg.auto_resume_from_checkpoints and file.is_file()):
        write_text(file, secrets.token_hex(4))
    names = {"RUN_ID": file.read_text(encoding="utf-8"), "RESUME": "allow", "RUN_GROUP": recipe, "JOB_TYPE": phase}
    names["TAGS"] = f"{recipe.split('_')[0]},{phase},seed-{cfg.seed},{code}"
    for name, value in names.items():
        os.environ.setdefault(f"WANDB_{name}", value)
