"""Memory of one GPU and of one node by part, at each way of sharding: bytes at the peak of a training step.

Model states: Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 3 (2 + 2 + 12 bytes per parameter with Adam in
mixed precision). Buffers: DeepSpeed 0.18's stage3.py and partitioned_param_coordinator.py; FSDP2's as its tracker sees.
A step has three moments that can be its peak: the loss, a layer's backward pass, the optimizer's step.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_yaml
from hermes3.plan.shapes import Shape, Work
from hermes3.recipe.hardware import Gpu
from hermes3.recipe.read import deepspeed_config

ZERO3, FSDP2, REPLICATED = "zero3", "fsdp2", "replicated"
# What is on the host, by the devices that a DeepSpeed file offloads the optimizer and the parameters to
OFFLOADS = {("none", "none"): "", ("cpu", "none"): "optimizer", ("cpu", "cpu"): "all"}
# Assumed: CUDA context 0.5 GB, NCCL's channels and cuBLAS' workspaces 1.5 GB. Not modelled: the allocator's fragments
OVERHEAD = 2_000_000_000
HOST_SHARE = 0.9  # of a node's memory; the rest is the system's, the data loader's, and pages of files


@dataclass(frozen=True)
class Setting:
    """One way to spread model states over GPUs and hosts."""

    name: str
    engine: str
    fp32: bool = True  # weights and moments of the optimizer, else bf16 throughout
    offload: str = ""  # what stays in host memory: "", "optimizer" (with the fp32 weights), or "all"
    gathered: int = 0  # bytes per parameter that rank 0's host collects at a save; 0: each rank saves its part
    buckets: dict[str, float] = field(default_factory=dict)  # ZeRO's sizes where given, in elements
    group: int = 0  # GPUs that hold one copy, of all states (FSDP2) or of the weights (ZeRO-3's hpZ); 0: all of the run
    overlap: bool = True  # reductions run beside the backward pass
    gradient: int = 2  # bytes per parameter in which ZeRO adds gradients up

    def gathering(self) -> "Setting":
        """The same with whole saves: FSDP2 gathers the weights that it trains, ZeRO-3 their bf16 copies."""
        return replace(self, gathered=4 if self.engine == FSDP2 and self.fp32 else 2)


# In elements, where a DeepSpeed file gives none: in units of hidden^2 what transformers' HfTrainerDeepSpeedConfig fills
# into an "auto", else DeepSpeed's own default
BUCKETS = {"reduce_bucket_size": 1, "stage3_prefetch_bucket_size": 0.9}
BUCKETS |= {"stage3_max_reuse_distance": 1e9, "sub_group_size": 1e9}
TABLE = read_yaml(Path(__file__).with_name("settings.yml"))
SETTINGS = tuple(Setting(name, **row) for name, row in TABLE.items())


def setting_of(path: Path, recipe: dict[str, Any]) -> Setting:
    """How the recipe at `path` shards. `UserError` for a DeepSpeed file that cannot be read, or that is not ZeRO-3."""
    # HermesPlugin trains fp32 weights (hermes3/train), Axolotl alone bf16 ones; adapters are apart
    ours = any(str(name).endswith("HermesPlugin") for name in recipe.get("plugins") or [])
    fp32 = ours and not recipe.get("adapter")
    if fsdp := recipe.get("fsdp_config"):
        group = recipe.get("dp_shard_size") or 0 if (recipe.get("dp_replicate_size") or 1) > 1 else 0
        own = _setting(FSDP2, fp32, "all" if fsdp.get("offload_params") else "", group)
        whole = "FULL_STATE_DICT" in (fsdp.get("state_dict_type"), fsdp.get("final_state_dict_type"))
        return own.gathering() if whole else own
    config = deepspeed_config(path, recipe)
    if config is None:
        return Setting("every process holds the whole model", REPLICATED, fp32=fp32)
    zero = config.get("zero_optimization", {})
    devices = tuple(zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param"))
    if zero.get("stage") != 3 or devices not in OFFLOADS:
        wrong = f"stage {zero.get('stage')}, optimizer on {devices[0]}, parameters on {devices[1]}"
        planned = "only ZeRO stage 3 is planned for, with the optimizer, or the optimizer and the parameters, on cpu"
        raise UserError(f"{path}: deepspeed: {wrong}; {planned}")
    group, fp32_sums = int(zero.get("zero_hpz_partition_size", 1)), ("fp32", "float32", "float")
    own = replace(
        _setting(ZERO3, True, OFFLOADS[devices], group if group > 1 else 0),
        buckets={key: float(zero[key]) for key in BUCKETS if zero.get(key, "auto") != "auto"},
        overlap=zero.get("overlap_comm", True) is not False,
        gradient=4 if (config.get("data_types") or {}).get("grad_accum_dtype") in fp32_sums else 2,
    )
    return own.gathering() if zero.get("stage3_gather_16bit_weights_on_model_save") else own


def _setting(engine: str, fp32: bool, offload: str, group: int) -> Setting:
    alike = [one for one in SETTINGS if (one.engine, one.fp32, one.offload) == (engine, fp32, offload)]
    return replace(next((one for one in alike if bool(one.group) == bool(group)), alike[0]), group=group)


@dataclass(frozen=True)
class Memory:
    """Bytes. `gpu`: by part, at the moment named `peak`; `host`: by part, of rank 0's node, at its own `host_peak`."""

    setting: Setting
    nodes: int
    peak: str
    moments: dict[str, int]  # total at each moment
    gpu: dict[str, int]
    host_peak: str
    host: dict[str, int]
    gpu_room: float
    host_room: float

    @property
    def fits(self) -> bool:
        return sum(self.gpu.values()) <= self.gpu_room and sum(self.host.values()) <= self.host_room

    @property
    def headroom(self) -> float:
        """Share of a GPU's memory that is left; negative: what is missing."""
        return 1 - sum(self.gpu.values()) / self.gpu_room


