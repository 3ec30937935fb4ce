"""An all-reduce over all ranks: is it right and fast? Each node runs `python -m hermes3.slurm.allreduce RANKS DEVICE`.

Bus bandwidth is what the slowest link carries: bytes / seconds x 2 (n - 1) / n for n ranks (nccl-tests,
doc/PERFORMANCE.md). torch measures it, over NCCL on GPUs and gloo on CPUs.
"""

import itertools
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from hermes3.slurm.queue import LIMIT, Srun

# GB/s below which the slow node is looked for: sockets carry 1 to 6, one link of 100 Gb/s 12 (docs/slurm.md)
FLOOR = 10.0
# Backend, bytes (large enough for the links to be the limit), repeats
OF_DEVICE = {"cuda": ("nccl", 2**30, 20), "cpu": ("gloo", 2**20, 3)}
STEPS = itertools.count(1)  # of this process
Measured = tuple[float, str]  # GB/s of bus bandwidth, what to print


def over(srun: Srun, nodes: list[str], gpu: str, per_node: int, out: Path) -> tuple[dict[str, str], str]:
    """({bad node: what it did}, what to print) of an all-reduce over all ranks of the job."""
    if len(nodes) * per_node == 1:
        return {}, "all-reduce: one rank has nobody to reduce with"
    least = float(os.environ.get("HERMES3_MIN_BUS_GBPS") or (0 if gpu == "cpu" else FLOOR))
    device = "cpu" if gpu == "cpu" else "cuda"

    def measured(group: list[str], name: str = "") -> Measured:
        return measure(srun, group, device, per_node, out / f"allreduce-{name or '-'.join(group)}.log")

    for name in ("all", "again"):  # what no node stands out in may have passed, as a taken port
        speed, text = measured(nodes, name)
        if speed >= least:
            return {}, f"all-reduce: {text}"
        with ThreadPoolExecutor(len(nodes)) as pool:
            if bad := suspects(lambda groups: [*pool.map(measured, groups)], nodes, per_node, least):
                break
    bad = bad or {node: "slow or failing, and no single node stands out" for node in nodes}
    return bad, f"all-reduce: {text}; {least:g} GB/s are asked for (HERMES3_MIN_BUS_GBPS)"


def suspects(together, nodes: list[str], per_node: int, least: float) -> dict[str, str]:
    """The nodes that are slow alone, or with both of their neighbours in a ring; {} where none stands out.
    `together`: groups of nodes that share none -> what each measures, all at once."""
    if per_node > 1:
        alone = zip(nodes, together([[node] for node in nodes]), strict=True)
        if bad := {node: f"alone: {text}" for node, (speed, text) in alone if speed < least}:
            return bad
    if len(nodes) < 3:
        return {}
    of_pairs: dict[str, list[Measured]] = {node: [] for node in nodes}
    ring, even = [*itertools.pairwise([*nodes, nodes[0]])], len(nodes) // 2 * 2
    for pairs in (ring[0:even:2], ring[1:even:2], ring[even:]):  # the pairs of a round share no node
        speeds = together([sorted(pair, key=nodes.index) for pair in pairs])
        for (left, right), (speed, text) in zip(pairs, speeds, strict=True):
            of_pairs[left].append((speed, f"with {right}: {text}"))
            of_pairs[right].append((speed, f"with {left}: {text}"))
    best = {node: max(speeds) for node, speeds in of_pairs.items()}
    return {node: text for node, (speed, text) in best.items() if speed < least}


def measure(srun: Srun, nodes: list[str], device: str, per_node: int, log: Path) -> Measured:
    """-1 GB/s: the ranks never met, or computed something wrong. `nodes` in the job's order: the first has rank 0."""
    # A port of this step's own: steps of one job may meet on one node, and jobs may share a node
    port = 20_000 + (int(os.environ.get("SLURM_JOB_ID", os.getpid())) * 37 + next(STEPS)) % 10_000
    line = ["-m", "hermes3.slurm.allreduce", str(per_node), device]
    code, stdout, stderr = srun.python(nodes, line, MASTER_ADDR=nodes[0], MASTER_PORT=str(port))
    log.write_text(stdout + stderr, encoding="utf-8")
    lines, ranks = [line for line in stdout.splitlines() if line.startswith('["busbw"')], len(nodes) * per_node
    if code == 0 and lines:
        _, speed, text = json.loads(lines[-1])
        return speed, f"{ranks} ranks, {speed:,.3g} GB/s bus bandwidth ({text})"
    return -1.0, f"{ranks} ranks {'not done in time' if code is None else f'failed with {code}'}, see {log}"


def one_rank(local: int, per_node: int, device: str) -> None:
    """On a node: reduce, check the sum, and on rank 0 print what was measured."""
    import torch
    import torch.distributed as dist

    node, nodes = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    rank, world = node * per_node + local, nodes * per_node
    backend, size, repeats = OF_DEVICE[device]
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    values = torch.full((size // 4,), float(rank), device=device)
    dist.all_reduce(values)
    if not torch.equal(values, torch.full_like(values, world * (world - 1) / 2)):
        raise ValueError(f"rank {rank}: the sum over all ranks is wrong: this node, or a link to it, spoils data")
    values.zero_()  # sums of sums would grow beyond fp32
    spent = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    seconds = statistics.median(spent)
    if rank == 0:
        speed = size / seconds * 2 * (world - 1) / world / 1e9
        version = ".".join(map(str, torch.cuda.nccl.version())) if device == "cuda" else torch.__version__
        text = f"{size / 2**20:,.0f} MiB in {1000 * seconds:,.1f} ms, {backend} {version}"
        print(json.dumps(["busbw", speed, text]), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    from torch.multiprocessing import start_processes  # once for all ranks, which are forked before CUDA is touched

    start_processes(one_rank, (int(sys.argv[1]), sys.argv[2]), int(sys.argv[1]), start_method="fork")
