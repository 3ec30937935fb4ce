"""Time, GPU-hours, checkpoints and interruptions: arithmetic on stated rates."""

import math
from dataclasses import dataclass
from typing import Any

from hermes3.plan.memory import Memory
from hermes3.plan.schedule import PAPER_TOKENS, ROW_TOKENS, Schedule
from hermes3.plan.settings import FSDP2, REPLICATED, ZERO3, Setting
from hermes3.plan.shapes import Shape
from hermes3.plan.work import Work
from hermes3.recipe.hardware import Gpu, gpu_of
from hermes3.recipe.paper import rows

PAPER_EPOCHS = 4
PAPER_OFFLOAD = 0.55  # the paper: CPU parameter offload costs about 45 % of efficiency
ASSUMED_MFU = 0.35  # of a model that the paper has no GPU-hours for
PRETRAINING_MFU = 0.43  # the best that arXiv 2407.21783, table 4, reports for Llama 3 405B in bf16
AXOLOTL_KEEPS = 4  # checkpoints, where save_total_limit is absent
HOST_ADAM = 30  # bytes that Adam moves a parameter on the host: gradient and three fp32 states in, those and bf16 out
# Llama 3 405B: 419 unexpected interruptions, 78 % of them of hardware, in 54 days on 16,384 H100 (The Llama 3 Herd of
# Models, arXiv 2407.21783, section 3.3.4)
INTERRUPTIONS_PER_GPU_HOUR = 419 / (54 * 24 * 16_384)


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


def flops_per_token(shape: Shape, work: Work, row_tokens: float) -> float:
    """Model FLOPs that training takes a token; what checkpointing computes twice counts once.

    Matrices: 2 a parameter forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 2 backward where
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


def cost(
    shape: Shape,
    work: Work,
    schedule: Schedule,
    setting: Setting,
    gpu: Gpu,
    gpus: int,
    nodes: int,
    mfu: float | None,
    price: float,
) -> tuple[Cost, list[str]]:
    """`mfu` None: the paper's for this base model, less its 45 % where parameters are offloaded."""
    source, warnings = "given", []
    if mfu is None:
        mfu = None if gpu.is_cpu else paper_mfu(shape)
        source = "explains the paper's GPU-hours"
        if mfu is None:
            mfu, source = ASSUMED_MFU, "assumed"
            warnings.append(
                f"MFU {ASSUMED_MFU:.0%} is assumed: the paper has no GPU-hours for this; measure, give --mfu"
            )
        elif work.rank:
            source = "of the paper's full fine-tuning"
            warnings.append("MFU is that of the paper's full fine-tuning; it states no GPU-hours of LoRA or DPO")
        elif mfu > PRETRAINING_MFU:
            warnings.append(
                f"MFU {mfu:.0%} is above the {PRETRAINING_MFU:.0%} of Llama 3 405B's pretraining: the paper's "
                "GPU-hours may leave something out; plan with --mfu 0.4"
            )
        if source != "assumed" and gpu.name != "h100-80gb":
            warnings.append(f"MFU is the paper's on H100, carried over to {gpu.name}")
        if setting.offload == "all":
            mfu, source = mfu * PAPER_OFFLOAD, f"{source}, less the 45 % that the paper gives for CPU offload"
    per_token = flops_per_token(shape, work, schedule.row_tokens)
    speed = mfu * gpu.flops * gpus / per_token
    hours = schedule.tokens / speed / 3600
    adam = 0.0
    if setting.offload == "optimizer":
        adam = HOST_ADAM * work.trained(shape) / nodes / gpu.host_bandwidth * schedule.steps / 3600
        warnings.append(
            f"Adam on the host is estimated at {gpu.host_bandwidth / 1e9:.0f} GB/s a node, on top of the MFU"
        )
    total = (hours + adam) * gpus
    found = Cost(
        flops_per_token=per_token,
        mfu=mfu,
        mfu_source=source,
        tokens_per_second=speed,
        step_seconds=(hours + adam) * 3600 / schedule.steps,
        hours=hours + adam,
        gpu_hours=total,
        host_gpu_hours=adam * gpus,
        interruption_chance=0.0 if gpu.is_cpu else 1 - math.exp(-total * INTERRUPTIONS_PER_GPU_HOUR),
        price=price,
        usd=total * price,
    )
    return found, warnings


def kept(recipe: dict[str, Any], schedule: Schedule) -> int:
    """Checkpoints that are there when the last is written: those that the recipe keeps, and its restart point."""
    strategy, epochs = recipe.get("save_strategy"), math.ceil(schedule.epochs)
    if strategy in (False, "no"):
        return 0
    saves = epochs
    if recipe.get("saves_per_epoch"):
        saves = recipe["saves_per_epoch"] * epochs
    elif recipe.get("save_steps"):  # below 1: a share of all steps
        every = recipe["save_steps"]
        saves = math.ceil(1 / every if every < 1 else schedule.steps / every)
    limit = recipe.get("save_total_limit") or AXOLOTL_KEEPS
    return min(saves + bool(recipe.get("restart_steps")), limit + 1)  # the oldest goes once the newest is there


def checkpoints(
    recipe: dict[str, Any],
    shape: Shape,
    work: Work,
    schedule: Schedule,
    own: Memory,
    made: Cost,
    gpu: Gpu,
    gpus: int,
    bandwidth: float,
) -> Checkpoints:
    """Sizes, save times at `bandwidth` bytes/s a writing node, and the interval of Young 1974.

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
    weights_seconds = weights / bandwidth if one_piece else None
    state_seconds = state / bandwidth / writers + beside / bandwidth
    if recipe.get("save_only_model"):
        state, beside, state_seconds = weights, 0, weights / bandwidth / (1 if one_piece else writers)
    interval = steps = lost = None
    if not gpu.is_cpu:
        between = 3600 / (gpus * INTERRUPTIONS_PER_GPU_HOUR)
        interval = math.sqrt(2 * state_seconds * between)
        steps = max(1, round(interval / made.step_seconds))
        lost = state_seconds / interval + interval / (2 * between)
    count = kept(recipe, schedule)
    return Checkpoints(
        weights=weights,
        state=state + beside,
        weights_seconds=weights_seconds,
        state_seconds=state_seconds,
        kept=count,
        storage=count * (state + beside) + (weights if one_piece else 0),
        interval_seconds=interval,
        interval_steps=steps,
        lost_share=lost,
    )
