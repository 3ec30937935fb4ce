"""`hermes3 init`: a mix spec and a recipe for a user's own rows, from the shipped recipes and what the rows show."""

import re
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from hermes3.chat.encode import Encoder
from hermes3.chat.render import turns
from hermes3.files import UserError, read_text, read_yaml, write_text
from hermes3.messages import BadRow
from hermes3.mix import read
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.mix.columns import Row
from hermes3.plan.shapes import shape_of
from hermes3.recipe.hardware import gpu_of

LOOKED_AT = 1000  # rows that are tried with every adapter
BATCH, EPOCHS, FILL = 48, 4, 0.96  # the paper's: sequences per step, epochs, filled share of a packed sequence
STEPS = 25  # per epoch at least, where the rows allow: a hundred in all, in which the learning rate rises and falls


def init(name: str, base: str, data: Path, gpus: int, gpu: str) -> list[Path]:
    """Write NAME/NAME_mix.yml and NAME/NAME_sft.yml for GPUs or CPUs; return their paths, and the base model's.
    LoRA is trained where all parameters' states, 16 bytes each, would take more than six tenths of the GPUs' memory."""
    spec, recipe = Path(name, f"{name}_mix.yml"), Path(name, f"{name}_sft.yml")
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{name}: give a name of letters, digits, dots, dashes and underscores")
    if gpus > 8 and gpus % 8:
        raise UserError(f"--gpus {gpus}: nodes have eight GPUs; give 1 to 8, or a multiple of 8")
    if there := [path for path in (spec, recipe) if path.exists()]:
        raise UserError(f"{there[0]} is there; give another name, or delete it")
    device, weights = gpu_of(gpu), shape_of(Path("--base"), {"base_model": base}).parameters
    full, length = device.is_cpu or 16 * weights / gpus < 0.6 * device.memory, 1024 if device.is_cpu else 8192
    ready = Path(base, "chat_template.jinja").is_file()
    own = Path(base) if ready else Path("outputs", name, Path(base).name)  # `plan` knows the shape by the model's name
    rows = look(data, own)
    if (sequences := ceil(rows["tokens"] / (FILL * length))) < gpus:
        fill = f"the rows fill about {sequences} x {length:,} tokens, and each GPU takes {length:,} per step"
        raise UserError(f"--gpus {gpus}: {fill}; give --gpus {sequences // 8 * 8 or sequences}, or more rows")
    accumulation = max(1, min(BATCH, sequences // STEPS) // gpus)
    steps = sequences // (gpus * accumulation) * EPOCHS
    facts = rows | {"name": name, "base": base, "own": own, "data": data, "gpu": gpu, "steps": steps, "length": length}
    facts |= {"nodes": ceil(gpus / 8), "gpus_per_node": min(gpus, 8), "accumulation": accumulation}
    facts["made"] = "which has the Hermes tokenizer already" if ready else f"hermes3 tokenizer build {base} {own}"
    facts |= {"warmup": min(300, steps // 20 * 2), "kind": "full fine-tuning" if full else "LoRA"}
    texts = read_yaml(Path(__file__).with_suffix(".yml"))
    shipped = "tiny_sft" if device.is_cpu else "8b_sft" if full else "8b_sft_lora_1gpu"
    text = re.sub("(?m)^(#|reproduces:).*\n", "", read_text(Path(f"recipes/{shipped}.yml")))
    own_lines = {key: f"{key}: {value.format(**facts)}" for key, value in texts["recipe"].items()}
    lines = [own_lines.get(line.partition(": ")[0], line) for line in text.splitlines()]
    write_text(spec, texts["spec"].format(**facts).rstrip() + "\n")
    write_text(recipe, "\n".join([texts["head"].format(**facts), *lines, ""]).replace("# size: ", "# ours: "))
    return [spec, recipe, own]


def look(data: Path, tokenizer: Path) -> dict[str, Any]:
    """Count the rows of `data`, find the adapter that fits most of the first ones, and count or estimate the tokens."""
    if not data.is_file():
        raise UserError(f"{data}: no such file; give one file of rows: {read.SUPPORTED}")
    lines = (line for chunk in read.chunks(data.name, [read.File(data.name, data)]) for line in chunk.lines)
    first = list(islice(lines, LOOKED_AT))
    rest = [len(line) for line in lines]
    fits = {name: [fit for line in first if (fit := _adapted(name, line))] for name in ADAPTERS}
    adapter = max(fits, key=lambda name: (sum(not unread for _, unread in fits[name]), len(fits[name])))
    if not fits[adapter]:
        raise UserError(f"{data}: none of its first {len(first)} rows fits an adapter; docs/mix.md lists their shapes")
    if adapter == "preference":
        raise UserError(f"{data}: preference pairs; copy recipes/8b_dpo.yml and data_mixes/hermes3_dpo.yml for them")
    rendered = [list(turns(example["messages"], example["tools"])) for example, _ in fits[adapter]]
    texts = [f"{turn.role}\n{turn.text}" for row in rendered for turn in row]
    if (tokenizer / "tokenizer.json").is_file():
        counted, how = len(Encoder(tokenizer)(texts)[0]), "by the first rows"
    else:
        counted, how = sum(map(len, texts)) // 4, "one per four letters: the tokenizer is not there yet"
    counted += 3 * len(texts) + len(rendered)  # the start, end and line break of each turn, and BOS
    tokens = round(counted * (1 + sum(rest) / sum(map(len, first))))
    rows: dict[str, Any] = {"rows": len(first) + len(rest), "tried": len(first), "fit": len(rendered)}
    unread = ", ".join(sorted(set[str]().union(*(names for _, names in fits[adapter]))))
    rows["unread"] = f"# the build stops at what the adapter does not read: {unread}; see docs/mix.md" if unread else ""
    return rows | {"adapter": adapter, "tokens": tokens, "how": how}


def _adapted(adapter: str, line: bytes) -> tuple[Example, set[str]] | None:
    """What the adapter makes of a row, and the columns that may train and that it does not read; None if nothing."""
    try:
        row = Row(read.parse(line))
        return ADAPTERS[adapter](row), {name for what, name in row.account() if what == "unread, may train"}
    except BadRow:
        return None
