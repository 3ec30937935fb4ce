"""The Hermes tokenizer: reserved tokens of a Llama 3.1 tokenizer get new names, so the vocabulary keeps its size.

Done once, ahead of training (Axolotl's `added_tokens_overrides` rewrites the files at each launch, and its ranks race).
"""

import json
import os
import re
import shutil
from pathlib import Path

from hermes3.files import UserError, new_folder

# The ten reasoning tags that the paper names
REASONING = (
    *("SCRATCHPAD", "REASONING", "INNER_MONOLOGUE", "PLAN", "EXECUTION"),
    *("REFLECTION", "THINKING", "SOLUTION", "EXPLANATION", "UNIT_TEST"),
)
CHATML = ("<|im_start|>", "<|im_end|>")
TAGS = tuple(
    f"<{slash}{name}>" for name in ("tools", "tool_call", "tool_response", "schema", *REASONING) for slash in ("", "/")
)
# Llama 3.1 already has a padding token, which its own fine-tunes use
PAD = "<|finetune_right_pad_id|>"
TEMPLATE = Path(__file__).with_name("hermes3.jinja")


def build(base: str, out: Path, seed: int = 0) -> dict[str, int]:
    """Write to `out` the model `base` (a folder or a Hub id) with the Hermes tokenizer; return the new tokens' ids.

    Weight files are linked, not copied; only the shards that hold the embedding and the output rows of the re-used
    tokens are written anew. A folder with a tokenizer alone gives one with a tokenizer alone. `UserError` where a base
    has too few reserved tokens, no safetensors, or no rows for the tokens.
    """
    source = Path(base) if Path(base).is_dir() else _download(base)
    shards = _shards(source)
    with new_folder(out, "hermes3 tokenizer build") as tmp:
        ids = _write_tokenizer(source, tmp)
        if shards:
            _write_model(source, shards, tmp, sorted(ids.values()), seed)
    return ids


def _shards(source: Path) -> list[Path]:
    """The weight files of a model folder; none of one that holds a tokenizer alone."""
    shards = sorted(path for path in source.glob("*.safetensors") if not path.name.startswith("adapter_"))
    index = source / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(named - {path.name for path in shards}):
            raise UserError(f"{index}: names {missing[0]}, which is not there; download the base again")
    others = [path.name for end in ("adapter_*", "*.bin", "*.pth", "*.pt", "*.gguf") for path in source.glob(end)]
    if not shards and (others or (source / "config.json").is_file()):
        what = f"only {min(others)}" if others else "a config.json alone"
        remedy = "merge an adapter into its base, save other weights with `save_pretrained`, or download them"
        raise UserError(f"{source}: no weights in model*.safetensors, {what}; {remedy}")
    return shards


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    if repo.count("/") != 1:
        raise UserError(f"{repo}: no such folder, and not a Hub id (OWNER/NAME)")
    return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["original/*"]))


def _write_tokenizer(source: Path, out: Path) -> dict[str, int]:
    from transformers import PreTrainedTokenizerFast

    path = source / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{source}: no tokenizer.json; a Llama 3.1 base model folder has one")
    data = json.loads(path.read_text(encoding="utf-8"))
    added, wanted = data["added_tokens"], [*CHATML, *TAGS]
    reserved = [token for token in added if re.fullmatch(r"<\|reserved_special_token_\d+\|>", token["content"])]
    if len(reserved) < len(wanted) or not any(token["content"] == PAD for token in added):
        needed = f"{len(wanted)} reserved tokens are needed, it has {len(reserved)}; and {PAD}"
        raise UserError(f"{path}: {needed}: this is not a Llama 3.1 tokenizer")
    ids = {}
    for token, name in zip(sorted(reserved, key=lambda t: t["id"]), wanted, strict=False):
        # tags are ordinary tokens, so that decoding with skip_special_tokens=True keeps tool calls and scratchpads
        token.update(content=name, special=name in CHATML, normalized=False, lstrip=False, rstrip=False)
        ids[name] = token["id"]
    (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos  # an AddedToken, as older tokenizers write it
    if not isinstance(bos, str):
        raise UserError(f"{path}: no bos_token; a Llama 3.1 base model folder names one")
    PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"),
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token=PAD,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=config.get("model_max_length", 131072),
    ).save_pretrained(out)
    return ids


def _write_model(source: Path, shards: list[Path], out: Path, rows: list[int], seed: int) -> None:
    """Link the weights; rewrite the rows of the re-used tokens, and the ids of eos and pad in the configs."""
    from safetensors import safe_open

    rewritten: list[str] = []
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            # a multimodal model has them under language_model.model
            names = [name for name in tensors.keys() if name.endswith(("embed_tokens.weight", "lm_head.weight"))]  # noqa: SIM118
            short = [name for name in names if tensors.get_slice(name).get_shape()[0] <= rows[-1]]
        if short:
            raise UserError(f"{shard}: {short[0]} has no row for token {rows[-1]}; base and tokenizer do not fit")
        if names:
            _rewrite_rows(shard, out / shard.name, names, rows, seed)
        else:
            _link(shard.resolve(), out / shard.name)
        rewritten += names
    if not any(name.endswith("embed_tokens.weight") for name in rewritten):
        raise UserError(f"{shards[0]}: no tensor embed_tokens.weight in the weights; a Llama base has one")
    added = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    eos, pad = (next(t["id"] for t in added if t["content"] == name) for name in ("<|im_end|>", PAD))
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            config = json.loads((source / name).read_text(encoding="utf-8"))
            config.update(eos_token_id=eos, pad_token_id=pad)
            (out / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    index = source / "model.safetensors.index.json"
    if index.is_file():
        shutil.copyfile(index, out / index.name)


def _rewrite_rows(shard: Path, target: Path, names: list[str], rows: list[int], seed: int) -> None:
    """Reserved rows were never trained. Give each the mean row plus a little noise of its own.

    The mean starts a new token as an average word (Hewitt 2021, "Initializing new word embeddings for pretrained
    language models"); a tenth of the rows' own deviation tells the new tokens apart.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(shard)
    for name in sorted(names):
        weight = tensors[name]
        trained = torch.ones(len(weight), dtype=torch.bool)
        trained[rows] = False
        known = weight[trained].float()
        noise = torch.randn(len(rows), weight.shape[1], generator=torch.Generator().manual_seed(seed))
        weight[rows] = (known.mean(0) + 0.1 * known.std(0) * noise).to(weight.dtype)
    save_file(tensors, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors writes for the owner alone; a cluster's other users load it too


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
