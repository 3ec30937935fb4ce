"""When a run saves: complete checkpoints, restart points between the epochs, and a checkpoint when it is told to stop.

A save takes minutes at 405B, and a rank may die within it. In transformers 5 (`Trainer._save_checkpoint`) no rank waits
for another, so no file says that all parts are there, and Axolotl resumes from the highest-numbered folder. Here rank 0
writes `complete.json` once every rank is done and its node has flushed the files, which it lists; a run resumes from
the newest checkpoint that has it and holds these files.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

from transformers import Trainer, TrainerCallback

from hermes3.files import write_text
from hermes3.train.checkpoints import (
    COMPLETE,
    RESTART_POINT,
    broken,
    checkpoints,
    mark_of,
    newest_complete,
    step_of,
)

OPTIMIZER = ("latest", "optimizer*")  # DeepSpeed's pointer to its shards; a file, or FSDP2's folder
STOP_FILE = "HERMES3_STOP_FILE"
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later. torchrun itself exits with 1 when its ranks exit with 75


def resume_from_complete() -> None:
    """Have Axolotl resume, and join FSDP shards, from the newest complete checkpoint, for the life of this process."""
    import axolotl.utils.train as source

    users = ("axolotl.train", "axolotl.cli.merge_sharded_fsdp_weights")  # they import the function by name
    for module in (source, *(sys.modules[name] for name in users if name in sys.modules)):
        module.determine_last_checkpoint = _last_checkpoint


def _last_checkpoint(cfg, update: bool = True) -> str | None:
    """Replaces Axolotl's function. Every rank calls it and takes what rank 0 sees.

    On a network file system one rank may not see yet what another has written.
    """
    from accelerate.utils import broadcast_object_list

    output_dir = Path(cfg.output_dir)
    newest = newest_complete(output_dir)
    newest = broadcast_object_list([newest and str(newest)])[0]
    if not update:
        return newest
    if cfg.resume_from_checkpoint is None and cfg.auto_resume_from_checkpoints:
        for path in checkpoints(output_dir):
            if step_of(path) > (step_of(Path(newest)) if newest else 0):
                _warn(f"{path} {broken(path)}. It is passed over, and not deleted")
        _warn(f"resuming from {newest}" if newest else "no complete checkpoint: starting at step 0")
        cfg.resume_from_checkpoint = newest
    return cfg.resume_from_checkpoint


def mark_complete(trainer: Trainer) -> None:
    """Have rank 0 write `complete.json` last in each save of the trainer, once every rank is done.

    A save into an existing folder removes the file first. A checkpoint without its optimizer does not get the file:
    Axolotl only logs that failure, and transformers would resume with an empty optimizer without an error.
    """
    save_checkpoint, args = trainer._save_checkpoint, trainer.args

    def save(*positional, **named) -> None:
        folder = _folder(args, trainer.state)
        if trainer.is_world_process_zero():
            (folder / COMPLETE).unlink(missing_ok=True)
        args.distributed_state.wait_for_everyone()
        save_checkpoint(*positional, **named)
        args.distributed_state.wait_for_everyone()
        if args.distributed_state.is_local_main_process:
            flush(folder)
        args.distributed_state.wait_for_everyone()
        if not trainer.is_world_process_zero():
            return
        if args.save_only_model or any(any(folder.glob(pattern)) for pattern in OPTIMIZER):
            files = {str(file.relative_to(folder)): mark_of(file) for file in folder.rglob("*") if file.is_file()}
            files.pop(RESTART_POINT, None)
            state = {"step": trainer.state.global_step, "epoch": trainer.state.epoch, "files": files}
            write_text(folder / COMPLETE, json.dumps(state) + "\n")
        else:
            _warn(f"{folder}: its optimizer was not saved; no run will resume from it")

    trainer._save_checkpoint = save


def flush(folder: Path) -> None:
    """Have what this node has written into `folder` reach the shared file system."""
    for path in (*filter(Path.is_file, folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):  # others: the file system has no such call
                raise
        finally:
            os.close(descriptor)


class RestartPoints(TrainerCallback):
    """Saves every `steps` optimizer steps, and when `stop_now` is set. An epoch's last step gives its checkpoint.

    The trainer saves either by steps or by epochs, and deletes the oldest first, which are the epochs that are still to
    be compared. A restart point is deleted once the next checkpoint, of either kind, is complete. Its mark is written
    before the save, and removed before an epoch's save, so that a run which dies in between confuses neither.
    """

    def __init__(self, steps: int | None):
        self.steps = steps
        self.stop_now = False  # set by StopFile: save at the end of this step, whatever its number
        self.due = False

    def on_train_begin(self, args, state, control, **kwargs):
        ended = state.global_step and state.epoch == int(state.epoch)
        if ended and args.save_strategy == "epoch":  # the run before died between the restart point and the epoch's end
            self._unmark(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        regular = bool(self.steps) and state.global_step % self.steps == 0
        self.due = (regular or self.stop_now) and not control.should_save
        control.should_save |= self.due
        if self.due and state.is_world_process_zero:
            _folder(args, state).mkdir(parents=True, exist_ok=True)
            (_folder(args, state) / RESTART_POINT).touch()

    def on_epoch_end(self, args, state, control, **kwargs):
        if not control.should_save:
            return
        self._unmark(args, state)
        if self.due:  # this step's checkpoint is whole; a second save that broke off would leave none
            control.should_save = self.due = False

    def on_save(self, args, state, control, **kwargs):
        newest = _folder(args, state)
        if not state.is_world_process_zero or broken(newest):
            return
        for mark in Path(args.output_dir).glob(f"checkpoint-*/{RESTART_POINT}"):
            if mark.parent != newest:
                shutil.rmtree(mark.parent)

    def _unmark(self, args, state) -> None:
        if state.is_world_process_zero:
            (_folder(args, state) / RESTART_POINT).unlink(missing_ok=True)


class StopFile(TrainerCallback):
    """Once `file` exists, every rank saves at the end of the step and exits with code 75.

    The job script names the file in `HERMES3_STOP_FILE` and writes it before the time limit. A signal would reach the
    ranks at different steps, and Axolotl answers SIGINT by writing the unfinished model as if it were the final one.
    Rank 0 looks for the file and broadcasts one number per step: 0.2 ms between two CPU ranks. The run exits as the
    next step would begin: an epoch's last step gets its checkpoint, and after the last of all the run finishes.
    """

    def __init__(self, file: Path, restart: RestartPoints, trainer: Trainer):
        self.file, self.restart, self.trainer = file, restart, trainer

    def on_step_end(self, args, state, control, **kwargs):
        import torch
        from accelerate.utils import broadcast

        exists = state.is_world_process_zero and self.file.exists()
        stop = bool(broadcast(torch.tensor(int(exists), device=args.device)))
        self.restart.stop_now = stop and state.global_step < state.max_steps

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.restart.stop_now:
            return
        from axolotl.utils.distributed import cleanup_distributed

        _warn(f"{self.file} is there: stopping after step {state.global_step}, which is saved")
        self.trainer.callback_handler.on_train_end(args, state, control)  # trackers write what they hold
        wandb = sys.modules.get("wandb")
        if wandb and wandb.run:
            wandb.finish()
        args.distributed_state.wait_for_everyone()  # torchrun would kill the ranks that are still at it
        cleanup_distributed()
        raise SystemExit(STOPPED)

    on_epoch_begin = on_step_begin


def _folder(args, state) -> Path:
    """Where the trainer saves this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _warn(text: str) -> None:
    from axolotl.utils.logging import get_logger

    get_logger(__name__).warning(text)
