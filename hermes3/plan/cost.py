"""Steps (by Axolotl's packer, or the paper's), time, GPU-hours, interruptions, checkpoints: by stated rates."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hermes3.files import ROOT, UserError, read_json, read_yaml
from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Memory, Setting
from hermes3.plan.network import Traffic, traffic
from hermes3.plan.shapes import Shape, Work
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import Gpu, gpu_of, hardware_of
from hermes3.recipe.paper import ROWS

RATES = SimpleNamespace(**read_yaml(Path(__file__).with_suffix(".yml")))  # stated, or assumed
PLANNED = ("hardware", "gradient_accumulation_steps")  # `--gpus` changes these of a recipe
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
    flops_per_token: float
    mfu: float
    mfu_source: str
    tokens_per_second: float
    step_seconds: float
    hours: float
    gpu_hours: float
    host_gpu_hours: float  # of these, in which GPUs wait for Adam on the host
    network: Traffic
    paper_gpu_hours: int | None  # what the paper states for the whole model,
    paper_mfu: float | None  # and the MFU that explains it
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
    """(global batch of the recipe's own hardware, accumulation that makes it on `gpus` GPUs), or a `UserError`."""
    micro = recipe.get("micro_batch_size") or 1
    batch = micro * (recipe.get("gradient_accumulation_steps") or 1) * hardware_of(path, recipe).gpus
    if batch % (micro * gpus):
        made = f"{gpus} GPUs x micro_batch_size {micro} x a whole gradient_accumulation_steps"
        raise UserError(f"{path}: the global batch of {batch} cannot be made by {made}; give --gpus that divide it")
    return batch, batch // (micro * gpus)


def mix_of(recipe: dict[str, Any]) -> Path:
    """The mix folder that the recipe's data are in; it may not be built yet."""
    return Path(str((recipe.get("datasets") or [{}])[0].get("path"))).parent


def schedule(path: Path, recipe: dict, batch: int, mix: Path | None, packed: bool) -> tuple[Schedule, list[str]]:
    """The run's schedule, and what was assumed. `mix` None: the recipe's own, if built; not `packed`: no SFT mix."""
    if mix is None and (mix_of(recipe) / "manifest.json").is_file():
        mix = mix_of(recipe)
    epochs, max_steps = float(recipe.get("num_epochs") or 1), recipe.get("max_steps")
    if recipe.get("rl"):
        pairs, source = RATES.paper_dpo_steps * batch / epochs, "1,200 steps, the paper's 8B plot"
        mean = RATES.pair_tokens
        if mix:
            manifest = read_json(mix / "manifest.json", "kind", "total.rows", "total.tokens")
            if manifest["kind"] != "preference":
                raise UserError(f"{mix}: a mix of kind {manifest['kind']} holds no pairs; DPO needs a preference mix")
            pairs, source = manifest["total"]["rows"], str(mix)
            mean = manifest["total"]["tokens"] / pairs
        per_epoch = math.ceil(pairs / batch)  # transformers' Trainer makes a last, smaller step of what is left
        steps = max_steps or math.ceil(per_epoch * epochs)
        tokens, unit, row, full = mean * min(steps * batch, pairs * epochs), "pairs", mean / 2, None
        note = f"no mix: {source}; {RATES.pair_tokens:,} tokens per pair are assumed"
    elif mix and packed:
        from hermes3.mix.pack import preview  # imports Axolotl: seconds

        one = preview(mix, path, validate(path) | {key: recipe[key] for key in PLANNED})
        steps, source = one.steps, f"{mix}, packed by Axolotl's packer"
        facts = steps, one.tokens_per_step * steps, one.tokens / one.rows, one.efficiency, source
        note = f"an epoch leaves out up to {max(one.rows_left_out):,} of {one.rows:,} rows, in packs that no step takes"
        notes, small = [note] * any(one.rows_left_out), one.packs * one.capacity < batch * recipe["sequence_len"]
        note = f"an epoch fills less than a batch of {batch}: one smaller step; lower gradient_accumulation_steps"
        return Schedule("sequences", batch, epochs, one.steps_per_epoch, *facts), notes + [note] * small
    else:
        full, source = RATES.paper_packing, "the paper's 390 M tokens, sequences 96 % full"
        per_epoch = RATES.paper_tokens / full / recipe["sequence_len"] / batch
        steps = max_steps or round(per_epoch * epochs)
        tokens, unit, row = steps * batch * recipe["sequence_len"] * full, "sequences", RATES.row_tokens
        mix, note = None, f"no mix: steps are for {source}; conversations of {RATES.row_tokens} tokens on average"
    by_epoch = [round(per_epoch)] * math.ceil(epochs)
    return Schedule(unit, batch, epochs, by_epoch, steps, tokens, row, full, source), [] if mix else [note]


def flops_per_token(shape: Shape, work: Work, row_tokens: float) -> float:
    """Model FLOPs that training takes per token; what checkpointing computes twice counts once.

    Matrices: 2 per parameter forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 2 where frozen.
    Attention: 12 x layers x width x keys (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B), of which a token
    of a causal row sees half. DPO's reference is one more forward pass.
    """
    matrices, attention = shape.multiplied, 12 * shape.layers * shape.heads * shape.head_dim * row_tokens / 2
    reference = 2 * matrices + attention / 3 if work.preference else 0
    adapter = 6 * work.trained(shape) if work.rank else 0
    return (4 if work.rank else 6) * matrices + attention + adapter + reference


def recomputed_share(shape: Shape, work: Work, row_tokens: float) -> float:
    """FLOPs that computing all layers twice adds, per model FLOP: a forward pass without the output matrix."""
    attention = 4 * shape.layers * shape.heads * shape.head_dim * row_tokens / 2
    again = 2 * (shape.multiplied - shape.embedding) + attention + (2 * work.trained(shape) if work.rank else 0)
    return again / flops_per_token(shape, work, row_tokens)


def paper_hours(shape: Shape) -> tuple[int | None, float | None]:
    """The paper's GPU-hours for four epochs of 390 M tokens on H100, and the MFU that explains them; None without."""
    hours = next((row.gpu_hours for row in ROWS.values() if row.base == shape.name and row.gpu_hours), None)
    flops = flops_per_token(shape, Work(tokens=8192), RATES.row_tokens) * RATES.paper_tokens * RATES.paper_epochs
    return hours, flops / (hours * 3600 * gpu_of("h100-80gb").flops) if hours else None


@lru_cache
def measurements() -> list[dict[str, Any]]:
    """Runs on GPUs, the newest first: `bench/baselines/*.json`, which `make gpu-check` writes."""
    runs = [read_json(file) for file in (ROOT / "bench/baselines").glob("*.json")]
    return sorted((run for run in runs if run["mfu"]), key=lambda run: run["date"], reverse=True)


def usual_mfu(shape: Shape, work: Work, setting: Setting, gpu: Gpu) -> tuple[float, str, list[str], dict[str, Any]]:
    """(MFU, its source, what was assumed, the measurement): the nearest one, less 45 % with parameters on the host.
    Nearest: of the same loss, then with or without an adapter alike, on the same GPU, as shipped, in size."""

    def distance(run: dict[str, Any]) -> tuple[bool, bool, bool, float]:
        adapter = any(word in run["recipe"] for word in ("dpo", "lora"))
        size = run["layers"] * run["hidden"] ** 2 / (shape.layers * shape.hidden**2)
        shipped = run["setting"] == "as shipped"
        return adapter != bool(work.rank), run["gpu"] != gpu.name, not shipped, abs(math.log(size))

    alike = [run for run in measurements() if ("dpo" in run["recipe"]) == work.preference and not gpu.is_cpu]
    if not alike:
        note = f"MFU {RATES.assumed_mfu:.0%} is assumed: nothing like it was measured; give --mfu"
        return RATES.assumed_mfu, "assumed", [note], {}
    run = min(alike, key=distance)
    mfu, what = run["mfu"], f"{run['recipe']}, {run['layers']} layers, {run['setting']}"
    source = f"measured on {run['gpus']} {run['gpu']}, {run['date']}: {what}"
    note = f"MFU {mfu:.1%} is the nearest measured, of {what}; this run was not measured"
    if setting.offload == "all":
        mfu, source = mfu * RATES.paper_offload, f"{source}, less the 45 % that the paper gives for CPU offload"
    return mfu, source, [note] if any(distance(run)) else [], run


def cost(
    shape: Shape, work: Work, planned: Schedule, own: Memory, gpu: Gpu, gpus: int, mfu: float | None, price: float
) -> tuple[Cost, list[str]]:
    """The run's cost on `gpus` GPUs, and what was assumed of it. `mfu` None: `usual_mfu`."""
    mfu, source, warnings, measured = (mfu, "given", [], {}) if mfu else usual_mfu(shape, work, own.setting, gpu)
    per_token = flops_per_token(shape, work, planned.row_tokens)
    arithmetic, adam = planned.tokens * per_token / (mfu * gpu.flops * gpus) / planned.steps, 0.0  # seconds per step
    sent = traffic(shape, work, own.setting, gpu, own.nodes, gpus // own.nodes, arithmetic)
    if own.setting.offload == "optimizer":
        adam = RATES.host_adam * work.trained(shape) / own.nodes / gpu.host_bandwidth
        rate = f"{gpu.host_bandwidth / 1e9:.0f} GB/s per node"
        warnings.append(f"Adam on the host is estimated at {rate}, on top of the MFU")
    step = arithmetic + adam + sent.exposed
    hours = step * planned.steps / 3600
    recomputed = measured.get("recomputed")
    if recomputed is not None and recomputed != work.checkpointing:
        more = 1 + recomputed_share(shape, work, planned.row_tokens)
        change = arithmetic * ((1 / more if recomputed else more) - 1)
        likely = f"{(step + change) * planned.steps / 3600 * gpus:,.0f} GPU-hours (modelled, not counted above)"
        faster = f"with all layers recomputed, and this recipe recomputes none: up to {more:.2f} times as fast"
        slower = f"without recomputation, and this recipe recomputes all layers: 1/{more:.2f} of the speed"
        warnings.append(f"the MFU was measured {faster if recomputed else slower}, {likely}")
    paper = (None, None) if work.rank or work.preference else paper_hours(shape)
    speed, on_host = planned.tokens / planned.steps / step, adam * planned.steps / 3600 * gpus
    chance = 0.0 if gpu.is_cpu else 1 - math.exp(-hours * gpus * INTERRUPTIONS_PER_GPU_HOUR)
    times = per_token, mfu, source, speed, step, hours, hours * gpus, on_host, sent
    money = *paper, chance, price, hours * gpus * price
    return Cost(*times, *money), warnings


def checkpoints(
    recipe: dict[str, Any], planned: Schedule, shape: Shape, work: Work, own: Memory, run: Cost, gpus: int, rate: float
) -> Checkpoints:
    """Sizes, save times at `rate` bytes/s per writing node, how many are there when the last is written, how often.

    The interval is sqrt(2 x time of a save x mean time between interruptions): Young 1974, A first order approximation
    to the optimum checkpoint interval, CACM 17(9); what Daly 2006 adds matters only where saves are as long as it.
    """
    setting, trained = own.setting, work.trained(shape)
    fp32 = setting.engine == ZERO3 or setting.fp32 or work.width == 4 or work.rank  # what is trained
    state = (4 if fp32 else 2) * (1 + work.moments) * trained
    one_piece = setting.gathered or setting.engine == REPLICATED or work.rank
    weights = (setting.gathered or (4 if setting.engine == REPLICATED and fp32 else 2)) * trained
    if work.rank:
        weights = (work.width if setting.engine == ZERO3 else 4) * trained
    beside = weights if setting.engine == ZERO3 and one_piece else 0  # FSDP2 and data parallel train what they save
    writers = 1 if setting.engine == REPLICATED or (setting.engine == FSDP2 and one_piece) else own.nodes
    seconds = state / rate / writers + beside / rate
    if recipe.get("save_only_model"):
        state, beside, seconds = weights, 0, weights / rate / (1 if one_piece else writers)
    state, whole = state + beside, weights / rate if one_piece else None
    saves, every = (recipe.get("saves_per_epoch") or 1) * math.ceil(planned.epochs), recipe.get("save_steps")
    if every and not recipe.get("saves_per_epoch"):
        saves = math.ceil(1 / every if every < 1 else planned.steps / every)  # below 1: a share of all steps
    limit = (recipe.get("save_total_limit") or RATES.axolotl_keeps) + 1  # the oldest goes once the newest is there
    kept = min(saves + bool(recipe.get("restart_steps")), limit)
    kept = 0 if recipe.get("save_strategy") in (False, "no") else kept
    interval = steps = lost = None
    if run.interruption_chance:
        between = 3600 / (gpus * INTERRUPTIONS_PER_GPU_HOUR)
        interval = math.sqrt(2 * seconds * between)
        steps, lost = max(1, round(interval / run.step_seconds)), seconds / interval + interval / (2 * between)
    storage = kept * state + (weights if one_piece else 0)
    return Checkpoints(weights, state, whole, seconds, kept, storage, interval, steps, lost)
