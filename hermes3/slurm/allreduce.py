"""An all-reduce over all ranks: is it right and fast? Each node runs `python -m hermes3.slurm.allreduce RANKS DEVICE`.

Bus bandwidth is what the slowest link carries: bytes / seconds x 2 (n - 1) / n for n ranks (nccl-tests,
doc/PERFORMANCE.md). torch measures it, over NCCL on GPUs and gloo on CPUs.
"""

import itertools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from hermes3.slurm.queue import Srun, limit

# GB/s below which the slow node is looked for. Sockets over a service network carry 1 to 6, where NCCL found no
# InfiniBand; one link of 100 Gb/s carries 12. docs/slurm.md says what to set for better ones.
FLOOR = 10.0
SIZE = {"cuda": 2**30, "cpu": 2**20}  # bytes: large enough for the links to be the limit
REPEATS = {"cuda": 20, "cpu": 3}
STEPS = itertools.count(1)  # of this process


def floor(gpu: str) -> float:
    """GB/s; on CPUs none."""
    return float(os.environ.get("HERMES3_MIN_BUS_GBPS") or (0 if gpu == "cpu" else FLOOR))


def over(srun: Srun, nodes: list[str], gpu: str, per_node: int, out: Path) -> tuple[dict[str, str], str]:
    """({bad node: what it did}, what to print) of an all-reduce over all ranks of the job."""
    if len(nodes) * per_node == 1:
        return {}, "all-reduce: one rank has nobody to reduce with"
    least = floor(gpu)
    for log in ("allreduce.log", "allreduce-again.log"):  # what no node stands out in may have passed, as a taken port
        speed, text = measure(srun, nodes, gpu, per_node, out / log)
        if speed >= least:
            return {}, f"all-reduce: {text}"
        if bad := suspects(srun, nodes, gpu, per_node, least, out):
            break
    bad = bad or {node: "slow or failing, and no single node stands out" for node in nodes}
    return bad, f"all-reduce: {text}; {least:g} GB/s are asked for (HERMES3_MIN_BUS_GBPS)"


def suspects(srun: Srun, nodes: list[str], gpu: str, per_node: int, least: float, out: Path) -> dict[str, str]:
    """The nodes that are slow alone, or with both of their neighbours in a ring of pairs.

    A good node has a good neighbour, unless both are bad. None where no node stands out, as of two that are well alone.
    """

    def together(groups: list[list[str]]) -> list[tuple[float, str]]:
        def one(group: list[str]) -> tuple[float, str]:
            return measure(srun, group, gpu, per_node, out / f"allreduce-{'-'.join(group)}.log")

        with ThreadPoolExecutor(len(groups)) as pool:
            return list(pool.map(one, groups))

    if per_node > 1:
        alone = zip(nodes, together([[node] for node in nodes]), strict=True)
        if bad := {node: f"alone: {text}" for node, (speed, text) in alone if speed < least}:
            return bad
    if len(nodes) < 3:
        return {}
    with_neighbour: dict[str, list[tuple[float, str]]] = {node: [] for node in nodes}
    ring = list(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    rounds = [ring[0:-1:2], ring[1:-1:2], ring[-1:]] if len(nodes) % 2 else [ring[0::2], ring[1::2]]
    for pairs in rounds:  # the pairs of a round share no node
        speeds = together([sorted(pair, key=nodes.index) for pair in pairs])
        for (left, right), (speed, text) in zip(pairs, speeds, strict=True):
            with_neighbour[left].append((speed, f"with {right}: {text}"))
            with_neighbour[right].append((speed, f"with {left}: {text}"))
    best = {node: max(speeds) for node, speeds in with_neighbour.items()}
    return {node: text for node, (speed, text) in best.items() if speed < least}


def measure(srun: Srun, nodes: list[str], gpu: str, per_node: int, log: Path) -> tuple[float, str]:
    """(GB/s of bus bandwidth, what to print). -1: the ranks did not come together, or computed something wrong.

    `nodes` in the job's order, in which Slurm numbers the tasks: the first holds rank 0, where the ranks meet.
    """
    ranks = len(nodes) * per_node
    # A port of this step's own: steps of one job may meet on one node, and jobs may share a node
    port = 20_000 + (int(os.environ.get("SLURM_JOB_ID", os.getpid())) * 37 + next(STEPS)) % 10_000
    arguments = ["-m", "hermes3.slurm.allreduce", str(per_node), "cpu" if gpu == "cpu" else "cuda"]
    env = {"MASTER_ADDR": nodes[0], "MASTER_PORT": str(port)}
    code, stdout, stderr = srun.python(nodes, arguments, env=env)
    log.write_text(stdout + stderr, encoding="utf-8")
    lines = [line for line in stdout.splitlines() if line.startswith('{"ranks"')]
    if code == 0 and lines:
        result = json.loads(lines[-1])
        took = f"{result['bytes'] / 2**20:,.0f} MiB in {1000 * result['seconds']:,.1f} ms, {result['backend']}"
        return result["busbw"], f"{ranks} ranks, {result['busbw']:,.3g} GB/s bus bandwidth ({took})"
    return -1.0, f"{ranks} ranks {'not done in time' if code is None else f'failed with {code}'}, see {log}"


# on a node


def one_rank(local: int, per_node: int, device: str) -> None:
    """Reduce, check the sum, and on rank 0 print what was measured."""
    import torch
    import torch.distributed as dist

    node, nodes = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    rank, world = node * per_node + local, nodes * per_node
    if device == "cuda":
        torch.cuda.set_device(local)
    init = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend, timeout = {"cuda": "nccl", "cpu": "gloo"}[device], timedelta(seconds=limit())
    dist.init_process_group(backend, init_method=init, rank=rank, world_size=world, timeout=timeout)
    values = torch.full((SIZE[device] // 4,), float(rank), device=device)
    dist.all_reduce(values)
    if not torch.equal(values, torch.full_like(values, world * (world - 1) / 2)):
        raise ValueError(f"rank {rank}: the sum over all ranks is wrong: this node, or a link to it, spoils data")
    values.zero_()  # sums of sums would grow beyond fp32
    spent = []
    for _ in range(REPEATS[device]):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    seconds = sorted(spent)[len(spent) // 2]
    if rank == 0:
        busbw = SIZE[device] / seconds * 2 * (world - 1) / world / 1e9
        version = ".".join(map(str, torch.cuda.nccl.version())) if device == "cuda" else torch.__version__
        result = {"ranks": world, "bytes": SIZE[device], "seconds": seconds, "busbw": busbw}
        print(json.dumps(result | {"backend": f"{backend} {version}"}), flush=True)
    dist.destroy_process_group()


def ranks_of_node(per_node: int, device: str) -> int:
    """Run this node's ranks; the highest exit code."""
    import torch  # noqa: F401, once for all ranks of the node, which are forked before CUDA is touched

    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_rank, args=(i, per_node, device)) for i in range(per_node)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode or 0) for rank in ranks)


if __name__ == "__main__":
    sys.exit(ranks_of_node(int(sys.argv[1]), sys.argv[2]))
