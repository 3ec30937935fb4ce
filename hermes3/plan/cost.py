"""Steps, time, GPU-hours and interruptions: arithmetic on stated rates.

Steps and tokens come from a mix by Axolotl's own packer, or else from the paper's 390 M tokens.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_json
from hermes3.plan.memory import Memory, Setting
from hermes3.plan.network import Traffic, traffic
from hermes3.plan.shapes import Shape, Work
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import Gpu, gpu_of, hardware_of
from hermes3.recipe.paper import rows

PAPER_TOKENS = 390e6  # Table 1
PAPER_EPOCHS = 4
PAPER_PACKING = 0.96  # SFT section: share of a sequence that is not padding
PAPER_DPO_STEPS = 1_200  # where the 8B's DPO plot ends
PAPER_OFFLOAD = 0.55  # CPU parameter offload costs about 45 % of efficiency
ROW_TOKENS = 396  # a conversation's mean: the released Hermes-3-Dataset has 380 M tokens in 959 K rows
PAIR_TOKENS = 1_000  # assumed: two times a prompt with its answer
ASSUMED_MFU = 0.35  # of CPUs
HOST_ADAM = 30  # bytes per parameter that Adam moves on the host: gradient and three fp32 states in, those and bf16 out
# Llama 3 405B: 419 unexpected interruptions, 78 % of them of hardware, in 54 days on 16,384 H100 (The Llama 3 Herd of
# Models, arXiv 2407.21783, section 3.3.4)
INTERRUPTIONS_PER_GPU_HOUR = 419 / (54 * 24 * 16_384)


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


@dataclass(frozen=True)
class Cost:
    """A run's time and money. GPU-hours of training; `host_gpu_hours`: in which GPUs wait for Adam on the host.

    `paper_gpu_hours`, `paper_mfu`: what the paper states for the whole model, and the MFU that explains it.
    """

    flops_per_token: float
    mfu: float
    mfu_source: str
    tokens_per_second: float
    step_seconds: float
    hours: float
    gpu_hours: float
    host_gpu_hours: float
    network: Traffic
    paper_gpu_hours: int | None
    paper_mfu: float | None
    interruption_chance: float
    price: float
    usd: float


def batches(path: Path, recipe: dict[str, Any], gpus: int) -> tuple[int, int]:
    """(global batch, gradient accumulation on `gpus` GPUs) so that the batch is what the recipe's own hardware makes.

    `UserError` when no accumulation makes it.
    """
    micro = recipe.get("micro_batch_size") or 1
    batch = micro * (recipe.get("gradient_accumulation_steps") or 1) * hardware_of(path, recipe).gpus
    if batch % (micro * gpus):
        raise UserError(
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
    epochs, max_steps = float(recipe.get("num_epochs") or 1), recipe.get("max_steps")
    if recipe.get("rl"):
        plot = (PAPER_DPO_STEPS * batch / epochs, PAIR_TOKENS, "1,200 steps, the paper's 8B plot")
        pairs, pair_tokens, source = _pairs(mix) if mix else plot
        an_epoch = math.ceil(pairs / batch)  # transformers' Trainer makes a last, smaller step of what is left
        steps = max_steps or math.ceil(an_epoch * epochs)
        tokens, per_epoch = pair_tokens * min(steps * batch, pairs * epochs), [an_epoch] * math.ceil(epochs)
        planned = Schedule("pairs", batch, epochs, per_epoch, steps, tokens, pair_tokens / 2, None, source)
        return planned, [] if mix else [f"no mix: {source}; {PAIR_TOKENS:,} tokens per pair are assumed"]
    if mix and packed:
        from hermes3.mix.pack import preview  # imports Axolotl: seconds

        packing = preview(mix, path, validate(path))
        tokens, mean = packing.tokens_per_step * packing.steps, packing.tokens / packing.rows
        source, per_epoch = f"{mix}, packed by Axolotl's packer", packing.steps_per_epoch
        full = packing.efficiency
        return Schedule("sequences", batch, epochs, per_epoch, packing.steps, tokens, mean, full, source), []
    length, source = recipe["sequence_len"], "the paper's 390 M tokens, sequences 96 % full"
    an_epoch = PAPER_TOKENS / PAPER_PACKING / length / batch
    steps, per_epoch = max_steps or round(an_epoch * epochs), [round(an_epoch)] * math.ceil(epochs)
    tokens = steps * batch * length * PAPER_PACKING
    planned = Schedule("sequences", batch, epochs, per_epoch, steps, tokens, ROW_TOKENS, PAPER_PACKING, source)
    return planned, [f"no mix: steps are for {source}; conversations of {ROW_TOKENS} tokens on average"]


def _pairs(mix: Path) -> tuple[int, float, str]:
    """(pairs, mean tokens per pair, source) of a preference mix."""
    if not (mix / "manifest.json").is_file():
        raise UserError(f"{mix}: no manifest.json; build the mix first")
    manifest = read_json(mix / "manifest.json", "kind", "total.rows", "total.tokens")
    if manifest["kind"] != "preference":
        raise UserError(f"{mix}: a mix of kind {manifest['kind']} holds no pairs; DPO needs a preference mix")
    return manifest["total"]["rows"], manifest["total"]["tokens"] / manifest["total"]["rows"], str(mix)


def flops_per_token(shape: Shape, work: Work, row_tokens: float) -> float:
    """Model FLOPs that training takes per token; what checkpointing computes twice counts once.

    Matrices: 2 per parameter forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 2 backward where
    the matrix is frozen. Attention: 12 x layers x width x keys (Chowdhery et al. 2022, PaLM, arXiv 2204.02311,
    appendix B), where a token of a causal row sees half of it. DPO's reference is one more forward pass.
    """
    matrices, width = shape.multiplied, shape.heads * shape.head_dim
    attention = 12 * shape.layers * width * row_tokens / 2
    passes = 4 if work.rank else 6
    adapter = 6 * work.trained(shape) if work.rank else 0
    reference = 2 * matrices + attention / 3 if work.preference else 0
    return passes * matrices + attention + adapter + reference


def recomputed_share(shape: Shape, work: Work, row_tokens: float) -> float:
    """FLOPs that computing all layers twice adds, per model FLOP: a forward pass without the output matrix."""
    matrices, width = shape.multiplied - shape.embedding, shape.heads * shape.head_dim
    again = 2 * matrices + 4 * shape.layers * width * row_tokens / 2 + (2 * work.trained(shape) if work.rank else 0)
    return again / flops_per_token(shape, work, row_tokens)


def paper_hours(shape: Shape) -> int | None:
    """The paper's GPU-hours for four epochs of 390 M tokens on H100, None if it has none for this model."""
    return next((row.gpu_hours for row in rows().values() if row.base == shape.name and row.gpu_hours), None)


