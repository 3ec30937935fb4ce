"""One whole bf16 model from a DeepSpeed ZeRO checkpoint, whose ranks each wrote their part.

The 405B recipe saves so, because gathering 812 GB in rank 0's node at every save is slow and may not fit. DeepSpeed's
own converter writes fp32, 1.6 TB for 405B, which `from_pretrained` would then load as such.
"""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hermes3.files import new_folder
from hermes3.model_folder import INDEX

MAX_SHARD_SIZE = "5GB"  # host memory that a shard takes, besides the mapped checkpoint


def consolidate(
    checkpoint: Path, out: Path, max_shard_size: str = MAX_SHARD_SIZE, progress: Callable[[str], None] = print
) -> int:
    """Write the model of folder `checkpoint` (`checkpoint-N` of a run) to folder `out`; the bytes of its weights.

    The fp32 weights are rounded to bf16, as a 16-bit gather would. Reads pickles: use it on checkpoints of your own
    runs only. `ValueError` when `checkpoint` holds no ZeRO checkpoint or lacks a rank's part, or `out` is there.
    """
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or name another folder")
    if not (checkpoint / "latest").is_file():
        raise ValueError(f"{checkpoint}: no file `latest`, so no DeepSpeed checkpoint; give a folder checkpoint-N")
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint}: no config.json; give a folder checkpoint-N of an Axolotl run")
    try:
        lazy = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    except (FileNotFoundError, ValueError, RuntimeError, EOFError) as error:
        raise ValueError(f"{checkpoint}: not a whole checkpoint ({error}); take the one before it") from error
    sizes = {name: torch.empty(tensor.shape, dtype=torch.bfloat16, device="meta") for name, tensor in lazy.items()}
    split = split_torch_state_dict_into_shards(
        sizes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    with new_folder(out) as folder:
        for number, (file, names) in enumerate(split.filename_to_tensors.items(), 1):
            shard = {name: lazy.pop(name).contiguous().to(torch.bfloat16) for name in names}
            save_file(shard, folder / file, metadata={"format": "pt"})
            progress(f"{number} of {len(split.filename_to_tensors)} files")
            del shard
            gc.collect()
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in _beside_the_weights(checkpoint):
            shutil.copy2(path, folder / path.name)
    return split.metadata["total_size"]


def _beside_the_weights(checkpoint: Path) -> list[Path]:
    """Configuration, tokenizer and chat template."""
    kept = [path for path in checkpoint.glob("*.json") if path.name != "trainer_state.json"]
    return [*kept, *checkpoint.glob("*.jinja")]
