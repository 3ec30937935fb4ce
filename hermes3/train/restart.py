"""A checkpoint every `restart_steps` steps to restart from, beside the ones that the recipe keeps for each epoch.

The trainer saves either by steps or by epochs and deletes the oldest first, which are the epochs that are still to be
compared. Here a restart point is deleted as soon as the next checkpoint, of either kind, is whole.
"""

import shutil
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

MARK = "restart_point"  # an empty file in a checkpoint's folder: it goes when a newer checkpoint is there


class RestartPoints(TrainerCallback):
    """Saves every `steps` optimizer steps. A restart point at an epoch's last step becomes the epoch's checkpoint."""

    def __init__(self, steps: int):
        self.steps = steps
        self.due = False

    def on_step_end(self, args, state, control, **kwargs):
        self.due = state.global_step % self.steps == 0 and not control.should_save
        control.should_save |= self.due

    def on_epoch_end(self, args, state, control, **kwargs):
        self.due = False
        if state.is_world_process_zero:  # an epoch that ends at a restart point: from here on it is the epoch's
            (self._newest(args, state) / MARK).unlink(missing_ok=True)

    def on_save(self, args, state, control, **kwargs):
        args.distributed_state.wait_for_everyone()  # other ranks may still write their part of the new checkpoint
        if not state.is_world_process_zero:
            return
        newest = self._newest(args, state)
        if self.due:
            (newest / MARK).touch()
        for mark in Path(args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{MARK}"):
            if mark.parent != newest:
                shutil.rmtree(mark.parent)

    @staticmethod
    def _newest(args, state) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