def paper_mfu(shape: Shape) -> float | None:
    """The MFU at which training the whole model takes `paper_hours`."""
    hours = paper_hours(shape)
    flops = flops_per_token(shape, Work(tokens=8192), ROW_TOKENS) * PAPER_TOKENS * PAPER_EPOCHS
    return flops / (hours * 3600 * gpu_of("h100-80gb").flops) if hours else None


@lru_cache
def measurements() -> list[dict[str, Any]]:
    """Runs on GPUs, the newest first: `bench/baselines/*.json`, which `make gpu-check` writes."""
    files = (Path(__file__).parents[2] / "bench/baselines").glob("*.json")
    runs = [read_json(file) for file in files]
    return sorted((run for run in runs if run["mfu"]), key=lambda run: run["date"], reverse=True)


def nearest(shape: Shape, work: Work, gpu: Gpu) -> tuple[dict[str, Any] | None, bool]:
    """The measurement nearest to this run, None for none, and whether it is of this very run but for the sharding.

    Nearest: of the same loss, then with or without an adapter alike, then on the same GPU, then as the recipe was
    shipped, then of the nearest size.
    """

    def distance(run: dict[str, Any]) -> tuple[bool, bool, bool, float]:
        adapter = any(word in run["recipe"] for word in ("dpo", "lora"))
        size = run["layers"] * run["hidden"] ** 2 / (shape.layers * shape.hidden**2)
        shipped = run["setting"] == "as shipped"
        return adapter != bool(work.rank), run["gpu"] != gpu.name, not shipped, abs(math.log(size))

    alike = [run for run in measurements() if ("dpo" in run["recipe"]) == work.preference and not gpu.is_cpu]
    run = min(alike, key=distance, default=None)
    return run, run is not None and not any(distance(run))


