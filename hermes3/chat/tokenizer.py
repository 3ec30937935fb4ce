"""The Hermes tokenizer: reserved tokens of a Llama 3.1 tokenizer get new names, so the vocabulary keeps its size.
Done ahead of training: Axolotl's `added_tokens_overrides` rewrites the files at each launch, and its ranks race."""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from hermes3.chat.prompts import TEMPLATE
from hermes3.files import UserError, new_folder, read_json
from hermes3.model_folder import INDEX, fetch, weights

CHATML = ("<|im_start|>", "<|im_end|>")
# the ten reasoning tags that the paper names
REASONING = ["SCRATCHPAD", "REASONING", "INNER_MONOLOGUE", "PLAN", "EXECUTION"]
REASONING += ["REFLECTION", "THINKING", "SOLUTION", "EXPLANATION", "UNIT_TEST"]
NAMES = ("tools", "tool_call", "tool_response", "schema", *REASONING)
TAGS = [f"<{slash}{name}>" for name in NAMES for slash in ("", "/")]
PAD = "<|finetune_right_pad_id|>"  # Llama 3.1 has it, and its own fine-tunes use it


def build(
    base: Annotated[str, typer.Argument(help="Llama 3.1 base model: folder or Hub id")],
    out: Annotated[Path, typer.Argument(help="folder to write: the same model with the Hermes tokenizer")],
) -> dict[str, int]:
    """Give BASE the Hermes tokenizer. Reserved tokens get new names; the vocabulary keeps its size.

    Example: hermes3 tokenizer build meta-llama/Llama-3.1-8B outputs/8b/base
    """
    if Path(base).resolve() == out.resolve():
        raise UserError(f"{out}: that is BASE itself; name another folder")
    source = fetch(base)
    shards = weights(source) if {"config.json", "adapter_config.json"} & {*os.listdir(source)} else {}
    with new_folder(out, "hermes3 tokenizer build") as tmp:
        tokenizer = _write_tokenizer(source, tmp)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*CHATML, *TAGS)}
        _write_weights(source, shards, tmp, sorted(ids.values()))
        own = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        for path in {source / "config.json", source / "generation_config.json"} & {*source.iterdir()}:
            (tmp / path.name).write_text(json.dumps(read_json(path) | own, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: {len(ids)} reserved tokens renamed, <|im_end|> is {tokenizer.eos_token_id}")
    return ids


def _write_tokenizer(source: Path, out: Path) -> Any:
    """Write and return the Hermes tokenizer, as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    path, wanted = source / "tokenizer.json", [*CHATML, *TAGS]
    data = read_json(path, "added_tokens")
    reserved = [token for token in data["added_tokens"] if token["content"].startswith("<|reserved_special_token_")]
    names = {token["content"] for token in data["added_tokens"]}
    if present := names.intersection(wanted):
        raise UserError(f"{path}: {min(present)} is there already; give the Llama 3.1 base, not a Hermes model")
    if len(reserved) < len(wanted) or PAD not in names:
        needed = f"{PAD} and {len(wanted)} reserved tokens are needed, it has {len(reserved)}"
        raise UserError(f"{path}: {needed}: this is not a Llama 3.1 tokenizer")
    for token, name in zip(sorted(reserved, key=lambda t: t["id"]), wanted, strict=False):
        # tags are ordinary tokens, so that decoding with skip_special_tokens=True keeps tool calls and scratchpads
        token.update(content=name, special=name in CHATML, normalized=False, lstrip=False, rstrip=False)
    (out / path.name).write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")
    config = read_json(source / "tokenizer_config.json", "bos_token")
    bos = config["bos_token"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(out / path.name),
        bos_token=bos["content"] if isinstance(bos, dict) else bos,  # an AddedToken, as older tokenizers write it
        eos_token="<|im_end|>",
        pad_token=PAD,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=config.get("model_max_length", 131072),
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def _write_weights(source: Path, shards: dict[str, set[str]], out: Path, rows: list[int]) -> None:
    """Link the files of `shards`, {name: tensors}; write those anew that hold `rows`, the ids of the re-used tokens."""
    # a multimodal model has them under language_model.model
    ends = ("embed_tokens.weight", "lm_head.weight")
    changed = {file: sorted(name for name in names if name.endswith(ends)) for file, names in shards.items()}
    if shards and not any(name.endswith(ends[0]) for names in changed.values() for name in names):
        raise UserError(f"{source}: no tensor {ends[0]} in the weights; a Llama base has one")
    for file, names in changed.items():
        if names:
            _rewrite_rows(source / file, out / file, names, rows)
            continue
        try:
            os.link((source / file).resolve(), out / file)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / file, out / file)
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, out / INDEX)


def _rewrite_rows(shard: Path, target: Path, names: list[str], rows: list[int]) -> None:
    """Reserved rows were never trained: each becomes the mean row (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"), and a tenth of the rows' own deviation as noise tells the new tokens apart."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(shard)
    for name in names:
        weight = tensors[name]
        if len(weight) <= rows[-1]:
            raise UserError(f"{shard}: {name} has no row for token {rows[-1]}; base and tokenizer do not fit")
        trained = torch.ones(len(weight), dtype=torch.bool)
        trained[rows] = False
        known = weight[trained].float()
        noise = torch.randn(len(rows), weight.shape[1], generator=torch.Generator().manual_seed(0))
        weight[rows] = (known.mean(0) + 0.1 * known.std(0) * noise).to(weight.dtype)
    save_file(tensors, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors writes for the owner alone; a cluster's other users load it too