def memory(shape: Shape, work: Work, setting: Setting, gpu: Gpu, nodes: int, per_node: int) -> Memory:
    """Bytes by part on `nodes` nodes of `per_node` GPUs."""
    states, host = _states(shape, work, setting, nodes, per_node)
    hosts = _hosts(shape, work, setting, nodes, host)
    gathered, gradients, step = _buffers(shape, work, setting, nodes * per_node)
    one_input, one_layer = work.layer_input(shape), work.layer(shape)
    if work.checkpointing:  # of offloaded inputs, the two stay that are being copied
        inputs = (min(2, shape.layers) if work.offloaded else shape.layers) * one_input
        held = {"layer inputs": inputs, "selected outputs": shape.layers * work.selected(shape), "activations": 0}
    else:
        held = {"layer inputs": 0, "selected outputs": 0, "activations": shape.layers * (one_input + one_layer)}
    backward = {
        "recomputed layer": one_layer if work.checkpointing else 0,
        "gradients in flow": work.layer_backward(shape) + 2 * one_input,
        "gathered weights": gathered["backward"],
        "gradients in reduction": gradients,
    }
    loss = {"loss": work.loss(shape), "gathered weights": gathered["loss"]}
    if setting.engine != ZERO3 and work.accumulation == 1:
        # none before the backward pass, in which they come as the layers' inputs go; ZeRO-3 has a buffer for them
        loss["gradients"] = 0
        backward["gradients"] = max(0, states["gradients"] - held["layer inputs"] - held["activations"])
    base = states | {"CUDA and NCCL": 0 if gpu.is_cpu else OVERHEAD}
    if setting.engine == FSDP2 and work.accumulation > 1:  # accelerate reduces the last micro-batch's alone
        base["gradients, not yet reduced"] = work.width * work.trained(shape)
    moments = {"loss": held | loss, "backward": held | backward, "optimizer step": {"step": step}}
    moments = {name: base | parts for name, parts in moments.items()}
    totals = {name: sum(parts.values()) for name, parts in moments.items()}
    peak = max(totals, key=totals.__getitem__)
    host_peak = max(hosts, key=lambda moment: sum(hosts[moment].values()))
    parts, host = ({name: size for name, size in each.items() if size} for each in (moments[peak], hosts[host_peak]))
    return Memory(setting, nodes, peak, totals, parts, host_peak, host, gpu.memory, gpu.host_memory * HOST_SHARE)


