"""The checkpoints of a run, read without torch: which are complete, which end an epoch, and a whole model from one.

A checkpoint is complete once it holds `complete.json`, which is written last (hermes3/train/saving.py).
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from hermes3.files import UserError
from hermes3.model_folder import check_model

# {"step": optimizer steps done, "epoch": passes over the data, as the trainer counts them, "files": name -> mark_of}
COMPLETE = "complete.json"
RESTART_POINT = "restart_point"  # an empty file in a checkpoint that is no epoch's
ENDS = 2**16
SHORT = 0.1  # of an epoch: one that packs a batch short ends at e.g. 0.999, at 12 steps per epoch at 0.92


def checkpoints(output_dir: Path) -> list[Path]:
    """Every `checkpoint-N` in a run's folder, by step."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_complete(output_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step, None if there is none."""
    return next((path for path in reversed(checkpoints(output_dir)) if not broken(path)), None)


def mark_of(file: Path) -> list:
    """[bytes, hash of the first and the last `ENDS` bytes]: tells a file from one that was cut off or left empty."""
    size = file.stat().st_size
    with file.open("rb") as data:
        ends = data.read(ENDS)
        data.seek(max(0, size - ENDS))
        return [size, hashlib.sha256(ends + data.read(ENDS)).hexdigest()[:16]]


def broken(checkpoint: Path) -> str:
    """Why no run can resume from a checkpoint, "" if one can: a save was broken off, or a file is not as it was saved.

    A node that loses power takes with it what the shared file system has not yet got of it. A mark without a list of
    files is believed.
    """
    try:
        files = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")).get("files", {})
    except FileNotFoundError:
        return f"has no {COMPLETE}: a save that was broken off"
    except ValueError:
        return f"has an unreadable {COMPLETE}"
    for name, mark in files.items():
        if not (checkpoint / name).is_file():
            return f"lacks {name}"
        if mark_of(checkpoint / name) != mark:
            return f"has another {name} than was saved"
    return ""


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
