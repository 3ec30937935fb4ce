"""Checkpoints: their bytes and seconds, how many there are at once, and how often to make one."""

import math
from dataclasses import dataclass
from typing import Any

from hermes3.plan.cost import INTERRUPTIONS_PER_GPU_HOUR, Cost, Schedule
from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Memory
from hermes3.plan.shapes import Shape, Work

AXOLOTL_KEEPS = 4  # checkpoints, where save_total_limit is absent


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
