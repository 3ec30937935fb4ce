"""The checkpoints that a run keeps of its epochs, and a whole model from any of them."""

import json
from contextlib import suppress
from pathlib import Path

from hermes3.model_folder import check_model
from hermes3.train.complete import COMPLETE, RESTART_POINT, checkpoints

SHORT = 0.1  # of an epoch: one that packs a batch short ends at e.g. 0.999, at 12 steps an epoch at 0.92


def epochs_of(output_dir: Path) -> dict[int, Path]:
    """Epoch (1 the first) -> its complete checkpoint in the run's folder. Restart points are none.

    `ValueError` when there is none.
    """
    found = {}
    for path in checkpoints(output_dir):
        if (path / COMPLETE).is_file() and not (path / RESTART_POINT).exists():
            epoch = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["epoch"]
            if round(epoch) and abs(epoch - round(epoch)) < SHORT:
                found[round(epoch)] = path
    if not found:
        raise ValueError(
            f"{output_dir}: no checkpoint of an epoch (checkpoint-N with {COMPLETE}); train with save_strategy: epoch"
        )
    return found


def whole_model(checkpoint: Path, out: Path) -> Path:
    """`checkpoint` itself if it is a whole model, else `out`, to which the parts of its ranks are joined once.

    `ValueError` with the remedy when it is neither, as an adapter is.
    """
    from hermes3.train.consolidate import FSDP, consolidate

    if not ((checkpoint / FSDP).is_dir() or (checkpoint / "latest").is_file()):
        check_model(checkpoint)
        return checkpoint
    for folder in (checkpoint, out):
        with suppress(ValueError):
            check_model(folder)
            return folder
    consolidate(checkpoint, out)
    return out
