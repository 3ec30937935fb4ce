"""The checkpoints of a run, read without torch: which are complete, which end an epoch, and a whole model from one.

A checkpoint is complete once it holds `complete.json`, which is written last (hermes3/train/saving.py).
"""

import json
from contextlib import suppress
from pathlib import Path

from hermes3.files import UserError
from hermes3.model_folder import check_model

COMPLETE = "complete.json"  # {"step": optimizer steps done, "epoch": passes over the data, as the trainer counts them}
RESTART_POINT = "restart_point"  # an empty file in a checkpoint that is no epoch's
SHORT = 0.1  # of an epoch: one that packs a batch short ends at e.g. 0.999, at 12 steps per epoch at 0.92


def checkpoints(output_dir: Path) -> list[Path]:
    """Every `checkpoint-N` in a run's folder, by step."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_complete(output_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step, None if there is none."""
    return next((path for path in reversed(checkpoints(output_dir)) if (path / COMPLETE).is_file()), None)


def epochs_of(output_dir: Path) -> dict[int, Path]:
    """Epoch (1 is the first) -> its complete checkpoint; restart points are left out. `UserError` if there is none."""
    epochs = {}
    for path in checkpoints(output_dir):
        if (path / COMPLETE).is_file() and not (path / RESTART_POINT).exists():
            epoch = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["epoch"]
            if round(epoch) and abs(epoch - round(epoch)) < SHORT:
                epochs[round(epoch)] = path
    if not epochs:
        raise UserError(
            f"{output_dir}: no checkpoint of an epoch (checkpoint-N with {COMPLETE}); train with save_strategy: epoch"
        )
    return epochs


def whole_model(checkpoint: Path, out: Path) -> Path:
    """`checkpoint` itself if it is a whole model, else `out`, to which its ranks' parts are joined once.

    `UserError` with the remedy when it is neither, as an adapter is.
    """
    from hermes3.train.consolidate import consolidate, is_sharded

    if not is_sharded(checkpoint):
        check_model(checkpoint)
        return checkpoint
    for folder in (checkpoint, out):
        with suppress(UserError):
            check_model(folder)
            return folder
    consolidate(checkpoint, out)
    return out
