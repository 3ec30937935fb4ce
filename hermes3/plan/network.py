"""What a step moves over the network at each way of sharding, and how much of that time arithmetic does not hide.

Modelled, not measured. Volumes: ZeRO, arXiv 1910.02054, section 7.2 (ZeRO-3 moves the weights twice and the gradients
once); hpZ: ZeRO++, arXiv 2306.10209; copies per node: PyTorch FSDP, arXiv 2304.11277, hybrid sharding. Time: NCCL's
rings, bytes x (ranks - 1) / ranks / bus bandwidth (nccl-tests, doc/PERFORMANCE.md). Between nodes that bandwidth is the
rate of all adapters of one node, inside a node NVLink's in one direction.
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


@dataclass(frozen=True)
class Ring:
    """One gather or reduction of `size` bytes over `ranks` GPUs in `nodes` nodes, at `rate` bytes/s."""

    size: float
    ranks: int
    nodes: int
    rate: float

    @property
    def seconds(self) -> float:
        return self.size * (self.ranks - 1) / self.ranks / self.rate

    @property
    def entering(self) -> float:
        """Bytes that enter a node."""
        return self.size * (self.nodes - 1) / self.nodes


def traffic(
    shape: Shape, work: Work, setting: Setting, gpu: Gpu, nodes: int, per_node: int, arithmetic: float
) -> Traffic:
    """`arithmetic`: seconds of it per step. The next layer's gather, and reductions, run beside it."""
    everyone, weights, gradients = nodes * per_node, 2 * shape.parameters, 2 * work.trained(shape)
    within = BUS * gpu.interconnect / 2
    between = min(BUS * gpu.network, within) if nodes > 1 else within
    group = min(setting.group or everyone, everyone)
    group_nodes = max(1, group // per_node)
    near = within if group_nodes == 1 else between
    gather = regather = [Ring(weights, group, group_nodes, near)]
    # shards are reduced in their group, and then over its copies, which is a reduction and a gather
    copies = Ring(2 * gradients, everyone // group, nodes // group_nodes, between)
    reduce, reductions = [Ring(gradients, group, group_nodes, near), copies], 1
    if setting.engine == ZERO3:  # hpZ keeps a copy of the weights per group, for the backward pass alone
        gather, reduce = [Ring(weights, everyone, nodes, between)], [Ring(gradients, everyone, nodes, between)]
        reductions = work.accumulation  # the other engines reduce once per step
    elif setting.engine == REPLICATED:  # fp32 gradients
        gather, regather, reduce = [], [], [Ring(4 * gradients, everyone, nodes, between)]
    forward = arithmetic / work.accumulation / (2 if work.rank else 3)
    backward = arithmetic / work.accumulation - forward
    gathering, again, reducing = (sum(ring.seconds for ring in rings) for rings in (gather, regather, reduce))
    beside = reducing if setting.overlap else 0.0
    exposed = work.accumulation * max(0.0, gathering - forward)
    exposed += (work.accumulation - reductions) * max(0.0, again - backward)
    exposed += reductions * (max(0.0, again + beside - backward) + reducing - beside)
    entering = work.accumulation * sum(ring.entering for ring in (*gather, *regather))
    entering += reductions * sum(ring.entering for ring in reduce)
    return Traffic(entering, work.accumulation * (gathering + again) + reductions * reducing, exposed)
