"""A model's folder: from the Hub, and whole, as the names of its tensors tell without reading any weight."""

import re
from pathlib import Path

from hermes3.files import UserError, read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HUB_ID = re.compile(r"(?!outputs/)\w[\w.-]*(/[\w.-]+)?")  # what begins with . / or ~, or has two slashes, is a path


def on_hub(base: str) -> bool:
    """Whether `base` names a model of the Hub, owner/name, and no folder: not even one that is not made yet."""
    return "/" in base and bool(HUB_ID.fullmatch(base)) and not Path(base).parent.exists()


def existing(folder: Path) -> Path:
    """`folder`. `UserError` where it is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path (`hf download` fetches a model of the Hub)")
    return folder


def fetch(name: str) -> Path:
    """The folder `name`, or what the Hub has under that id. `UserError` where there is neither."""
    if Path(name).is_dir() or not HUB_ID.fullmatch(name):
        return existing(Path(name))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "model*.safetensors"]))
    except (OSError, ValueError) as error:
        remedy = "check the name and the network; accept a gated model's terms on its page and run `hf auth login`"
        what = f"no such folder, nor Hub id (OWNER/NAME) to fetch: {' '.join(str(error).split()).rstrip('.')}"
        raise UserError(f"{name}: {what}; {remedy}") from None


def check_model(folder: Path) -> None:
    """Refuse what `from_pretrained` would load wrongly, and what has no chat template. `UserError` names the remedy."""
    weights(folder)
    if not (folder / "chat_template.jinja").is_file():
        raise UserError(f"{folder}: no chat_template.jinja; make it with `hermes3 tokenizer build`")


def weights(folder: Path) -> dict[str, set[str]]:
    """{safetensors file: names of its tensors} of a whole model, from JSON and headers, some 100 KB per file.
    `UserError` for an adapter, alone or inside, and where a file is missing, cut off, or not what the index says."""
    if (existing(folder) / "adapter_config.json").is_file():
        raise UserError(f"{folder}: a LoRA adapter; run `axolotl merge-lora RECIPE` and give {folder}/merged")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give the folder of a whole model")
    if (folder / INDEX).is_file():
        file_of = read_json(folder / INDEX, "weight_map")["weight_map"]
    elif (folder / SINGLE).is_file():
        file_of = dict.fromkeys(sorted(tensor_names(folder / SINGLE)), SINGLE)
    else:
        remedy = f"save it by `save_pretrained`, or join a run's parts: `hermes3 consolidate {folder}/checkpoint-N OUT`"
        raise UserError(f"{folder}: no {SINGLE}, nor {INDEX}; {remedy}")
    stored = {file: tensor_names(folder / file) for file in sorted(set(file_of.values()))}
    for name, file in file_of.items():
        if name not in stored[file]:
            raise UserError(f"{folder}: {INDEX} says that {file} holds {name}, and it does not; copy the model again")
        if ".base_layer." in name or ".lora_" in name:
            remedy = "run `axolotl merge-lora RECIPE` on the run that made it, and give its folder merged/"
            raise UserError(f"{folder}: with an adapter inside ({name}), it would load as random numbers; {remedy}")
    return stored


def tensor_names(path: Path) -> set[str]:
    """Tensor names of a safetensors file, from its header. `UserError` for a file that is missing or cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
