"""An Axolotl plugin that times each step and notes the peak memory: bench/gpu_check.py adds it to a recipe."""

import json
import resource
import time
from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class MeterPlugin(BasePlugin):
    """Writes OUTPUT_DIR/meter.json at the end of training."""

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        meter = Meter(Path(cfg.output_dir))
        trainer.model.register_forward_pre_hook(meter.count, with_kwargs=True)
        return [meter]


class Meter(TrainerCallback):
    """`steps`: seconds and tokens, padding not counted, of each; peaks in bytes, of the allocator and of the device."""

    def __init__(self, out: Path):
        self.out, self.steps, self.tokens = out, [], 0

    def count(self, model, args, kwargs) -> None:
        self.tokens += int((kwargs["labels"] != -100).sum())

    def on_step_begin(self, args, state, control, **kwargs):
        self.tokens, self.start = 0, now()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append({"seconds": now() - self.start, "tokens": self.tokens})

    def on_train_end(self, args, state, control, **kwargs):
        found = {"steps": self.steps, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            found |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            found |= {"used": total - free, "total": total}
        (self.out / "meter.json").write_text(json.dumps(found), encoding="utf-8")


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
