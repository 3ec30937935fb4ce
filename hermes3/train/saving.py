"""When a run saves: complete checkpoints, restart points between the epochs, and a checkpoint when it is told to stop.

In transformers 5 no rank waits for another's save, and Axolotl resumes from the highest-numbered folder. Here it
resumes from the newest that has `complete.json`, written last, and holds the files that this lists.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import torch
import transformers.trainer
from accelerate.utils import broadcast, broadcast_object_list
from axolotl.utils.distributed import cleanup_distributed
from axolotl.utils.logging import get_logger
from torch.utils.serialization import config
from transformers import Trainer, TrainerCallback

from hermes3.files import UserError, write_text
from hermes3.train import checkpoints as saved
from hermes3.train.checkpoints import COMPLETE, RESTART_POINT, broken, checkpoints, mark_of, newest_complete, step_of

LOG = get_logger(__name__)
OPTIMIZER = ("latest", "optimizer*")  # DeepSpeed's pointer to its shards; a file, or FSDP2's folder
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later. torchrun itself exits with 1 when its ranks exit with 75


def resume_from_complete() -> None:
    """Have Axolotl resume, and join FSDP shards, from the newest complete checkpoint, for the life of this process."""
    import axolotl.utils.train as source

    users = ("axolotl.train", "axolotl.cli.merge_sharded_fsdp_weights")  # they import the function by name
    for module in (source, *(sys.modules[name] for name in users if name in sys.modules)):
        module.determine_last_checkpoint = last_checkpoint


def load_resized() -> None:
    """Have a run under ZeRO-3 load what `hermes3 resize` wrote into a checkpoint, for the life of this process."""
    load = transformers.trainer.deepspeed_load_checkpoint

    def load_checkpoint(engine, checkpoint: str, **kwargs) -> None:
        for wrong in saved.unready(Path(checkpoint), engine.dp_world_size):
            raise UserError(wrong)
        if not (universal := Path(checkpoint, saved.UNIVERSAL)).is_dir():
            return load(engine, checkpoint, **kwargs)
        optimizer = engine.optimizer.optimizer  # torch's, in DeepSpeed's
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        engine._config.load_universal_checkpoint = True
        with config.patch("load.mmap", True):  # a rank reads its own part of each file, and not all of it
            load(engine, str(universal), **kwargs)
        if (batch := engine.global_samples // engine.global_steps) != engine.train_batch_size():
            raise UserError(f"{checkpoint}: its global batch was {batch}; set gradient_accumulation_steps to keep it")
        # Row 39: DeepSpeed gives all groups the first one's weight decay, and all weights one step counter
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for weights, state in optimizer.state.items():
            if torch.is_tensor(state["step"]):  # where torch itself would make it
                state["step"] = state["step"].to(weights.device if optimizer.defaults["fused"] else "cpu", copy=True)

    transformers.trainer.deepspeed_load_checkpoint = load_checkpoint


def last_checkpoint(cfg, update: bool = True) -> str | None:
    """Replaces Axolotl's function. Every rank takes what rank 0 sees: a network file system may show others less."""
    output_dir = Path(cfg.output_dir)
    newest = broadcast_object_list([newest_complete(output_dir)])[0]
    path = newest and str(newest)
    if not update:
        return path
    if cfg.resume_from_checkpoint is None and cfg.auto_resume_from_checkpoints:
        for later in checkpoints(output_dir):
            if step_of(later) > (step_of(newest) if newest else 0):
                LOG.warning(f"{later} {broken(later)}. It is passed over, and not deleted")
        LOG.warning(f"resuming from {path}" if path else "no complete checkpoint: starting at step 0")
        cfg.resume_from_checkpoint = path
    return cfg.resume_from_checkpoint


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


class Saving(TrainerCallback):
    """Marks each checkpoint complete; saves every `steps` optimizer steps, and when told to stop.

    The trainer saves by steps or by epochs, and deletes the oldest first: the epochs that are still to be compared. A
    restart point is marked before its save, and deleted once the next checkpoint, of either kind, is complete.

    Once `stop_file` exists, every rank saves at the end of its step and exits with code 75. A signal would reach the
    ranks at different steps, and Axolotl answers SIGINT by writing the unfinished model as if it were the final one.
    Rank 0 looks, and broadcasts one number per step: 0.2 ms between two CPU ranks. The run exits as the next step would
    begin: an epoch's last step gets its checkpoint, and after the last of all the run finishes.
    """

    def __init__(self, trainer: Trainer, steps: int | None, stop_file: str | None = None):
        self.trainer, self.steps, self.stop_file = trainer, steps, stop_file and Path(stop_file)
        self.stops = self.due = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop_file:
            exists = state.is_world_process_zero and self.stop_file.exists()
            exists = bool(broadcast(torch.tensor(int(exists), device=args.device)))
            self.stops = exists and state.global_step < state.max_steps
        regular = bool(self.steps) and state.global_step % self.steps == 0
        saved_anyway = control.should_save or (args.save_strategy == "epoch" and state.epoch == int(state.epoch))
        self.due = (regular or self.stops) and not saved_anyway
        control.should_save |= self.due
        if self.due and state.is_world_process_zero:
            _folder(args, state).mkdir(parents=True, exist_ok=True)
            (_folder(args, state) / RESTART_POINT).touch()

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_save and state.is_world_process_zero:
            (_folder(args, state) / RESTART_POINT).unlink(missing_ok=True)
        control.should_save &= not self.due  # the restart point of an epoch that was short of a step is its checkpoint

    def on_save(self, args, state, control, **kwargs):
        newest, ranks = _folder(args, state), args.distributed_state
        ranks.wait_for_everyone()
        if ranks.is_local_main_process:
            flush(newest)
        ranks.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        if not args.save_only_model and not any(any(newest.glob(pattern)) for pattern in OPTIMIZER):
            LOG.warning(f"{newest}: its optimizer was not saved; no run will resume from it")  # row 33
            return
        files = {path for path in newest.rglob("*") if path.is_file()} - {newest / COMPLETE, newest / RESTART_POINT}
        marks = {str(file.relative_to(newest)): mark_of(file) for file in sorted(files)}
        complete = {"step": state.global_step, "epoch": state.epoch, "files": marks}
        write_text(newest / COMPLETE, json.dumps(complete) + "\n")
        for mark in Path(args.output_dir).glob(f"checkpoint-*/{RESTART_POINT}"):
            if mark.parent != newest:
                shutil.rmtree(mark.parent)

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.stops:
            return
        LOG.warning(f"{self.stop_file} is there: stopping after step {state.global_step}, which is saved")
        self.trainer.callback_handler.on_train_end(args, state, control)  # trackers write what they hold
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.finish()
        args.distributed_state.wait_for_everyone()  # torchrun would kill the ranks that are still at it
        cleanup_distributed()
        raise SystemExit(STOPPED)

    on_epoch_begin = on_step_begin


def _folder(args, state) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
