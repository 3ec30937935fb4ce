"""An Axolotl plugin for trainings that are to meet a fault at a known step: they hold there until they are let go.

With HOLD=10,20 every rank waits before steps 10 and 20 (counted from 0) until `free-STEP` is in HOLD_IN. Rank R writes
`held-STEP-R` there when it has come so far. The node that `free-STEP` names then reads a broken disk.
"""

import errno
import os
import socket
import time
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class Held(BasePlugin):
    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        return [Hold(trainer.args.process_index)]


class Hold(TrainerCallback):
    def __init__(self, rank: int):
        self.rank, self.folder = rank, Path(os.environ.get("HOLD_IN", ""))
        self.steps = [int(step) for step in os.environ.get("HOLD", "").split(",") if step]

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step not in self.steps:
            return
        (self.folder / f"held-{state.global_step}-{self.rank}").touch()
        free = self.folder / f"free-{state.global_step}"
        while not free.exists():
            time.sleep(0.1)
        if free.read_text() == socket.gethostname():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
