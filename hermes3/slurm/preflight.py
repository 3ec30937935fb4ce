"""`python -m hermes3.slurm.preflight RECIPE LOGS [SRUN OPTIONS]`: may the nodes of this job train?

Every node answers for itself (`node_check`), then all reduce together (`allreduce`). LOGS is the folder of this
attempt. Without a job this machine is checked. Exit codes:
- 0: train
- 1: every node has the fault
- 3: the nodes in LOGS/../bad_nodes are bad
- 4: somebody ends the job or queues it again, so a node that did not answer is not to blame
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from hermes3.files import UserError, write_text
from hermes3.model_folder import on_hub
from hermes3.plan.cost import mix_of
from hermes3.plan.plan import plan
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import allreduce
from hermes3.slurm.node_check import Expected
from hermes3.slurm.queue import LIMIT, Srun
from hermes3.slurm.verdict import Answers, blame, clocks, exclude

REQUEUE, ENDED = 3, 4


def expected(path: Path, out: Path) -> tuple[Expected, list[str]]:
    """What the recipe needs of a node, and what this node lacks to say it all: it may itself be the bad one."""
    recipe, lacks, tokens, storage, host_memory = read(path), [], {}, 0.0, 0.0
    hardware, base = hardware_of(path, recipe), str(recipe.get("base_model"))
    paths = {"repository": "", "recipe": path, "output_dir": recipe.get("output_dir"), "mix": mix_of(recipe)}
    texts = {name: str(Path(str(one)).absolute()) for name, one in paths.items()}
    texts["base_model"] = None if on_hub(base) else str(Path(base).absolute())
    try:
        planned = plan(path, packed=False)
        storage, host_memory = planned.checkpoints.storage, float(sum(planned.own.host.values()))
    except ValueError as error:
        lacks.append(f"{error}")
    for folder in (out.absolute(), Path(texts["output_dir"])):
        token = folder / f".preflight-{os.environ.get('SLURM_JOB_ID', os.getpid())}"
        try:
            write_text(token, content := os.urandom(16).hex())
            tokens[str(token)] = content
        except OSError as error:
            lacks.append(f"{folder}: {error}")
    size = {"storage": storage, "host_memory": host_memory, "gpus_per_node": hardware.gpus_per_node}
    return Expected(gpu=hardware.gpu, tokens=tokens, **size, **texts), lacks


def ask(srun: Srun, nodes: list[str], needs: Expected, out: Path) -> Answers:
    """node -> its answer, kept as NODE.json too. A node that gives none has one check, `answer`, that is bad.
    One step per node, so that one which cannot start, or hangs, keeps no other from answering."""
    offsets = {}

    def of_one(i: int) -> dict:
        node, before = nodes[i], time.time()
        question = json.dumps(asdict(needs) | {"share": (i, len(nodes))})
        code, stdout, stderr = srun.python([node], ["-m", "hermes3.slurm.node_check"], question)
        try:
            answer = json.loads(stdout.strip().splitlines()[-1])
            offsets[node] = max(answer["clock"] - time.time(), 0) + min(answer["clock"] - before, 0)
            here = {"ok": True, "text": f"in {answer['seconds']} s", "remedy": ""}
            answer["checks"] = {"answer": here} | answer["checks"]
        except (ValueError, IndexError):
            lines = stderr.strip().splitlines() or ["no word"]
            last = ([line for line in lines if not line.startswith(("srun:", "slurmstepd"))] or lines)[-1]
            why = f"no answer in {LIMIT:g} s, last at {last}" if code is None else f"exit code {code}: {last}"
            remedy = "log in to it: is the shared file system there, does the environment start?"
            answer = {"node": node, "checks": {"answer": {"ok": False, "text": why, "remedy": remedy}}}
        _keep(out, {node: answer})
        return answer

    with ThreadPoolExecutor(len(nodes)) as pool:
        answers = dict(zip(nodes, pool.map(of_one, range(len(nodes))), strict=True))
    for node, check in clocks(offsets).items():
        answers[node]["checks"]["clock"] = check
    return answers


def _keep(out: Path, answers: Answers) -> None:
    for node, answer in answers.items():
        write_text(out / f"{node}.json", json.dumps(answer, indent=1) + "\n")


def table(answers: Answers) -> str:
    """A line per node, a column per check: ok, BAD, or - for what was not looked at."""
    names = list(dict.fromkeys(name.split()[0] for answer in answers.values() for name in answer["checks"]))
    wide, skipped = max(4, *map(len, answers)), {}
    lines = [" ".join([f"{'node':{wide}}", *names])]
    for node, answer in answers.items():
        ok = {
            name: [check["ok"] for full, check in answer["checks"].items() if full.split()[0] == name] for name in names
        }
        cells = ["BAD" if False in ok[name] else "ok" if True in ok[name] else "-" for name in names]
        lines.append(" ".join([node.ljust(wide), *map(str.ljust, cells, map(len, names))]).rstrip())
        skipped |= {name: check["text"] for name, check in answer["checks"].items() if check["ok"] is None}
    return "\n".join([*lines, *(f"{name}: not looked at, as {why}" for name, why in skipped.items())])


def run(path: Path, logs: Path, options: list[str]) -> int:
    """The exit code; the table, the faults and what follows from them are printed."""
    start, srun, out = time.time(), Srun(options), logs / "preflight"
    nodes = srun.nodes()
    needs, lacks = expected(path, out)
    try:
        answers = ask(srun, nodes, needs, out)
    finally:
        for token in needs.tokens:
            Path(token).unlink(missing_ok=True)
    bad, shared = blame(answers)
    summary = "all-reduce: not tried"
    if not (bad or shared or lacks):
        slow, summary = allreduce.over(srun, nodes, needs.gpu, needs.gpus_per_node, out)
        bad = {node: [f"all-reduce: {fault}"] for node, fault in slow.items()}
        for node in nodes:
            check = {"ok": node not in bad, "text": slow.get(node, summary), "remedy": ""}
            answers[node]["checks"]["all-reduce"] = check
    _keep(out, answers)
    print(f"preflight of {len(nodes)} nodes, {time.time() - start:.0f} s: {path}\n{table(answers)}\n{summary}")
    for node, lines in bad.items():
        print("\n".join(f"{node}: {line}" for line in lines))
    if not (bad or shared or lacks):
        return 0
    if not srun.running():
        print("preflight: the job is being ended, or was queued again, from outside: its nodes are not to blame")
        return ENDED
    if shared:
        raise UserError("preflight: the same on every node, so no node's fault:\n  " + "\n  ".join(shared))
    if not bad or "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"preflight: {'; '.join(lacks) or 'this machine is not fit for the recipe, see above'}")
    exclude(bad, len(nodes), logs.absolute().parent / "bad_nodes")
    return REQUEUE


if __name__ == "__main__":
    try:
        sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
    except ValueError as error:
        sys.stdout.flush()
        sys.exit(f"hermes3: {error}")
