"""Is a folder a whole model? Told from the names of its tensors, without reading any weight."""

import json
from pathlib import Path

from hermes3.files import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def check_model(folder: Path) -> None:
    """Refuse what `from_pretrained` would load wrongly, and what has no chat template.

    Reads JSON and the headers of the safetensors files, some 100 KB per file. `UserError` names the remedy.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give the folder of a whole model")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: a LoRA adapter; run `axolotl merge-lora RECIPE` and give {folder}/merged")
    adapter = sorted(name for name in _model_tensors(folder) if ".base_layer." in name or ".lora_" in name)
    if adapter:
        raise UserError(
            f"{folder}: its weights are a model with an adapter inside ({adapter[0]}), whose linear layers would load "
            "as random numbers; run `axolotl merge-lora RECIPE` on the run that made it and give its folder merged/"
        )
    if not (folder / "chat_template.jinja").is_file():
        raise UserError(f"{folder}: no chat_template.jinja; make it with `hermes3 tokenizer build`")


def _model_tensors(folder: Path) -> set[str]:
    """Names of all tensors of the model. Every file that the index names must exist and hold what the index says."""
    if (folder / INDEX).is_file():
        file_of = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    elif (folder / SINGLE).is_file():
        return tensor_names(folder / SINGLE)
    else:
        raise UserError(
            f"{folder}: no {SINGLE}, nor {INDEX}; if its ranks saved in parts, run "
            f"`hermes3 consolidate {folder}/checkpoint-N OUT`; if the run has not ended, take a checkpoint of it"
        )
    if missing := sorted(file for file in set(file_of.values()) if not (folder / file).is_file()):
        raise UserError(f"{folder}: {INDEX} names {missing[0]} ({len(missing)} missing); copy the model again")
    stored = {file: tensor_names(folder / file) for file in set(file_of.values())}
    for name, file in file_of.items():
        if name not in stored[file]:
            raise UserError(f"{folder}: {INDEX} says that {file} holds {name}, and it does not; copy the model again")
    return set(file_of)


def tensor_names(path: Path) -> set[str]:
    """Tensor names of a safetensors file, from its header. `UserError` for a file that was cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
