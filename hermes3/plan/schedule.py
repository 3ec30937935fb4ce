"""Steps and tokens of a run: from a mix, by Axolotl's own packer, or else from the paper's 390 M tokens."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.validate import validate

PAPER_TOKENS = 390e6  # Table 1
PAPER_PACKING = 0.96  # SFT section: share of a sequence that is not padding
ROW_TOKENS = 396  # a conversation's mean: the released Hermes-3-Dataset has 380 M tokens in 959 K rows
PAPER_DPO_STEPS = 1_200  # where the 8B's DPO plot ends
PAIR_TOKENS = 1_000  # assumed: two times a prompt with its answer


@dataclass(frozen=True)
class Schedule:
    """`tokens`: read in the whole run, padding not counted. `row_tokens`: mean of one attended conversation."""

    unit: str  # sequences or pairs
    global_batch: int
    epochs: float
    steps_per_epoch: list[int]
    steps: int
    tokens: float
    row_tokens: float
    packing: float | None  # share of the slots that hold tokens
    source: str


def batches(path: Path, recipe: dict[str, Any], gpus: int) -> tuple[int, int]:
    """(global batch, gradient accumulation on `gpus` GPUs) so that the batch is what the recipe's own hardware makes.

    `ValueError` when no accumulation makes it.
    """
    micro = recipe.get("micro_batch_size") or 1
    batch = micro * (recipe.get("gradient_accumulation_steps") or 1) * hardware_of(path, recipe).gpus
    if batch % (micro * gpus):
        raise ValueError(
            f"{path}: the global batch of {batch} cannot be made by {gpus} GPUs x micro_batch_size {micro} x a whole "
            "gradient_accumulation_steps; give --gpus that divide it"
        )
    return batch, batch // (micro * gpus)


def mix_of(recipe: dict[str, Any]) -> Path:
    """The mix folder that the recipe's data are in; it may not be built yet."""
    return Path(str((recipe.get("datasets") or [{}])[0].get("path"))).parent


def schedule(
    path: Path, recipe: dict[str, Any], batch: int, mix: Path | None, packed: bool = True
) -> tuple[Schedule, list[str]]:
    """The run's schedule, and what was assumed of it. `mix` None: the recipe's own, if it is built.

    `packed` False: as if no SFT mix were built.
    """
    if mix is None and (mix_of(recipe) / "manifest.json").is_file():
        mix = mix_of(recipe)
    if recipe.get("rl"):
        return _pairs(recipe, batch, mix)
    return _packed(path, recipe, batch, mix) if mix and packed else _as_the_paper(recipe, batch)


def _packed(path: Path, recipe: dict[str, Any], batch: int, mix: Path) -> tuple[Schedule, list[str]]:
    from hermes3.mix.pack import preview  # imports Axolotl: seconds

    packing = preview(mix, path, validate(path))
    found = Schedule(
        unit="sequences",
        global_batch=batch,
        epochs=float(recipe.get("num_epochs") or 1),
        steps_per_epoch=packing.steps_per_epoch,
        steps=packing.steps,
        tokens=packing.tokens_per_step * packing.steps,
        row_tokens=packing.tokens / packing.rows,
        packing=packing.efficiency,
        source=f"{mix}, packed by Axolotl's packer",
    )
    return found, []


def _as_the_paper(recipe: dict[str, Any], batch: int) -> tuple[Schedule, list[str]]:
    length, epochs = recipe["sequence_len"], float(recipe.get("num_epochs") or 1)
    an_epoch = PAPER_TOKENS / PAPER_PACKING / length / batch
    steps = recipe.get("max_steps") or round(an_epoch * epochs)
    found = Schedule(
        unit="sequences",
        global_batch=batch,
        epochs=epochs,
        steps_per_epoch=[round(an_epoch)] * math.ceil(epochs),
        steps=steps,
        tokens=steps * batch * length * PAPER_PACKING,
        row_tokens=ROW_TOKENS,
        packing=PAPER_PACKING,
        source="the paper's 390 M tokens, sequences 96 % full",
    )
    return found, [f"no mix: steps are for {found.source}; conversations of {ROW_TOKENS} tokens on average"]


def _pairs(recipe: dict[str, Any], batch: int, mix: Path | None) -> tuple[Schedule, list[str]]:
    epochs, warnings = float(recipe.get("num_epochs") or 1), []
    if mix is None:
        pairs, pair_tokens, source = PAPER_DPO_STEPS * batch / epochs, PAIR_TOKENS, "1,200 steps, the paper's 8B plot"
        warnings.append(f"no mix: {source}; {PAIR_TOKENS:,} tokens a pair are assumed")
    else:
        if not (mix / "manifest.json").is_file():
            raise ValueError(f"{mix}: no manifest.json; build the mix first")
        manifest = json.loads((mix / "manifest.json").read_text(encoding="utf-8"))
        if manifest["kind"] != "preference":
            raise ValueError(f"{mix}: a mix of kind {manifest['kind']} holds no pairs; DPO needs a preference mix")
        pairs, source = manifest["total"]["rows"], str(mix)
        pair_tokens = manifest["total"]["tokens"] / pairs
    # transformers' Trainer makes a last, smaller step of what is left of an epoch
    an_epoch = math.ceil(pairs / batch)
    steps = recipe.get("max_steps") or math.ceil(an_epoch * epochs)
    found = Schedule(
        unit="pairs",
        global_batch=batch,
        epochs=epochs,
        steps_per_epoch=[an_epoch] * math.ceil(epochs),
        steps=steps,
        tokens=pair_tokens * min(steps * batch, pairs * epochs),
        row_tokens=pair_tokens / 2,
        packing=None,
        source=source,
    )
    return found, warnings
