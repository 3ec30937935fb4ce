"""What a run makes of its GPUs, in the trainer's own log beside the loss, so that every tracker and the report have it.

`perf/tokens_per_second_per_gpu`: tokens read, padding not counted, over all ranks, by seconds and ranks. Saves and
evaluations do not count as time, waiting for data does. `perf/mfu`: the model FLOPs of these (hermes3/plan/cost.py) by
the peak of the `hardware.gpu` that the recipe declares (hermes3/recipe/gpus.yml). `perf/packing_efficiency`: share of
the positions that are no padding. `perf/memory_gb`: 1e9 bytes, the peak since the start on the fullest rank; of
what torch has allocated on a GPU, of the whole process on a CPU.

Axolotl's `tokens/train_per_sec_per_gpu` counts tokens that bear loss, and the time of saves; its `memory/*` are of one
rank, and 0 on a CPU.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer

    Mfu = Callable[[float, float], float]  # (tokens/s on one GPU, mean tokens of a row) -> share of the peak


class Throughput(TrainerCallback):
    """Counts what the trainer is given and adds the rates to what it logs. One gather of four numbers a log entry."""

    def __init__(self, trainer: "Trainer", mfu: "Mfu | None"):
        self.trainer, self.mfu = trainer, mfu
        self.pad = getattr(trainer.processing_class, "pad_token_id", None)
        self.ready = self.seconds = 0.0
        self.counts = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)  # tokens, positions, rows
        self.step, self.log = trainer.training_step, trainer.log
        trainer.training_step, trainer.log = self.count_and_step, self.add_and_log

    def count_and_step(self, model, inputs, *args, **kwargs):
        ids, mask, places = (inputs.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
        real = ids != self.pad if mask is None else mask != 0
        tokens = real.sum()
        # a pack's rows each start at 0, and so does its padding
        rows = tokens.new_tensor(len(ids)) if places is None else ((places == 0) & real).sum()
        counted = torch.stack([tokens, tokens.new_tensor(ids.numel()), rows])
        self.counts += counted.to(self.counts.device)  # nothing waits for the GPU here
        return self.step(model, inputs, *args, **kwargs)

    def add_and_log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self.ready:
            self._tick()
            logs.update(self._rates())
        self.log(logs, *args, **kwargs)

    def on_train_begin(self, args, state, control, **kwargs):
        self.ready = time.perf_counter()

    on_save = on_evaluate = on_train_begin

    def on_step_end(self, args, state, control, **kwargs):
        self._tick()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self.ready = self.seconds + now - self.ready, now

    def _rates(self) -> dict[str, float]:
        every = self.trainer.accelerator.gather(torch.cat([self.counts, self.counts.new_tensor([_memory()])]))
        every = every.view(-1, 4)
        tokens, positions, rows = every[:, :3].sum(0).tolist()
        rate = tokens / self.seconds / len(every)
        rates = {"tokens_per_second_per_gpu": rate, "packing_efficiency": tokens / positions}
        rates["memory_gb"] = every[:, 3].max().item() / 1e9
        if self.mfu:
            rates["mfu"] = self.mfu(rate, tokens / rows)
        self.counts.zero_()
        self.seconds = 0.0
        return {f"perf/{name}": float(f"{value:.5g}") for name, value in rates.items()}


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def mfu_of(cfg) -> "Mfu | None":
    """None, with a line in the log, where no peak is known: on CPUs, undeclared GPUs, other models than Llama."""
    from axolotl.utils.logging import get_logger

    from hermes3.plan.cost import flops_per_token
    from hermes3.plan.shapes import shape_of
    from hermes3.plan.work import work_of
    from hermes3.recipe.hardware import gpu_of

    try:
        gpu = gpu_of((cfg.hardware or {}).get("gpu") or "unknown")
        if gpu.is_cpu:
            raise ValueError("a CPU has no peak to hold it to")
        recipe = cfg.to_dict()
        shape, work = shape_of(Path(cfg.axolotl_config_path), recipe), work_of(recipe)[0]
    except ValueError as error:
        get_logger(__name__).warning(f"perf/mfu is left out: {error}")
        return None
    return lambda rate, row_tokens: rate * flops_per_token(shape, work, row_tokens) / gpu.flops
