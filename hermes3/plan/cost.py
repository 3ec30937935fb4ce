"""Steps, time, GPU-hours, checkpoints and interruptions: arithmetic on stated rates.

Steps and tokens come from a mix by Axolotl's own packer, or else from the paper's 390 M tokens.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Memory, Setting
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
ASSUMED_MFU = 0.35  # of a model that the paper has no GPU-hours for
PRETRAINING_MFU = 0.43  # the best that arXiv 2407.21783, table 4, reports for Llama 3 405B in bf16
AXOLOTL_KEEPS = 4  # checkpoints, where save_total_limit is absent
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
    """A run's time and money. GPU-hours of training; `host_gpu_hours`: in which GPUs wait for Adam on the host."""

    flops_per_token: float
    mfu: float
    mfu_source: str
    tokens_per_second: float
    step_seconds: float
    hours: float
    gpu_hours: float
    host_gpu_hours: float
    interruption_chance: float
    price: float
    usd: float


@dataclass(frozen=True)
class Checkpoints:
    """Bytes and seconds of a save, how many are there at once, and how often to make one."""

    weights: float  # one model's, or the adapter's
    state: float  # a checkpoint: the weights in one piece, if they are saved so, and all that a restart needs
    weights_seconds: float | None  # None: no save writes them in one piece
    state_seconds: float
    kept: int  # checkpoints, when the last is written
    storage: float  # bytes of these, and of the model that the run's end writes
    interval_seconds: float | None  # Young's
    interval_steps: int | None
    lost_share: float | None  # of the time, to saves and to work done twice, at that interval


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
    manifest = json.loads((mix / "manifest.json").read_text(encoding="utf-8"))
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


def paper_mfu(shape: Shape) -> float | None:
    """The MFU at which the paper's GPU-hours train its four epochs of 390 M tokens, whole models on H100."""
    row = next((row for row in rows().values() if row.base == shape.name and row.gpu_hours), None)
    if row is None:
        return None
    flops = flops_per_token(shape, Work(tokens=8192), ROW_TOKENS) * PAPER_TOKENS * PAPER_EPOCHS
    return flops / (row.gpu_hours * 3600 * gpu_of("h100-80gb").flops)


def usual_mfu(shape: Shape, work: Work, setting: Setting, gpu: Gpu) -> tuple[float, str, list[str]]:
    """(MFU, its source, what was assumed): the paper's for this model, less its 45 % with parameters on the host."""
    mfu = None if gpu.is_cpu else paper_mfu(shape)
    if mfu is None:
        mfu, source = ASSUMED_MFU, "assumed"
        warnings = [f"MFU {ASSUMED_MFU:.0%} is assumed: the paper has no GPU-hours for this; measure, give --mfu"]
    else:
        source, warnings = "explains the paper's GPU-hours", []
        if work.rank:
            source = "of the paper's full fine-tuning"
            warnings.append("MFU is that of the paper's full fine-tuning; it states no GPU-hours of LoRA or DPO")
        elif mfu > PRETRAINING_MFU:
            warnings.append(
                f"MFU {mfu:.0%} is above the {PRETRAINING_MFU:.0%} of Llama 3 405B's pretraining: the paper's "
                "GPU-hours may leave something out; plan with --mfu 0.4"
            )
        if gpu.name != "h100-80gb":
            warnings.append(f"MFU is the paper's on H100, carried over to {gpu.name}")
    if setting.offload == "all":
        mfu, source = mfu * PAPER_OFFLOAD, f"{source}, less the 45 % that the paper gives for CPU offload"
    return mfu, source, warnings


