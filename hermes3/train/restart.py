"""A checkpoint every `restart_steps` steps to restart from, beside the ones that the recipe keeps for each epoch.

The trainer saves either by steps or by epochs and deletes the oldest first, which are the epochs that are still to be
compared. Here a restart point is deleted as soon as the next checkpoint, of either kind, is complete
(hermes3/train/complete.py): it may be the only one that a run can resume from.
"""

import shutil
from pathlib import Path

from transformers import TrainerCallback

from hermes3.train.complete import COMPLETE
from hermes3.train.complete import RESTART_POINT as MARK


class RestartPoints(TrainerCallback):
    """Saves every `steps` optimizer steps, and where `asked`. At an epoch's last step it is the epoch's checkpoint.

    The mark is there before the save and goes before what an epoch saves, so that a run which dies in between never
    takes one for the other.
    """

    def __init__(self, steps: int | None):
        self.steps = steps
        self.asked = False  # a checkpoint at the end of this step, whatever its number
        self.due = False

    def on_train_begin(self, args, state, control, **kwargs):
        ended = state.global_step and state.epoch == int(state.epoch)
        if ended and args.save_strategy == "epoch":  # the run before died between the restart point and the epoch's end
            self._unmark(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        regular = bool(self.steps) and state.global_step % self.steps == 0
        self.due = (regular or self.asked) and not control.should_save
        if not self.due:
            return
        control.should_save = True
        if state.is_world_process_zero:
            newest = self._newest(args, state)
            newest.mkdir(parents=True, exist_ok=True)
            (newest / MARK).touch()

    def on_epoch_end(self, args, state, control, **kwargs):
        if not control.should_save:
            return
        self._unmark(args, state)
        if self.due:  # this step's is whole; a second save would leave none if it were broken off
            control.should_save = self.due = False

    def on_save(self, args, state, control, **kwargs):
        newest = self._newest(args, state)
        if not state.is_world_process_zero or not (newest / COMPLETE).is_file():
            return
        for mark in Path(args.output_dir).glob(f"checkpoint-*/{MARK}"):
            if mark.parent != newest:
                shutil.rmtree(mark.parent)

    def _unmark(self, args, state) -> None:
        if state.is_world_process_zero:
            (self._newest(args, state) / MARK).unlink(missing_ok=True)

    @staticmethod
    def _newest(args, state) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
