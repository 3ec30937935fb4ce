"""An Axolotl plugin for trainings that are to meet a fault at a known step: they hold there until they are let go. With
HOLD=10,20 every rank waits before steps 10 and 20 (counted from 0) until `free-STEP` is in HOLD_IN. Rank R writes
`held-STEP-R` there when it has come so far. The node that `free-STEP` names then reads a broken disk."""

import errno
import os
import socket
import time
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class Held(BasePlugin, TrainerCallback):
    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        return [self]

    def on_step_begin(self, args, state, control, **kwargs):
        step, folder = state.global_step, Path(os.environ.get("HOLD_IN", ""))
        if f"{step}" in os.environ.get("HOLD", "").split(","):
            (folder / f"held-{step}-{args.process_index}").touch()
            while not (folder / f"free-{step}").exists():
                time.sleep(0.1)
            if (folder / f"free-{step}").read_text() == socket.gethostname():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