def cost(
    shape: Shape, work: Work, planned: Schedule, own: Memory, gpu: Gpu, gpus: int, mfu: float | None, price: float
) -> tuple[Cost, list[str]]:
    """The run's cost on `gpus` GPUs, and what was assumed of it. `mfu` None: `usual_mfu`."""
    mfu, source, warnings = (mfu, "given", []) if mfu is not None else usual_mfu(shape, work, own.setting, gpu)
    per_token = flops_per_token(shape, work, planned.row_tokens)
    speed = mfu * gpu.flops * gpus / per_token
    hours, adam = planned.tokens / speed / 3600, 0.0
    if own.setting.offload == "optimizer":
        adam = HOST_ADAM * work.trained(shape) / own.nodes / gpu.host_bandwidth * planned.steps / 3600
        rate = f"{gpu.host_bandwidth / 1e9:.0f} GB/s per node"
        warnings.append(f"Adam on the host is estimated at {rate}, on top of the MFU")
    gpu_hours = (hours + adam) * gpus
    total = Cost(
        flops_per_token=per_token,
        mfu=mfu,
        mfu_source=source,
        tokens_per_second=speed,
        step_seconds=(hours + adam) * 3600 / planned.steps,
        hours=hours + adam,
        gpu_hours=gpu_hours,
        host_gpu_hours=adam * gpus,
        interruption_chance=0.0 if gpu.is_cpu else 1 - math.exp(-gpu_hours * INTERRUPTIONS_PER_GPU_HOUR),
        price=price,
        usd=gpu_hours * price,
    )
    return total, warnings


def kept(recipe: dict[str, Any], planned: Schedule) -> int:
    """Checkpoints that are there when the last is written: those that the recipe keeps, and its restart point."""
    epochs = math.ceil(planned.epochs)
    if recipe.get("save_strategy") in (False, "no"):
        return 0
    saves = epochs
    if recipe.get("saves_per_epoch"):
        saves = recipe["saves_per_epoch"] * epochs
    elif recipe.get("save_steps"):  # below 1: a share of all steps
        every = recipe["save_steps"]
        saves = math.ceil(1 / every if every < 1 else planned.steps / every)
    limit = recipe.get("save_total_limit") or AXOLOTL_KEEPS
    return min(saves + bool(recipe.get("restart_steps")), limit + 1)  # the oldest goes once the newest is there


def checkpoints(
    recipe: dict[str, Any], planned: Schedule, shape: Shape, work: Work, own: Memory, run: Cost, gpus: int, rate: float
) -> Checkpoints:
    """Sizes, save times at `rate` bytes/s per writing node, and the interval of Young 1974.

    The interval is sqrt(2 x time of a save x mean time between interruptions): Young, A first order approximation to
    the optimum checkpoint interval, CACM 17(9); what Daly 2006 adds matters only where saves are as long as it.
    """
    setting, trained = own.setting, work.trained(shape)
    fp32 = setting.engine == ZERO3 or setting.fp32 or work.width == 4 or work.rank  # what is trained
    state = (4 if fp32 else 2) * (1 + work.moments) * trained
    one_piece = setting.gathered or setting.engine == REPLICATED or work.rank
    if work.rank:
        weights = (work.width if setting.engine == ZERO3 else 4) * trained
    else:
        weights = (setting.gathered or (4 if setting.engine == REPLICATED and fp32 else 2)) * trained
    beside = weights if setting.engine == ZERO3 and one_piece else 0  # FSDP2 and data parallel train what they save
    writers = 1 if setting.engine == REPLICATED or (setting.engine == FSDP2 and one_piece) else own.nodes
    seconds = state / rate / writers + beside / rate
    if recipe.get("save_only_model"):
        state, beside, seconds = weights, 0, weights / rate / (1 if one_piece else writers)
    interval = steps = lost = None
    if run.interruption_chance:
        between = 3600 / (gpus * INTERRUPTIONS_PER_GPU_HOUR)
        interval = math.sqrt(2 * seconds * between)
        steps = max(1, round(interval / run.step_seconds))
        lost = seconds / interval + interval / (2 * between)
    count = kept(recipe, planned)
    return Checkpoints(
        weights=weights,
        state=state + beside,
        weights_seconds=weights / rate if one_piece else None,
        state_seconds=seconds,
        kept=count,
        storage=count * (state + beside) + (weights if one_piece else 0),
        interval_seconds=interval,
        interval_steps=steps,
        lost_share=lost,
    )
