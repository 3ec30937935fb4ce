"""A checkpoint is complete once every rank has written its part of it: then, and only then, it holds `complete.json`.

A save takes minutes at 405B, and a rank may die within it. Its parts come in this order (transformers 5,
`Trainer._save_checkpoint`): weights and tokenizer by rank 0 or in shards, optimizer and scheduler by rank 0 or in
shards, random states by every rank, `trainer_state.json` by rank 0, which waits for no other. So no file that the
trainer writes says that all are there, and Axolotl resumes from the highest-numbered folder, whatever it holds.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

COMPLETE = "complete.json"  # {"step": optimizer steps done, "epoch": passes over the data, as the trainer counts them}
RESTART_POINT = "restart_point"  # an empty file in a checkpoint that is no epoch's (hermes3/train/restart.py)
OPTIMIZER = ("latest", "optimizer*")  # DeepSpeed's pointer to its shards; a file, or FSDP2's folder


def checkpoints(output_dir: Path) -> list[Path]:
    """Every `checkpoint-N` in a run's folder, by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step)


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_complete(output_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step, None if there is none."""
    return next((path for path in reversed(checkpoints(output_dir)) if (path / COMPLETE).is_file()), None)


def resume_from_complete() -> None:
    """Have Axolotl resume, and join FSDP shards, from the newest complete checkpoint, for the life of this process."""
    import sys

    import axolotl.utils.train as source

    users = ("axolotl.train", "axolotl.cli.merge_sharded_fsdp_weights")  # they import the function by name
    for module in (source, *(sys.modules[name] for name in users if name in sys.modules)):
        module.determine_last_checkpoint = _last_checkpoint


def _last_checkpoint(cfg, update: bool = True) -> str | None:
    """In place of Axolotl's, and called as it is: by every rank. They take what rank 0 sees.

    Over a network's file system one rank may not see yet what another has written.
    """
    from accelerate.utils import broadcast_object_list
    from axolotl.utils.logging import get_logger

    output_dir = Path(cfg.output_dir)
    newest = newest_complete(output_dir)
    newest = broadcast_object_list([newest and str(newest)])[0]
    if not update:
        return newest
    if cfg.resume_from_checkpoint is None and cfg.auto_resume_from_checkpoints:
        log = get_logger(__name__)
        for path in checkpoints(output_dir):
            if not (path / COMPLETE).is_file() and step(path) > (step(Path(newest)) if newest else 0):
                log.warning(f"{path} has no {COMPLETE}: a save that was broken off. It is passed over, and not deleted")
        log.warning(f"resuming from {newest}" if newest else "no complete checkpoint: starting at step 0")
        cfg.resume_from_checkpoint = newest
    return cfg.resume_from_checkpoint


def mark_complete(trainer: "Trainer") -> None:
    """Have the trainer's saves write `complete.json` last, by rank 0, once every rank is done.

    A save into a folder that is there takes it away first. A checkpoint that lacks its optimizer does not get it:
    Axolotl logs a failure to save that, and transformers would resume with an empty one, both without an error.
    """
    save_checkpoint, args = trainer._save_checkpoint, trainer.args

    def save(*given, **named) -> None:
        from hermes3.files import write_text

        folder = Path(args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if trainer.is_world_process_zero():
            (folder / COMPLETE).unlink(missing_ok=True)
        args.distributed_state.wait_for_everyone()
        save_checkpoint(*given, **named)
        args.distributed_state.wait_for_everyone()
        if trainer.is_world_process_zero() and (args.save_only_model or _has_optimizer(folder)):
            state = {"step": trainer.state.global_step, "epoch": trainer.state.epoch}
            write_text(folder / COMPLETE, json.dumps(state) + "\n")

    trainer._save_checkpoint = save


def _has_optimizer(folder: Path) -> bool:
    from axolotl.utils.logging import get_logger

    there = any(any(folder.glob(pattern)) for pattern in OPTIMIZER)
    if not there:
        get_logger(__name__).warning(f"{folder}: its optimizer was not saved; no run will resume from it")
    return there
