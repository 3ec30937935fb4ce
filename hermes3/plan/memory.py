"""Memory of one GPU and of one node by part, at each way of sharding: bytes at the peak of a training step.

Model states: Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 3 (2 + 2 + 12 bytes per parameter with Adam in
mixed precision). Buffers: DeepSpeed 0.18's stage3.py and partitioned_param_coordinator.py; FSDP2's as its tracker sees.
A step has three moments that can be its peak: the loss, a layer's backward pass, the optimizer's step.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hermes3.files import UserError
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
    """One way to spread model states over GPUs and hosts.

    `fp32`: weights and moments of the optimizer are fp32, else bf16 throughout. `offload`: what stays in host memory:
    "", "optimizer" (with the fp32 weights), or "all". `gathered`: bytes per parameter that rank 0 collects in its
    host's memory at a save; 0: each rank saves its part. `buckets`: ZeRO's sizes where given, in elements. `group`:
    GPUs that hold one copy, of all states under FSDP2, of the weights alone under ZeRO-3 (its hpZ); 0: all of the run.
    """

    name: str
    engine: str
    fp32: bool = True
    offload: str = ""
    gathered: int = 0
    buckets: dict[str, float] = field(default_factory=dict)
    group: int = 0
    overlap: bool = True  # reductions run beside the backward pass
    gradient: int = 2  # bytes per parameter in which ZeRO adds gradients up

    def gathering(self) -> "Setting":
        """The same with whole saves: FSDP2 gathers the weights that it trains, ZeRO-3 their bf16 copies."""
        return replace(self, gathered=4 if self.engine == FSDP2 and self.fp32 else 2)

    def bucket(self, key: str, hidden: int) -> int:
        """Elements. "auto" is what transformers' HfTrainerDeepSpeedConfig.trainer_config_finalize fills in."""
        auto = {"reduce_bucket_size": hidden * hidden, "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden)}
        fallback = {"stage3_max_reuse_distance": 1e9, "sub_group_size": 1e9}  # DeepSpeed's own
        return int((auto | fallback | self.buckets)[key])


PER_NODE = 8
BUCKETS = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_reuse_distance", "sub_group_size")
SETTINGS = (
    Setting("ZeRO-3", ZERO3),
    Setting("ZeRO-3, optimizer on the host", ZERO3, offload="optimizer"),
    Setting("ZeRO-3, optimizer and parameters on the host", ZERO3, offload="all"),
    Setting("FSDP2, fp32 weights", FSDP2),
    Setting("FSDP2, bf16 throughout", FSDP2, fp32=False),
    Setting("ZeRO-3, weights in each node (hpZ)", ZERO3, group=PER_NODE),
    Setting("FSDP2, fp32 weights, a copy per node", FSDP2, group=PER_NODE),
    Setting("FSDP2, fp32 weights, all on the host", FSDP2, offload="all"),
    Setting("FSDP2, bf16 throughout, all on the host", FSDP2, fp32=False, offload="all"),
)


def setting_of(path: Path, recipe: dict[str, Any]) -> Setting:
    """How the recipe at `path` shards. `UserError` for a DeepSpeed file that cannot be read, or that is not ZeRO-3."""
    # HermesPlugin trains fp32 weights (hermes3/train), Axolotl alone bf16 ones; adapters are apart
    plugins = [str(name) for name in recipe.get("plugins") or []]
    fp32 = any(name.endswith("HermesPlugin") for name in plugins) and not recipe.get("adapter")
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
        raise UserError(
            f"{path}: deepspeed: stage {zero.get('stage')}, optimizer on {devices[0]}, parameters on {devices[1]}; "
            "only ZeRO stage 3 is planned for, with the optimizer, or the optimizer and the parameters, on cpu"
        )
    buckets = {key: float(zero[key]) for key in BUCKETS if zero.get(key, "auto") != "auto"}
    group = int(zero.get("zero_hpz_partition_size", 1))
    own = _setting(ZERO3, True, OFFLOADS[devices], group if group > 1 else 0)
    own = replace(own, buckets=buckets, overlap=zero.get("overlap_comm", True) is not False)
    if str((config.get("data_types") or {}).get("grad_accum_dtype")) in ("fp32", "float32", "float"):
        own = replace(own, gradient=4)
    return own.gathering() if zero.get("stage3_gather_16bit_weights_on_model_save") else own


def _setting(engine: str, fp32: bool, offload: str, group: int = 0) -> Setting:
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
    n = nodes * per_node
    gpu_parts, host = _states(shape, work, setting, nodes, per_node)
    host_moments = _host(shape, work, setting, nodes, host)
    host_peak = max(host_moments, key=lambda moment: sum(host_moments[moment].values()))
    inputs = work.held_inputs(shape) if work.checkpointing else 0
    whole = 0 if work.checkpointing else shape.layers * (work.layer_input(shape) + work.layer(shape))
    layer = work.layer(shape) if work.checkpointing else 0
    gathered, gradients, step = _buffers(shape, work, setting, n)
    selected = shape.layers * work.selected(shape) if work.checkpointing else 0
    held = {"layer inputs": inputs, "selected outputs": selected, "activations": whole}
    moments = {
        "loss": held | {"loss": work.loss(shape), "gathered weights": gathered["loss"]},
        "backward": held
        | {
            "recomputed layer": layer,
            "gradients in flow": work.layer_backward(shape) + 2 * work.layer_input(shape),
            "gathered weights": gathered["backward"],
            "gradients in reduction": gradients,
        },
        "optimizer step": {"step": step},
    }
    if setting.engine != ZERO3 and work.accumulation == 1:
        # none before the backward pass, in which they come as the layers' inputs go; ZeRO-3 has a buffer for them
        moments["loss"]["gradients"] = 0
        moments["backward"]["gradients"] = max(0, gpu_parts["gradients"] - inputs - whole)
    base = gpu_parts | {"CUDA and NCCL": 0 if gpu.is_cpu else OVERHEAD}
    if setting.engine == FSDP2 and work.accumulation > 1:  # accelerate reduces the last micro-batch's alone
        base["gradients, not yet reduced"] = work.width * work.trained(shape)
    moments = {name: base | parts for name, parts in moments.items()}
    totals = {name: sum(parts.values()) for name, parts in moments.items()}
    peak = max(totals, key=totals.__getitem__)
    parts = {name: size for name, size in moments[peak].items() if size}
    return Memory(
        setting=setting,
        nodes=nodes,
        peak=peak,
        moments=totals,
        gpu=parts,
        host_peak=host_peak,
        host={name: size for name, size in host_moments[host_peak].items() if size},
        gpu_room=gpu.memory,
        host_room=gpu.host_memory * HOST_SHARE,
    )


def _states(shape: Shape, work: Work, setting: Setting, nodes: int, per_node: int) -> tuple[dict, dict]:
    """Parts of the model states on a GPU, and on a node's host."""
    trained, whole = work.trained(shape), shape.parameters
    n = 1 if setting.engine == REPLICATED else nodes * per_node
    copy = min(setting.group or n, n)  # GPUs that hold one
    n = copy if setting.engine == FSDP2 else n
    on_node = per_node / n  # share of the model whose owner is on one node
    frozen = (whole if work.rank else 0) * work.width
    if setting.engine == ZERO3:  # bf16 for computing, fp32 for Adam
        sizes = {"parameters": (trained if work.rank else whole) * 2 + frozen, "gradients": setting.gradient * trained}
        sizes["optimizer"] = 4 * (1 + work.moments) * trained
    else:
        byte = 4 if setting.fp32 or work.width == 4 or work.rank else 2  # peft keeps an adapter in fp32
        sizes = {"parameters": byte * trained + frozen, "gradients": byte * trained}
        sizes["optimizer"] = byte * work.moments * trained
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


def _host(shape: Shape, work: Work, setting: Setting, nodes: int, states: dict[str, int]) -> dict[str, dict[str, int]]:
    """Parts of the fullest host's memory while the model is read, trained and saved.

    FSDP: local rank 0 of each node reads the whole model (`cpu_ram_efficient_loading`), and gives it up once each rank
    has its share, which is not cast before. ZeRO-3 reads through mapped files, a parameter at a time.
    """
    whole = shape.parameters * work.width
    saved = setting.gathered * (work.trained(shape) if work.rank else shape.parameters)
    reading = {"whole model, read": whole} if setting.engine == FSDP2 else {}
    if reading and setting.offload == "all":
        reading["parameters"] = round(whole / nodes)
    moments = {"training": states, "saving": states | {"weights gathered to save": saved}, "reading": reading}
    return {name: parts for name, parts in moments.items() if name == "training" or all(parts.values())}


def _buffers(shape: Shape, work: Work, setting: Setting, n: int) -> tuple[dict[str, int], int, int]:
    """Bytes of weights gathered at the loss and in the backward pass, of gradients in reduction, and of the step."""
    trained = work.trained(shape)
    matrix = work.rank * 2 * shape.hidden if work.rank else shape.largest_linear  # largest trained one of a layer
    output = 0 if work.rank else shape.embedding
    if setting.engine == ZERO3:
        # DeepSpeed gives a parameter back unless it is used again within max_reuse_distance, beside the module at work
        # and a prefetch that stops only once its bucket is over-full. The fused loss reads the output matrix outside of
        # its module: it then belongs to the whole model, and stays
        bucket, prefetch, reuse, group = (setting.bucket(key, shape.hidden) for key in BUCKETS)
        linear = shape.largest_linear
        kept = reuse + prefetch + 2 * linear
        live = 2 * min(kept + shape.embedding, shape.parameters)
        # the bucket, and what does not fit it: matrices that wait for two reductions, and a flat copy of one
        reduction = 2 * (bucket + (4 * matrix if matrix > bucket else bucket))
        step = 0 if setting.offload else 6 * min(group, -(-trained // n))  # a group's gradient: flat, then in fp32
        return {"loss": live, "backward": live}, reduction, step
    if setting.engine == FSDP2:
        # the embedding and the output matrix are the root's, gathered all through; beside a layer comes the next
        root = 2 * shape.embedding
        gathered = {"loss": 2 * (root + shape.layer), "backward": 2 * (root + 2 * shape.layer)}
        layer = shape.layer if not work.rank else trained // shape.layers
        return gathered, 2 * (layer + output), 0  # the output matrix' gradient waits for the root's end
    width = 4 if setting.fp32 else 2
    return {"loss": 0, "backward": 0}, width * trained if n > 1 else 0, 0  # data parallel: its buckets copy


def runnable(shape: Shape, work: Work, setting: Setting, gpu: Gpu, per_node: int, micro_batches: int) -> list[Memory]:
    """Memory on each number of nodes that holds a step of `micro_batches` in all, shared out evenly."""
    counts = [nodes for nodes in range(1, micro_batches // per_node + 1) if micro_batches % (nodes * per_node) == 0]
    shares = [(nodes, replace(work, accumulation=micro_batches // (nodes * per_node))) for nodes in counts]
    held = [memory(shape, share, setting, gpu, nodes, per_node) for nodes, share in shares]
    return [one for one in held if one.fits]