def _states(shape: Shape, work: Work, setting: Setting, nodes: int, per_node: int) -> tuple[dict, dict]:
    trained, whole = work.trained(shape), shape.parameters
    n = 1 if setting.engine == REPLICATED else nodes * per_node
    copy = min(setting.group or n, n)  # GPUs that hold one
    n = copy if setting.engine == FSDP2 else n
    on_node = per_node / n  # share of the model whose owner is on one node
    # ZeRO-3: bf16 for computing, fp32 for Adam; peft keeps an adapter in fp32
    byte = 4 if setting.fp32 or work.width == 4 or work.rank else 2
    weight, gradient, moments = byte, byte, byte * work.moments
    if setting.engine == ZERO3:
        weight, gradient, moments = 2, setting.gradient, 4 + 4 * work.moments
    frozen = whole * work.width if work.rank else 0
    sizes = {"parameters": weight * trained + frozen, "gradients": gradient * trained, "optimizer": moments * trained}
    away = {"": (), "optimizer": ("optimizer", "gradients"), "all": tuple(sizes)}[setting.offload]
    gpu = {part: 0 if part in away else round(size / n) for part, size in sizes.items()}
    if setting.engine == ZERO3 and copy < n:
        gpu["weights, a copy per group"] = round(2 * whole / copy)
    host = {part: round(sizes[part] * on_node) for part in away}
    if work.offloaded:
        host["layer inputs"] = per_node * shape.layers * work.layer_input(shape)
    if setting.engine == ZERO3 and away:  # Adam on the host reads fp32 gradients, beside bf16 ones that accumulate
        host["gradients"] += round(4 * trained * on_node)
    return gpu, host


def _hosts(shape: Shape, work: Work, setting: Setting, nodes: int, states: dict[str, int]) -> dict[str, dict[str, int]]:
    """Parts of the fullest host's memory while the model is read, trained and saved.
    FSDP: local rank 0 of a node reads it whole, uncast (`cpu_ram_efficient_loading`). ZeRO-3 maps its files."""
    moments, whole = {"training": states}, shape.parameters * work.width
    if all(states.values()) and setting.gathered:
        saved = setting.gathered * (work.trained(shape) if work.rank else shape.parameters)
        moments["saving"] = states | {"weights gathered to save": saved}
    if setting.engine == FSDP2:
        shares = {"parameters": round(whole / nodes)} if setting.offload == "all" else {}
        moments["reading"] = {"whole model, read": whole} | shares
    return moments


def _buffers(shape: Shape, work: Work, setting: Setting, n: int) -> tuple[dict[str, int], int, int]:
    """Bytes of weights gathered at the loss and in the backward pass, of gradients in reduction, and of the step."""
    trained, linear = work.trained(shape), shape.largest_linear
    if setting.engine == ZERO3:
        # DeepSpeed gives a parameter back unless it is used again within max_reuse_distance, beside the module at work
        # and a prefetch that stops only once its bucket is over-full. The fused loss reads the output matrix outside of
        # its module: it then belongs to the whole model, and stays
        sizes = {key: size * (shape.hidden**2 if size <= 1 else 1) for key, size in BUCKETS.items()} | setting.buckets
        bucket, prefetch, reuse, group = map(int, sizes.values())
        live = 2 * min(reuse + prefetch + 2 * linear + shape.embedding, shape.parameters)
        # the bucket, and what does not fit it: matrices that wait for two reductions, and a flat copy of one
        matrix = work.rank * 2 * shape.hidden if work.rank else linear
        reduction = 2 * (bucket + (4 * matrix if matrix > bucket else bucket))
        step = 0 if setting.offload else 6 * min(group, -(-trained // n))  # a group's gradient: flat, then in fp32
        return {"loss": live, "backward": live}, reduction, step
    if setting.engine == FSDP2:
        # the embedding and the output matrix are the root's, gathered all through; beside a layer comes the next
        root, layer = 2 * shape.embedding, trained // shape.layers if work.rank else shape.layer
        gathered = {"loss": 2 * (root + shape.layer), "backward": 2 * (root + 2 * shape.layer)}
        return gathered, 2 * (layer + (0 if work.rank else shape.embedding)), 0  # the output's waits for the root's end
    width = 4 if setting.fp32 else 2
    return {"loss": 0, "backward": 0}, width * trained if n > 1 else 0, 0  # data parallel: its buckets copy


def runnable(shape: Shape, work: Work, setting: Setting, gpu: Gpu, per_node: int, micro_batches: int) -> list[Memory]:
    """Memory on each number of nodes that holds a step of `micro_batches` in all, shared out evenly."""
    counts = [nodes for nodes in range(1, micro_batches // per_node + 1) if micro_batches % (nodes * per_node) == 0]
    shares = [(nodes, replace(work, accumulation=micro_batches // (nodes * per_node))) for nodes in counts]
    held = [memory(shape, share, setting, gpu, nodes, per_node) for nodes, share in shares]
    return [one for one in held if one.fits]