def usual_mfu(shape: Shape, work: Work, setting: Setting, gpu: Gpu) -> tuple[float, str, list[str]]:
    """(MFU, its source, what was assumed): that of the nearest measurement, less 45 % with parameters on the host."""
    run, same = nearest(shape, work, gpu)
    if run is None:
        return ASSUMED_MFU, "assumed", [f"MFU {ASSUMED_MFU:.0%} is assumed: nothing like it was measured; give --mfu"]
    mfu, what, warnings = run["mfu"], f"{run['recipe']}, {run['layers']} layers, {run['setting']}", []
    source = f"measured on {run['gpus']} {run['gpu']}, {run['date']}: {what}"
    if not same:
        warnings.append(f"MFU {mfu:.1%} is the nearest measured, of {what}; this run was not measured")
    if setting.offload == "all":
        mfu, source = mfu * PAPER_OFFLOAD, f"{source}, less the 45 % that the paper gives for CPU offload"
    return mfu, source, warnings


def cost(
    shape: Shape, work: Work, planned: Schedule, own: Memory, gpu: Gpu, gpus: int, mfu: float | None, price: float
) -> tuple[Cost, list[str]]:
    """The run's cost on `gpus` GPUs, and what was assumed of it. `mfu` None: `usual_mfu`."""
    measured = nearest(shape, work, gpu)[0] if mfu is None else None
    mfu, source, warnings = (mfu, "given", []) if mfu is not None else usual_mfu(shape, work, own.setting, gpu)
    per_token = flops_per_token(shape, work, planned.row_tokens)
    arithmetic, adam = planned.tokens * per_token / (mfu * gpu.flops * gpus) / planned.steps, 0.0  # seconds per step
    sent = traffic(shape, work, own.setting, gpu, own.nodes, gpus // own.nodes, arithmetic)
    if own.setting.offload == "optimizer":
        adam = HOST_ADAM * work.trained(shape) / own.nodes / gpu.host_bandwidth
        rate = f"{gpu.host_bandwidth / 1e9:.0f} GB/s per node"
        warnings.append(f"Adam on the host is estimated at {rate}, on top of the MFU")
    step = arithmetic + adam + sent.exposed
    hours = step * planned.steps / 3600
    recomputed = (measured or {}).get("recomputed")
    if recomputed is not None and recomputed != work.checkpointing:
        more = 1 + recomputed_share(shape, work, planned.row_tokens)
        change = arithmetic * ((1 / more if recomputed else more) - 1)
        likely = f"{(step + change) * planned.steps / 3600 * gpus:,.0f} GPU-hours (modelled, not counted above)"
        faster = f"with all layers recomputed, and this recipe recomputes none: up to {more:.2f} times as fast"
        slower = f"without recomputation, and this recipe recomputes all layers: 1/{more:.2f} of the speed"
        warnings.append(f"the MFU was measured {faster if recomputed else slower}, {likely}")
    paper = paper_hours(shape) if not work.rank and not work.preference else None
    total = Cost(
        flops_per_token=per_token,
        mfu=mfu,
        mfu_source=source,
        tokens_per_second=planned.tokens / planned.steps / step,
        step_seconds=step,
        hours=hours,
        gpu_hours=hours * gpus,
        host_gpu_hours=adam * planned.steps / 3600 * gpus,
        network=sent,
        paper_gpu_hours=paper,
        paper_mfu=paper_mfu(shape) if paper else None,
        interruption_chance=0.0 if gpu.is_cpu else 1 - math.exp(-hours * gpus * INTERRUPTIONS_PER_GPU_HOUR),
        price=price,
        usd=hours * gpus * price,
    )
    return total, warnings
