"""An Axolotl plugin that notes each step's log and time and the peak memory, and ends the run before its last save."""

import json
import resource
import time
from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.utils.distributed import cleanup_distributed
from transformers import TrainerCallback


class MeterPlugin(BasePlugin):
    """Writes OUTPUT_DIR/meter.json at the end of training. It needs `logging_steps: 1`, and HermesPlugin's rates."""

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        return [Meter(Path(cfg.output_dir))]


class Meter(TrainerCallback):
    """`steps`: what was logged of each, and its `seconds`. Bytes: resident in host memory; on the device, of the
    allocator (allocated, reserved), all that is used, and what there is."""

    def __init__(self, out: Path):
        self.out, self.steps = out, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.since = now()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.steps.append(logs | {"seconds": now() - self.since})
            self.since = now()

    def on_train_end(self, args, state, control, **kwargs):
        measured = {"steps": self.steps, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            measured |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            measured |= {"used": total - free, "total": total}
        (self.out / "meter.json").write_text(json.dumps(measured), encoding="utf-8")
        cleanup_distributed()
        raise SystemExit(0)  # Axolotl would save the model, 16 GB of it, in spite of `save_strategy: no`


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
