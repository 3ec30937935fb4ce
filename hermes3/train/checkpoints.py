"""A run's checkpoints: which are complete or end an epoch; one joined, or converted for other ranks. Without torch."""

import hashlib
import json
import shutil
from argparse import Namespace
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

from typer import Argument

from hermes3.files import UserError, new_folder, read_json
from hermes3.model_folder import INDEX, check_model, existing

# Written last: {"step": optimizer steps done, "epoch": passes over the data, "files": name -> mark_of}
COMPLETE = "complete.json"
RESTART_POINT = "restart_point"  # an empty file in a checkpoint that is no epoch's
ENDS = 2**16
SHORT = 0.1  # of an epoch: one that packs a batch short ends at e.g. 0.999, at 12 steps per epoch at 0.92
MAX_SHARD_SIZE = "5GB"  # of bf16; DeepSpeed takes three times that of host memory, a file in fp32 beside it
FSDP = "pytorch_model_fsdp_0"  # accelerate's folder in a checkpoint
UNIVERSAL = "universal"  # folder in a checkpoint: DeepSpeed's form in which each weight and its moments are whole


def checkpoints(output_dir: Path) -> list[Path]:
    """Every `checkpoint-N` in a run's folder, by step."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_complete(output_dir: Path) -> Path | None:
    return next((path for path in reversed(checkpoints(output_dir)) if not broken(path)), None)


def mark_of(file: Path) -> list:
    """[bytes, hash of the first and the last `ENDS` bytes]: tells a file from one that was cut off or left empty."""
    size = file.stat().st_size
    with file.open("rb") as data:
        ends = data.read(ENDS)
        data.seek(max(0, size - ENDS))
        return [size, hashlib.sha256(ends + data.read(ENDS)).hexdigest()[:16]]


def broken(checkpoint: Path) -> str:
    """Why no run can resume from a checkpoint, "" if one can.

    A save was broken off; or a node that lost power took with it what the shared file system had not yet got.
    """
    try:
        files = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")).get("files", {})
    except FileNotFoundError:
        return f"has no {COMPLETE}: a save that was broken off"
    except ValueError:
        return f"has an unreadable {COMPLETE}"
    for name, mark in files.items():
        file = checkpoint / name
        if not file.is_file() or mark_of(file) != mark:
            return f"lacks {name} as it was saved"
    return ""


def epochs_of(output_dir: Path) -> dict[int, Path]:
    """Epoch (1 is the first) -> its complete checkpoint; restart points are left out. `UserError` if there is none."""
    epochs = {}
    for path in checkpoints(existing(output_dir)):
        if (path / COMPLETE).is_file() and not (path / RESTART_POINT).exists():
            epoch = read_json(path / COMPLETE, "epoch")["epoch"]
            if round(epoch) and abs(epoch - round(epoch)) < SHORT:
                epochs[round(epoch)] = path
    if not epochs:
        raise UserError(f"{output_dir}: no checkpoint of an epoch (with {COMPLETE}); train with save_strategy: epoch")
    return epochs


def whole_model(checkpoint: Path, out: Path) -> Path:
    """`checkpoint` itself if it is a whole model, else `out`, to which its parts are joined once. Else `UserError`."""
    for folder in (checkpoint, out):
        with suppress(UserError) if _in_parts(checkpoint) else nullcontext():
            check_model(folder)
            return folder
    consolidate(checkpoint, out)
    return out


def _in_parts(checkpoint: Path) -> bool:
    return (checkpoint / FSDP).is_dir() or (checkpoint / "latest").is_file()  # FSDP, DeepSpeed


def consolidate(
    checkpoint: Annotated[Path, Argument(help="checkpoint-N of a run under ZeRO-3 or FSDP2")],
    out: Annotated[Path, Argument(help="folder to write: the whole model in bf16")],
) -> int:
    """Join the parts that the ranks of a run saved into one model. Reads pickles: use it on your own checkpoints only.

    Example: hermes3 consolidate outputs/405b/sft/checkpoint-1550 outputs/405b/sft/whole
    """
    source = next((one for one in (existing(checkpoint), checkpoint.parent) if (one / "config.json").is_file()), None)
    if not source or not _in_parts(checkpoint):
        wrong = f"neither file latest (DeepSpeed) nor folder {FSDP} (FSDP), or no config.json there nor beside it"
        raise UserError(f"{checkpoint}: {wrong}; give a folder checkpoint-N of an Axolotl run")
    with new_folder(out, "hermes3 consolidate") as folder:
        for path in [*source.glob("*.json"), *source.glob("*.jinja")]:
            if path.name not in ("trainer_state.json", "tokens_state.json", INDEX):
                shutil.copy2(path, folder / path.name)
        try:
            if (checkpoint / FSDP).is_dir():
                _join_fsdp(checkpoint / FSDP, folder)
            else:
                from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict as join_zero

                join_zero(str(checkpoint), str(folder), "bfloat16", MAX_SHARD_SIZE, safe_serialization=True)
        except (FileNotFoundError, ValueError, EOFError) as error:
            raise UserError(f"{checkpoint}: not a whole checkpoint ({error}); take the one before it") from error
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {size:,} bytes of weights")
    return size


def unready(checkpoint: Path, ranks: int) -> list[str]:
    """Why so many ranks cannot go on from a checkpoint yet, with the remedy; [] where they can."""
    saved = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    if saved in (0, ranks) or (checkpoint / UNIVERSAL).is_dir():
        return []
    return [f"{checkpoint}: {saved} ranks saved it, and {ranks} are to go on; run `hermes3 resize {checkpoint}` first"]


def resize(checkpoint: Annotated[Path, Argument(help="checkpoint-N of a run under ZeRO-3")]) -> None:
    """Let a run go on with another number of nodes. Reads pickles: use it on your own checkpoints only.

    Example: hermes3 resize outputs/405b/sft/checkpoint-310
    """
    if wrong := broken(existing(checkpoint)):
        raise UserError(f"{checkpoint} {wrong}; take the checkpoint before it")
    if not (first := next(checkpoint.glob("global_step*/zero_pp_rank_0_mp_rank_00_model_states.pt"), None)):
        raise UserError(f"{checkpoint}: not of ZeRO-3; of ZeRO-2 keep the ranks, of FSDP2 any number goes on")
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.torch.set_num_threads(1)  # a forked worker would wait for this process's threads, for ever
    with new_folder(checkpoint / UNIVERSAL, "hermes3 resize") as folder:
        options = {"input_folder": str(first.parent), "output_folder": str(folder / first.parent.name)}
        options |= {"num_extract_workers": 2, "num_merge_workers": 2, "keep_temp_folder": False}
        try:
            ds_to_universal.main(Namespace(**options))
        except KeyError as error:
            raise UserError(f"{checkpoint}: its optimizer has no {error}; DeepSpeed converts Adam's alone") from error


def merge_in_parts() -> None:
    """Have Axolotl's merge of FSDP checkpoints, at the end of a run and by hand, hold one file's tensors in memory."""
    import axolotl.cli.merge_sharded_fsdp_weights as source
    from accelerate import PartialState

    def merge(checkpoint_dir: str, output_path: str, **kwargs) -> None:
        if PartialState().is_main_process:
            with new_folder(Path(output_path), "axolotl train") as folder:
                _join_fsdp(Path(checkpoint_dir), folder)

    source.merge_fsdp_weights = merge


def _join_fsdp(parts: Path, folder: Path) -> None:
    """A file at a time: the converters of torch, accelerate and Axolotl hold 405B whole in fp32, 1.6 TB."""
    import torch
    import torch.distributed.checkpoint as dcp
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    stored = dcp.FileSystemReader(parts).read_metadata().state_dict_metadata  # of {"model": ...}
    empty = {name.removeprefix("model."): torch.empty(stored[name].size, device="meta").bfloat16() for name in stored}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=MAX_SHARD_SIZE)
    for number, (file, names) in enumerate(split.filename_to_tensors.items(), 1):
        tensors = {name: torch.empty_like(empty[name], device="cpu") for name in names}
        dcp.load({"model": tensors}, storage_reader=dcp.FileSystemReader(parts), no_dist=True)  # rounds to bf16
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(f"{number} of {len(split.filename_to_tensors)} files")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
