"""One whole bf16 model from a checkpoint whose ranks each wrote their part: DeepSpeed's ZeRO, or FSDP2.

The 405B recipes save this way, because gathering 812 GB on rank 0's node at every save is slow and may not fit.
DeepSpeed's own converter writes fp32, 1.6 TB for 405B; Axolotl's, for FSDP, holds all of that in memory, and so do
torch's converters of its checkpoints. This holds one file's tensors.
"""

import gc
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hermes3.files import UserError, new_folder
from hermes3.model_folder import INDEX

if TYPE_CHECKING:
    from torch import Size, Tensor

    Shapes = dict[str, Size]
    Read = Callable[[Iterable[str]], dict[str, Tensor]]  # some tensors, by name

MAX_SHARD_SIZE = "5GB"  # of bf16; twice that of host memory, as a file's tensors are read in fp32
FSDP = "pytorch_model_fsdp_0"  # accelerate's folder in a checkpoint


def is_sharded(checkpoint: Path) -> bool:
    """Whether each rank wrote a part of the checkpoint."""
    return (checkpoint / FSDP).is_dir() or (checkpoint / "latest").is_file()


def consolidate(
    checkpoint: Path, out: Path, max_shard_size: str = MAX_SHARD_SIZE, progress: Callable[[str], None] = print
) -> int:
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
    shapes, read = _fsdp(checkpoint / FSDP) if (checkpoint / FSDP).is_dir() else _zero(checkpoint)
    with new_folder(out, "hermes3 consolidate") as folder:
        for path in [*source.glob("*.json"), *source.glob("*.jinja")]:
            if path.name not in ("trainer_state.json", "tokens_state.json", INDEX):
                shutil.copy2(path, folder / path.name)
        return _write(shapes, read, folder, max_shard_size, progress)


def merge_in_parts() -> None:
    """Have Axolotl's merge of FSDP checkpoints, at the end of a run and by hand, hold one file's tensors in memory."""
    import axolotl.cli.merge_sharded_fsdp_weights as source

    source.merge_fsdp_weights = _merge


def _merge(checkpoint_dir: str, output_path: str, **kwargs) -> None:
    """Every rank calls it."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        shapes, read = _fsdp(Path(checkpoint_dir))
        with new_folder(Path(output_path), "axolotl train") as folder:
            _write(shapes, read, folder, MAX_SHARD_SIZE, print)


def _write(shapes: "Shapes", read: "Read", folder: Path, max_shard_size: str, progress: Callable[[str], None]) -> int:
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
        progress(f"{number} of {len(split.filename_to_tensors)} files")
        del tensors
        gc.collect()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return split.metadata["total_size"]


def _zero(checkpoint: Path) -> tuple["Shapes", "Read"]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        lazy = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise UserError(f"{checkpoint}: not a whole checkpoint ({error}); take the one before it") from error
    shapes = {name: tensor.shape for name, tensor in lazy.items()}
    return shapes, lambda names: {name: lazy[name].contiguous() for name in names}


def _fsdp(folder: Path) -> tuple["Shapes", "Read"]:
    import torch
    import torch.distributed.checkpoint as dcp

    try:
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not a whole checkpoint ({error}); take the one before it") from error
    tensors = {name.removeprefix("model."): tensor for name, tensor in stored.items()}  # of {"model": ...}

    def read(names: Iterable[str]) -> dict[str, "Tensor"]:
        state = {name: torch.empty(tensors[name].size, dtype=tensors[name].properties.dtype) for name in names}
        dcp.load({"model": state}, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
        return state

    return {name: tensor.size for name, tensor in tensors.items()}, read
