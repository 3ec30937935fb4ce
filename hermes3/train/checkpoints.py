"""The checkpoints of a run: which are complete, which end an epoch, and one whole model from one. Read without torch.

A checkpoint is complete once it holds `complete.json`, which is written last (hermes3/train/saving.py). Each rank of a
405B run saves its own part, because gathering 812 GB on rank 0's node is slow and may not fit. The converters of
DeepSpeed, Axolotl and torch write fp32, 1.6 TB, or hold it all in memory; this writes bf16, a file at a time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hermes3.files import UserError, new_folder, read_json
from hermes3.model_folder import INDEX, check_model

Shapes = dict[str, Any]  # torch.Size by tensor's name
Read = Callable[[Iterable[str]], dict[str, Any]]  # some tensors, by name

# {"step": optimizer steps done, "epoch": passes over the data, as the trainer counts them, "files": name -> mark_of}
COMPLETE = "complete.json"
RESTART_POINT = "restart_point"  # an empty file in a checkpoint that is no epoch's
ENDS = 2**16
SHORT = 0.1  # of an epoch: one that packs a batch short ends at e.g. 0.999, at 12 steps per epoch at 0.92
MAX_SHARD_SIZE = "5GB"  # of bf16; twice that of host memory, because a file's tensors are read in fp32
FSDP = "pytorch_model_fsdp_0"  # accelerate's folder in a checkpoint


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
            epoch = read_json(path / COMPLETE, "epoch")["epoch"]
            if round(epoch) and abs(epoch - round(epoch)) < SHORT:
                epochs[round(epoch)] = path
    if not epochs:
        raise UserError(
            f"{output_dir}: no checkpoint of an epoch (checkpoint-N with {COMPLETE}); train with save_strategy: epoch"
        )
    return epochs


def whole_model(checkpoint: Path, out: Path) -> Path:
    """`checkpoint` itself if it is a whole model, else `out`, to which the ranks' parts are joined once.

    `UserError` with the remedy when it is neither, as an adapter is.
    """
    if not is_sharded(checkpoint):
        check_model(checkpoint)
        return checkpoint
    for folder in (checkpoint, out):
        with suppress(UserError):
            check_model(folder)
            return folder
    consolidate(checkpoint, out)
    return out


def is_sharded(checkpoint: Path) -> bool:
    """Whether each rank wrote a part of the checkpoint."""
    return (checkpoint / FSDP).is_dir() or (checkpoint / "latest").is_file()


def consolidate(checkpoint: Path, out: Path, max_shard_size: str = MAX_SHARD_SIZE) -> int:
    """Write the model of folder `checkpoint` (`checkpoint-N` of a run) to folder `out`; return its weights' bytes.

    The fp32 weights are rounded to bf16, as a 16-bit gather would. Configuration and tokenizer are the checkpoint's, or
    those of the run's folder around it. Reads pickles: use it on checkpoints of your own runs only. `UserError` if
    `checkpoint` is no such folder or lacks a rank's part, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or name another folder")
    if not is_sharded(checkpoint):
        raise UserError(
            f"{checkpoint}: neither file latest (DeepSpeed) nor folder {FSDP} (FSDP); give a folder checkpoint-N"
        )
    source = next((folder for folder in (checkpoint, checkpoint.parent) if (folder / "config.json").is_file()), None)
    if not source:
        raise UserError(f"{checkpoint}: no config.json, nor beside it; give a folder checkpoint-N of an Axolotl run")
    try:
        shapes, read = _fsdp(checkpoint / FSDP) if (checkpoint / FSDP).is_dir() else _zero(checkpoint)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise UserError(f"{checkpoint}: not a whole checkpoint ({error}); take the one before it") from error
    with new_folder(out, "hermes3 consolidate") as folder:
        for path in [*source.glob("*.json"), *source.glob("*.jinja")]:
            if path.name not in ("trainer_state.json", "tokens_state.json", INDEX):
                shutil.copy2(path, folder / path.name)
        return _write(shapes, read, folder, max_shard_size)


def merge_in_parts() -> None:
    """Have Axolotl's merge of FSDP checkpoints, at the end of a run and by hand, hold one file's tensors in memory."""
    import axolotl.cli.merge_sharded_fsdp_weights as source

    source.merge_fsdp_weights = _merge


def _merge(checkpoint_dir: str, output_path: str, **kwargs) -> None:
    """Every rank calls it."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        with new_folder(Path(output_path), "axolotl train") as folder:
            _write(*_fsdp(Path(checkpoint_dir)), folder, MAX_SHARD_SIZE)


def _write(shapes: Shapes, read: Read, folder: Path, max_shard_size: str) -> int:
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    sizes = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(
        sizes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for number, (file, names) in enumerate(split.filename_to_tensors.items(), 1):
        tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in read(names).items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(f"{number} of {len(split.filename_to_tensors)} files")
        del tensors  # before the next file's are read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return split.metadata["total_size"]


def _zero(checkpoint: Path) -> tuple[Shapes, Read]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    lazy = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    shapes = {name: tensor.shape for name, tensor in lazy.items()}
    return shapes, lambda names: {name: lazy[name].contiguous() for name in names}


def _fsdp(folder: Path) -> tuple[Shapes, Read]:
    import torch
    import torch.distributed.checkpoint as dcp

    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name.removeprefix("model."): tensor for name, tensor in stored.items()}  # of {"model": ...}

    def read(names: Iterable[str]) -> dict[str, Any]:
        state = {name: torch.empty(tensors[name].size, dtype=tensors[name].properties.dtype) for name in names}
        dcp.load({"model": state}, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
        return state

    return {name: tensor.size for name, tensor in tensors.items()}, read
