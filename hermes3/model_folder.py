"""Is a folder a whole model? Told from the names of its tensors, without reading any weight."""

import json
import struct
from pathlib import Path

INDEX = "model.safetensors.index.json"


def check_model(folder: Path) -> None:
    """Refuse what `from_pretrained` would load wrongly, or what no chat prompt can be given to.

    Reads JSON and the headers of the safetensors files, some 100 KB a file. Raises ValueError with the remedy.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; give the folder of a whole model")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder}: a LoRA adapter; run `axolotl merge-lora RECIPE` and give {folder}/merged")
    names = _tensor_names(folder)
    parts = sorted(name for name in names if ".base_layer." in name or ".lora_" in name)
    if parts:
        raise ValueError(
            f"{folder}: its weights are a model with an adapter inside ({parts[0]}), whose linear layers would load as "
            "random numbers; run `axolotl merge-lora RECIPE` on the run that made it and give its folder merged/"
        )
    if not (folder / "chat_template.jinja").is_file():
        raise ValueError(f"{folder}: no chat_template.jinja; make it with `hermes3 tokenizer build`")


def _tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of the model; every file that the index names must be there and hold what it says."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(
                f"{folder}: no model.safetensors, nor {INDEX}; if its ranks saved in parts, run "
                f"`hermes3 consolidate {folder}/checkpoint-N OUT`; if the run has not ended, take a checkpoint of it"
            )
        return header_names(folder / "model.safetensors")
    where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted(file for file in set(where.values()) if not (folder / file).is_file())
    if missing:
        raise ValueError(f"{folder}: {INDEX} names {missing[0]} ({len(missing)} missing); copy the model again")
    held = {file: header_names(folder / file) for file in set(where.values())}
    for name, file in where.items():
        if name not in held[file]:
            raise ValueError(f"{folder}: {INDEX} says that {file} holds {name}, and it does not; copy the model again")
    return set(where)


def header_names(path: Path) -> set[str]:
    """Tensor names in the header of a safetensors file: 8 bytes of its length, then JSON, then the tensors.

    Raises ValueError for a file that is shorter than its header says, as a broken-off copy is.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path}: not a whole safetensors file; copy or save it again")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ends = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if 8 + length + ends > size:
        raise ValueError(f"{path}: {size} bytes, its header says {8 + length + ends}; copy or save it again")
    return set(header)
