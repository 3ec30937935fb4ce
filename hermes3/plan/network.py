"""What a step moves over the network at each way of sharding, and how much of that time arithmetic does not hide.

Modelled, not measured.
- Volumes: ZeRO, arXiv 1910.02054, section 7.2 (ZeRO-3 moves the weights twice and the gradients once); hpZ: ZeRO++,
  arXiv 2306.10209; copies per node: PyTorch FSDP, arXiv 2304.11277, hybrid sharding.
- Time: NCCL's rings, bytes x (ranks - 1) / ranks / bus bandwidth (nccl-tests, doc/PERFORMANCE.md). Between nodes that
  bandwidth is the rate of all adapters of one node, inside a node NVLink's in one direction.
"""

from dataclasses import dataclass

from hermes3.plan.memory import REPLICATED, ZERO3, Setting
from hermes3.plan.shapes import Shape, Work
from hermes3.recipe.hardware import Gpu

# Of a link's rate: all-reduce over two nodes with 400 GB/s each moved 362 GB/s (Hugging Face, The Ultra-Scale Playbook)
BUS = 0.9


@dataclass(frozen=True)
class Traffic:
    """Of one step: bytes that enter each node from others; seconds in all, and those that arithmetic does not hide."""

    bytes_per_node: float
    seconds: float
    exposed: float


def traffic(shape: Shape, work: Work, setting: Setting, gpu: Gpu, nodes: int, per_node: int, compute: float) -> Traffic:
    """`compute`: seconds of arithmetic per step. The next layer's gather, and reductions, run beside it."""
    everyone, weights, gradients = nodes * per_node, 2 * shape.parameters, 2 * work.trained(shape)
    within = BUS * gpu.interconnect / 2
    between = min(BUS * gpu.network, within) if nodes > 1 else within
    group = min(setting.group or everyone, everyone)
    group_nodes = max(1, group // per_node)
    near = within if group_nodes == 1 else between
    gather = regather = _ring(weights, group, group_nodes, near)
    # shards are reduced in their group, and then over its copies, which is a reduction and a gather
    shards = _ring(gradients, group, group_nodes, near)
    copies = _ring(2 * gradients, everyone // group, nodes // group_nodes, between)
    reduce, reductions = (shards[0] + copies[0], shards[1] + copies[1]), 1
    if setting.engine == ZERO3:  # hpZ keeps a copy of the weights per group, for the backward pass alone
        gather, reduce = (_ring(size, everyone, nodes, between) for size in (weights, gradients))
        reductions = work.accumulation  # the other engines reduce once per step
    elif setting.engine == REPLICATED:  # fp32 gradients
        gather, regather, reduce = (0.0, 0.0), (0.0, 0.0), _ring(4 * gradients, everyone, nodes, between)
    forward = compute / work.accumulation / (2 if work.rank else 3)
    backward = compute / work.accumulation - forward
    beside = reduce[0] if setting.overlap else 0.0
    exposed = work.accumulation * max(0.0, gather[0] - forward)
    exposed += (work.accumulation - reductions) * max(0.0, regather[0] - backward)
    exposed += reductions * (max(0.0, regather[0] + beside - backward) + reduce[0] - beside)
    seconds, entering = (work.accumulation * (gather[i] + regather[i]) + reductions * reduce[i] for i in (0, 1))
    return Traffic(entering, seconds, exposed)


def _ring(size: float, ranks: int, nodes: int, rate: float) -> tuple[float, float]:
    """(seconds, bytes that enter a node) of gathering or reducing `size` bytes over `ranks` GPUs in `nodes` nodes."""
    return size * (ranks - 1) / ranks / rate, size * (nodes - 1) / nodes
