"""`hermes3 init`: a mix spec and a recipe for a user's own rows, from the shipped recipes and what the rows show."""

import re
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from hermes3.chat.encode import Encoder
from hermes3.files import UserError, read_text, write_text
from hermes3.messages import BadRow
from hermes3.mix import read
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.plan.shapes import shape_of
from hermes3.recipe.hardware import gpu_of

LOOKED_AT = 1000  # rows that are tried with every adapter
BATCH, EPOCHS, FILL = 48, 4, 0.96  # the paper's: sequences per step, epochs, filled share of a packed sequence
SPEC = """\
# {data}: {rows:,} rows, about {tokens:,} tokens ({how}).
# Of the first {tried:,} rows, {fit:,} fit the adapter `{adapter}`.
name: {name}
kind: sft
tokenizer: {own}  # hermes3 tokenizer build {base} {own}
sequence_len: 8192  # longer conversations are left out, never cut
seed: 42
categories:
  general_instructions:  # one of the paper's eight; more of them, and other keys: docs/mix.md
    # tokens: {tokens}  # a budget; without one, every row is taken
    sources:
      - name: {name}
        path: {data}
        adapter: {adapter}
        licence: not stated  # write what its publisher states; the card shows it
"""


def look(data: Path, tokenizer: Path) -> dict[str, Any]:
    """Count the rows of `data`, find the adapter that fits most of the first ones, and count or estimate the tokens."""
    if not data.is_file():
        raise UserError(f"{data}: no such file; give one file of rows: {read.SUPPORTED}")
    lines = (line for chunk in read.chunks(data.name, [read.File(data.name, data)]) for line in chunk.lines)
    first = list(islice(lines, LOOKED_AT))
    rest = [len(line) for line in lines]
    fits = {name: [example for line in first if (example := _adapted(name, line))] for name in ADAPTERS}
    adapter = max(fits, key=lambda name: len(fits[name]))
    if not fits[adapter]:
        raise UserError(f"{data}: none of its first {len(first)} rows fits an adapter; docs/mix.md lists their shapes")
    if adapter == "preference":
        raise UserError(f"{data}: preference pairs; copy recipes/8b_dpo.yml and data_mixes/hermes3_dpo.yml for them")
    texts = ["\n".join(message["content"] for message in example["messages"]) for example in fits[adapter]]
    if (tokenizer / "tokenizer.json").is_file():
        counted, how = len(Encoder.load(tokenizer)(texts)[0]), "by the first rows"
    else:
        counted, how = sum(map(len, texts)) // 4, "one per four letters: the tokenizer is not there yet"
    tokens = round(counted * (1 + sum(rest) / sum(map(len, first))))
    rows = {"rows": len(first) + len(rest), "tried": len(first), "fit": len(texts)}
    return rows | {"adapter": adapter, "tokens": tokens, "how": how}


def _adapted(adapter: str, line: bytes) -> Example | None:
    try:
        return ADAPTERS[adapter](read.parse(line))
    except BadRow:
        return None


def init(name: str, base: str, data: Path, gpus: int, gpu: str) -> list[Path]:
    """Write NAME/NAME_mix.yml and NAME/NAME_sft.yml for one node or more; return their paths, and the base model's."""
    spec, recipe = Path(name, f"{name}_mix.yml"), Path(name, f"{name}_sft.yml")
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{name}: give a name of letters, digits, dots, dashes and underscores")
    if gpus > 8 and gpus % 8:
        raise UserError(f"--gpus {gpus}: nodes have eight GPUs; give 1 to 8, or a multiple of 8")
    if there := [path for path in (spec, recipe) if path.exists()]:
        raise UserError(f"{there[0]} is there; give another name, or delete it")
    ready = Path(base, "chat_template.jinja").is_file()
    own = Path(base) if ready else Path("outputs", name, Path(base).name)  # `plan` knows the shape by the model's name
    rows = look(data, own)
    text = _recipe(name, base, own, rows["tokens"], gpus, gpu)
    write_text(spec, SPEC.format(name=name, base=base, own=own, data=data, **rows))
    write_text(recipe, text)
    return [spec, recipe, own]


def _recipe(name: str, base: str, own: Path, tokens: int, gpus: int, gpu: str) -> str:
    """The shipped recipe with the user's values: full fine-tuning, or LoRA where that does not fit.

    States of full fine-tuning take 16 bytes per parameter over all GPUs. They may fill six tenths of the memory.
    """
    shape = shape_of(Path("--base"), {"base_model": base})
    full = 16 * shape.parameters / gpus < 0.6 * gpu_of(gpu).memory
    text = read_text(Path("recipes/8b_sft.yml" if full else "recipes/experiments/8b_sft_lora.yml"))
    accumulation = max(1, BATCH // gpus)
    steps = ceil(tokens / (FILL * 8192 * gpus * accumulation)) * EPOCHS
    values = {
        "hardware": f"{{gpu: {gpu}, nodes: {ceil(gpus / 8)}, gpus_per_node: {min(gpus, 8)}}}  # yours",
        "base_model": f"{own}  # made by `hermes3 tokenizer build {base} {own}`",
        "  - path": f"mixes/{name}/train  # made by `hermes3 mix build {name}/{name}_mix.yml --out mixes/{name}`",
        "dataset_prepared_path": f"mixes/{name}/prepared  # replaced with the mix, so never a stale cache",
        "micro_batch_size": "1  # sequences per GPU at once",
        "gradient_accumulation_steps": f"{accumulation}  # {gpus * accumulation} sequences per step; the paper: 48",
        "num_epochs": f"{EPOCHS}  # the paper's",
        "warmup_steps": f"{min(300, steps // 10)}  # the paper's 300, but at most a tenth of all steps, about {steps}",
        "output_dir": f"outputs/{name}/sft",
        "wandb_name": f"{name}_sft",
    }
    for key, value in values.items():
        text = re.sub(rf"^{key}: .*$", lambda _, line=f"{key}: {value}": line, text, flags=re.MULTILINE)
    kept = [line for line in text.splitlines() if not re.match("#|reproduces:", line)]
    kind = "full fine-tuning" if full else "LoRA"
    head = f"# {kind} of {base} on {tokens:,} tokens, written by `hermes3 init`. `paper`: a value of the report."
    return "\n".join([head, *kept, ""]).replace("# experiment: ", "# ours: ")
