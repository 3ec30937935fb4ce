"""`python -m hermes3.slurm.preflight RECIPE LOGS [SRUN OPTIONS]`: may the nodes of this job train?

Every node answers for itself (`node_check`), then all reduce together (`allreduce`). Exit code 0: train. 1: every node
has the fault, so it is the recipe's, the data's or the site's, and another attempt would meet it. 3: the nodes in
LOGS/../bad_nodes are bad; launch/preflight.sh queues the job again without them. 4: somebody ends the job or queues it
again meanwhile, so a node that did not answer is not to blame. LOGS is the folder of this attempt in the job's. Without
a job this machine is checked.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from hermes3.files import UserError, write_text
from hermes3.slurm import allreduce
from hermes3.slurm.node_check import Expected
from hermes3.slurm.queue import Srun, limit
from hermes3.slurm.verdict import Answers, blame, clocks, compare, exclude

GO, STOP, REQUEUE, ENDED = 0, 1, 3, 4


def expected(path: Path, out: Path) -> tuple[Expected, list[str]]:
    """What the recipe at `path` needs of a node, and what this node lacks to say it all: it may itself be the bad one.

    `UserError` when the recipe cannot be read.
    """
    from hermes3.plan.cost import mix_of
    from hermes3.plan.plan import plan
    from hermes3.recipe.hardware import hardware_of
    from hermes3.recipe.read import on_hub, read

    recipe, lacks = read(path), []
    hardware = hardware_of(path, recipe)
    output, base = Path(str(recipe.get("output_dir"))).absolute(), Path(str(recipe.get("base_model")))
    storage = host_memory = 0.0
    try:
        planned = plan(path, packed=False)
        storage, host_memory = planned.checkpoints.storage, float(sum(planned.own.host.values()))
    except ValueError as error:
        lacks.append(f"{error}")
    tokens = {}
    for folder in (out.absolute(), output):
        token = folder / f".preflight-{os.environ.get('SLURM_JOB_ID', os.getpid())}"
        try:
            write_text(token, content := os.urandom(16).hex())
            tokens[str(token)] = content
        except OSError as error:
            lacks.append(f"{folder}: {error}")
    needs = Expected(
        gpu=hardware.gpu,
        gpus_per_node=hardware.gpus_per_node,
        repository=str(Path.cwd()),
        recipe=str(path.absolute()),
        output_dir=str(output),
        storage=storage,
        host_memory=host_memory,
        base_model=None if on_hub(str(base)) else str(base.absolute()),
        mix=str(mix_of(recipe).absolute()),
        tokens=tokens,
    )
    return needs, lacks


def shares(mix: Path, nodes: int) -> list[list[str]]:
    """The training files of the mix that each node hashes: every file twice, on two nodes where there are two.

    A file that is broken for one of its two readers is that node's fault, for both the file's. A core hashes 0.8 GB/s:
    1.6 GB, the mix at full size, take one node two seconds.
    """
    try:
        manifest = json.loads((mix / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [[] for _ in range(nodes)]  # each node says so itself
    names = sorted(name for name in manifest["output"].get("files", {}) if name.startswith("train/"))
    return [[name for i, name in enumerate(names) if node in {i % nodes, (i + 1) % nodes}] for node in range(nodes)]


def ask(srun: Srun, nodes: list[str], needs: Expected, out: Path) -> Answers:
    """node -> its answer, kept as NODE.json too. A node that gives none has one check, `answer`, that is bad.

    One step per node, so that one which cannot start, or hangs, keeps no other from answering.
    """
    files, offsets = shares(Path(needs.mix or ""), len(nodes)), {}

    def of_one(i: int) -> dict:
        node, question = nodes[i], json.dumps(asdict(needs) | {"hash_files": files[i]})
        before = time.time()
        code, stdout, stderr = srun.python([node], ["-m", "hermes3.slurm.node_check"], question)
        try:
            answer = json.loads(stdout.strip().splitlines()[-1])
            offsets[node] = max(answer["clock"] - time.time(), 0) + min(answer["clock"] - before, 0)
            in_time = {"ok": True, "text": f"in {answer['seconds']} s", "remedy": ""}
            answer["checks"] = {"answer": in_time} | answer["checks"]
        except (ValueError, IndexError):
            lines = [line for line in stderr.strip().splitlines() if not line.startswith(("srun:", "slurmstepd"))]
            last = (lines or stderr.strip().splitlines() or ["no word"])[-1]
            why = f"no answer in {limit():g} s, last at {last}" if code is None else f"exit code {code}: {last}"
            remedy = "log in to it: is the shared file system there, does the environment start?"
            answer = {"node": node, "checks": {"answer": {"ok": False, "text": why, "remedy": remedy}}}
        write_text(out / f"{node}.json", json.dumps(answer, indent=1) + "\n")
        return answer

    with ThreadPoolExecutor(len(nodes)) as pool:
        answers = dict(zip(nodes, pool.map(of_one, range(len(nodes))), strict=True))
    for node, check in clocks(offsets).items():
        answers[node]["checks"]["clock"] = check
    return answers


def table(answers: Answers) -> str:
    """A line per node, a column per check: ok, BAD, or - for what was not looked at."""
    names = list(dict.fromkeys(name.split()[0] for answer in answers.values() for name in answer["checks"]))
    wide = max(4, *map(len, answers))
    lines, skipped = [" ".join([f"{'node':{wide}}", *names])], {}
    for node, answer in answers.items():
        cells = []
        for name in names:
            ok = [check["ok"] for full, check in answer["checks"].items() if full.split()[0] == name]
            cells.append(f"{'BAD' if False in ok else 'ok' if True in ok else '-':{len(name)}}")
        lines.append(" ".join([f"{node:{wide}}", *cells]).rstrip())
        skipped |= {name: check["text"] for name, check in answer["checks"].items() if check["ok"] is None}
    return "\n".join([*lines, *(f"{name}: not looked at, as {why}" for name, why in skipped.items())])


def run(path: Path, logs: Path, options: list[str]) -> int:
    """The exit code; the table, the faults and what follows from them are printed."""
    start = time.time()
    srun = Srun(options)
    nodes = srun.nodes()
    out = logs / "preflight"
    needs, lacks = expected(path, out)
    try:
        answers = ask(srun, nodes, needs, out)
    finally:
        for token in needs.tokens:
            Path(token).unlink(missing_ok=True)
    compare(answers)
    bad, shared = blame(answers)
    summary = "all-reduce: not tried"
    if not (bad or shared or lacks):
        slow, summary = allreduce.over(srun, nodes, needs.gpu, needs.gpus_per_node, out)
        bad = {node: [f"all-reduce: {fault}"] for node, fault in slow.items()}
        for node in nodes:
            check = {"ok": node not in bad, "text": slow.get(node, summary), "remedy": ""}
            answers[node]["checks"]["all-reduce"] = check
    for node, answer in answers.items():
        write_text(out / f"{node}.json", json.dumps(answer, indent=1) + "\n")
    print(f"preflight of {len(nodes)} nodes, {time.time() - start:.0f} s: {path}\n{table(answers)}\n{summary}")
    for node, lines in bad.items():
        print("\n".join(f"{node}: {line}" for line in lines))
    if (bad or shared or lacks) and not srun.running():
        print("preflight: the job is being ended, or was queued again, from outside: its nodes are not to blame")
        return ENDED
    if shared:
        raise UserError("preflight: the same on every node, so no node's fault:\n  " + "\n  ".join(shared))
    if lacks and not bad:
        raise UserError(f"preflight: {'; '.join(lacks)}")
    if not bad:
        return GO
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("preflight: this machine is not fit for the recipe, see above")
    exclude(bad, len(nodes), logs.absolute().parent / "bad_nodes")
    return REQUEUE


if __name__ == "__main__":
    try:
        sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
    except ValueError as error:
        sys.stdout.flush()
        sys.exit(f"hermes3: {error}")
