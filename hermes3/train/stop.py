"""A notice of the end: at the end of a step every rank saves a checkpoint to go on from, and leaves with exit code 75.

Whoever starts the run names a file in `HERMES3_STOP_FILE` and writes it when the time is short, as launch/train.sbatch
does before the time limit. A signal would reach ranks at different steps, and Axolotl answers SIGINT by writing the
unfinished model as if it were the final one.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from hermes3.train.restart import RestartPoints

if TYPE_CHECKING:
    from transformers import Trainer

STOP_FILE = "HERMES3_STOP_FILE"
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later. torchrun, told so by its ranks, itself ends with 1


class StopFile(TrainerCallback):
    """Stops the run once `file` is there: rank 0 looks, and tells the others in a broadcast of one number a step.

    0.2 ms between two CPU ranks; on GPUs it waits for the step's end, as the log of its loss does too.

    It leaves as the next step would begin: a step that ends an epoch gets that epoch's checkpoint, and the run's last
    has no next, so that it just finishes.
    """

    def __init__(self, file: Path, restart: RestartPoints, trainer: "Trainer"):
        self.file, self.restart, self.trainer = file, restart, trainer

    def on_step_end(self, args, state, control, **kwargs):
        import torch
        from accelerate.utils import broadcast

        there = state.is_world_process_zero and self.file.exists()
        asked = bool(broadcast(torch.tensor(int(there), device=args.device)))
        self.restart.asked = asked and state.global_step < state.max_steps

    def on_step_begin(self, args, state, control, **kwargs):
        if self.restart.asked:
            self._leave(args, state, control)

    on_epoch_begin = on_step_begin

    def _leave(self, args, state, control) -> None:
        from axolotl.utils.distributed import cleanup_distributed
        from axolotl.utils.logging import get_logger

        get_logger(__name__).warning(f"{self.file} is there: stopping after step {state.global_step}, which is saved")
        self.trainer.callback_handler.on_train_end(args, state, control)  # trackers write what they hold
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run:
            wandb.finish()
        args.distributed_state.wait_for_everyone()  # or torchrun would end those that are still at it
        cleanup_distributed()
        raise SystemExit(STOPPED)
