"""Whose fault is it? Of a run that crashed, by its logs; of nodes that must not train, by what all of them answer.

`python -m hermes3.slurm.verdict LOGS/attempt_N`: try a run that crashed again (exit code 0), or stop (1), and why; the
error itself comes last. What stops it:
- a user's error, which the next attempt would meet too
- a crash that was there before (`crash.json`), with the same message at the same place of the run
- more crashes than `MAX_CRASHES`
A node whose ranks alone meet what a machine can cause is left out of the next attempt. The words that tell faults apart
are in words.yml.
"""

import json
import math
import os
import re
import statistics
import sys
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hermes3.files import UserError, read_json, write_text
from hermes3.slurm import queue
from hermes3.train.checkpoints import newest_complete, step_of

# Llama 3's training lost something every 16 days for each 128 GPUs (Grattafiori et al. 2024, section 3.3.4)
MAX_CRASHES = 5
AT_ONCE = 2.0  # seconds
LINES, AT_END = 60, 60  # of a message that are shown; below an error: with more, it was caught, and the process went on
TAIL = 400_000  # bytes of a log that are read: far more than the longest traceback
SKEW = 5.0  # seconds that a node's clock may be off: the logs of ranks are read side by side
WORDS = SimpleNamespace(**queue.WORDS["verdict"])
SAYS = SimpleNamespace(**{name: queue.pattern("verdict", name) for name in vars(WORDS)})  # as regular expressions
Answers = dict[str, dict[str, Any]]  # node -> {"checks": {name: {"ok", "text", "remedy", "same"}}}, as of `node_check`


def tail(log: Path) -> str:
    """The end of a log: a line for each state of a progress bar, and no rank before the lines of a traceback."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)


def last_error(text: str) -> tuple[str, str] | None:
    """Class and message of the exception that ended the process: in a chain, a machine's or else the last."""
    errors: list[tuple[str, str]] = []
    for start in SAYS.traceback.finditer(text):
        above = "\n".join(text[max(0, start.start() - 400) : start.start()].rstrip().splitlines()[-1:])
        if SAYS.no_end.search(above) or not (error := _error(text[start.end() :])):
            continue
        errors = [*(errors if SAYS.chained.match(above) else []), error]
        if SAYS.epoch.search(text, start.start()):  # training went on
            errors = []
    if not errors and (fatal := SAYS.fatal.findall(text)):
        return "Fatal", fatal[-1].strip()
    machines = (error for error in errors if SAYS.of_node.search(error[1]) or "NCCL" in error[1])
    return next(machines, errors[-1]) if errors else None


def _error(traceback: str) -> tuple[str, str] | None:
    lines = traceback.splitlines()[1:]
    for number, line in enumerate(lines):
        if error := SAYS.error.match(line):  # the frames and their carets are indented, the exception is not
            below = lines[number + 1 :]
            others = [one for one in below if one[:1].strip() and not SAYS.others.match(one)]
            if len(others) > AT_END and len(others) > len(below) / 2:  # most lines of a long message are indented
                return None
            return error[1], "\n".join([line, *islice(takewhile(lambda one: not SAYS.others.match(one), below), LINES)])
    return None


def last_words(text: str) -> tuple[str, str] | None:
    """What a program that never took a step says as it ends itself without a traceback."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    if not lines or SAYS.epoch.search(text) or SAYS.traceback.search(text) or not SAYS.last_words.match(lines[-1]):
        return None
    return "Exit", "\n".join(lines[-LINES // 3 :])


def crash(attempt: Path) -> dict[str, Any]:
    """What ended the attempt: `log`, `node`, `kind` (class of the error), `message`, `epoch` (the last that is logged).

    The cause goes before what it makes others say, and the first in time before later ones; of errors at once a user's
    goes first. `of_user`: another attempt would meet it. `alone`: the one of several nodes that has met it.
    """
    ranks = sorted(attempt.glob("rank_*.log"))
    logs = ranks or sorted(attempt.glob("*.log"))  # preparation has ended well where ranks have begun
    texts = {log: tail(log) for log in logs}
    errors = [(log, *error) for log, text in texts.items() if (error := last_error(text))]
    errors = errors or [(log, *words) for log, text in texts.items() if (words := last_words(text))]
    first = min((log.stat().st_mtime for log, _, words in errors if not SAYS.peer.search(words)), default=0.0)

    def order(error: tuple[Path, str, str]) -> tuple[bool, bool, bool]:
        log, kind, words = error
        return bool(SAYS.peer.search(words)), log.stat().st_mtime > first + AT_ONCE, kind not in WORDS.users

    errors.sort(key=order)
    log, kind, message = errors[0] if errors else (None, None, "")
    epochs, machine = SAYS.epoch.findall(texts.get(attempt / "rank_0.log", "")), SAYS.of_node.search(message)
    page: dict[str, Any] = {"log": log and log.name, "node": log and _node(log), "kind": kind, "message": message}
    page |= {"epoch": epochs[-1] if epochs else None, "of_user": kind in WORDS.users and not machine, "alone": None}
    if errors and not SAYS.peer.search(message):
        met = [other for other, same, words in errors if same == kind and not SAYS.peer.search(words)]
        page["of_user"] |= len(met) == max(1, len(ranks)) and kind in WORDS.users + WORDS.shared
        nodes, of = {_node(one) for one in ranks}, {_node(one) for one in met}
        alone = len(of) == 1 and of < nodes and (machine or kind in WORDS.shared)
        return page | {"nodes": len(nodes), "alone": page["node"] if alone else None}
    everything = "\n".join([*texts.values(), *map(tail, attempt.glob("node_*.log")), _job_log(attempt)])
    if full := SAYS.out_of_memory.search(everything):
        text = f"a node's own memory was full: {full[0].strip()}"
        return page | {"log": None, "node": None, "of_user": True, "kind": "OutOfMemoryError", "message": text}
    # of errors each says that another rank is gone, which was killed; or that all wait for each other
    if not re.search("[Tt]imed? ?out|watchdog", message):
        page |= {"kind": "Killed" if ranks else "NotStarted", "of_user": False}
    hint = f"; but: {full[0].strip()}" if (full := SAYS.disk.search(everything)) else ""
    return page | {"message": (message or WORDS.vague[page["kind"]]) + hint, "hint": hint}


def _job_log(attempt: Path) -> str:
    """What Slurm itself has written of this attempt into the job's log, to which this process prints."""
    log = Path("/proc/self/fd/1").resolve()
    _, begun, text = (tail(log) if log.is_file() else "").rpartition(f"{attempt.name.replace('_', ' ')} on ")
    return text if begun else ""


def _node(log: Path) -> str | None:
    file = log.with_suffix(".node")  # rank.sh
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def verdict(attempt: Path, notified: bool = False) -> tuple[bool, str]:
    """Whether to try again, and why. `notified`: it was told to end, which is no crash if it has saved a checkpoint.
    Reads `start.json`, the checkpoint that it began from; writes `crash.json`, and a bad node into ../bad_nodes."""
    now, begun = crash(attempt), attempt / "start.json"
    place = f"epoch {now['epoch']}" if now["epoch"] else "before the first step"
    if notified and begun.is_file():
        page = read_json(begun, "output_dir", "step")
        if (newest := newest_complete(Path(page["output_dir"]))) and step_of(newest) > page["step"]:
            return True, f"{attempt.name}: ended on notice, in {place}"
    if notified and now["kind"] in WORDS.vague:
        now |= {"kind": "NoCheckpoint", "message": WORDS.vague["NoCheckpoint"] + now["hint"]}
    before = [read_json(path) for path in attempt.parent.glob("attempt_*/crash.json")]
    write_text(attempt / "crash.json", json.dumps(now, indent=1))
    most = int(os.environ.get("HERMES3_MAX_CRASHES", MAX_CRASHES))
    again = False
    if now["of_user"]:
        why = "an error that another attempt would meet too"
    elif now["kind"] not in WORDS.vague and _signature(now) in map(_signature, before):
        why = "the same crash as before, at the same place"
    else:
        why = f"crash {len(before) + 1} of at most {most} (HERMES3_MAX_CRASHES)"
        again = len(before) + 1 < most
        if again and (node := now["alone"]):
            try:
                exclude({node: [now["message"].splitlines()[0]]}, now["nodes"], attempt.parent / "bad_nodes")
                why += f"; {node} alone has met it, and is left out"
            except UserError as error:
                again, why = False, f"{error}"
    where = (now["log"] or "all ranks") + (f" on {now['node']}" if now["node"] else "")
    return again, f"{attempt.name}, {where}, {place}: {why}\n{now['message']}"


def _signature(crash: dict[str, Any]) -> tuple:
    """What two crashes share that are one: all but the numbers, which are of processes, ports and addresses."""
    return crash["kind"], re.sub(r"0x[0-9a-f]+|\d+", "#", crash["message"]), crash["epoch"]


def clocks(offsets: dict[str, float]) -> dict[str, dict[str, Any]]:
    """A check for each node, by how far its clock is from the first node's, in s: right is what most nodes have."""
    checks, apart = {}, max(offsets.values(), default=0) - min(offsets.values(), default=0)
    near = {node: [abs(mine - other) <= SKEW for other in offsets.values()] for node, mine in offsets.items()}
    most = [mine for node, mine in offsets.items() if sum(near[node]) * 2 > len(offsets)]
    for node, mine in offsets.items():
        text = f"the nodes' clocks differ by {apart:.0f} s, and nobody can tell which is right"
        if most:
            text = f"its clock is off by {abs(mine - statistics.median(most)):.0f} s"
        checks[node] = {"ok": mine in most, "text": text, "remedy": "set its clock (chrony or ntpd)"}
    return checks


def blame(answers: Answers) -> tuple[dict[str, list[str]], list[str]]:
    """(bad, shared): faults by node, and the faults that all nodes have which looked, so not the nodes' own.
    Bad is also what must be the same everywhere and is not what most have; the first node has the casting vote."""
    bad: dict[str, list[str]] = {}
    shared: list[str] = []
    for name in dict.fromkeys(name for answer in answers.values() for name in answer["checks"]):
        looked = {node: answer["checks"][name] for node, answer in answers.items() if name in answer["checks"]}
        alike = [check for check in looked.values() if check["ok"] and check.get("same")]
        usual = Counter(check["same"] for check in alike).most_common(1)
        others = next((check["text"].split(", ") for check in alike if check["same"] == usual[0][0]), [])
        for check in alike:
            if check["same"] != usual[0][0]:
                mine = check["text"].split(", ")
                text = f"{', '.join(x for x in mine if x not in others)}; others: "
                check |= {"ok": False, "text": text + ", ".join(x for x in others if x not in mine)}
        faulty = {node: check for node, check in looked.items() if check["ok"] is False}
        lines = {node: f"{name}: {check['text']} -> {check['remedy']}" for node, check in faulty.items()}
        told_apart = len(looked) > 1 or (len(answers) == 1 and name.split()[0] in WORDS.of_files)
        if faulty and len(faulty) == len(looked) and told_apart and name not in WORDS.of_nodes:
            shared += dict.fromkeys(lines.values())
        else:
            for node, line in lines.items():
                bad.setdefault(node, []).append(line)
    return bad, shared


def exclude(bad: dict[str, list[str]], nodes: int, file: Path) -> None:
    """Add bad nodes to `file`, for `queue.requeue`. `UserError` for more than a quarter of `nodes`, and over two."""
    known = queue.bad_nodes(file)
    if again := ",".join(node for node in bad if node in known):
        wrong = f"{again} bad again: Slurm gave this job nodes that it was to leave out"
        raise UserError(f"{wrong}; submit it anew with --exclude={again}")
    lines = file.read_text(encoding="utf-8") if known else ""
    write_text(file, lines + "".join(f"{node}\t{'; '.join(faults)}\n" for node, faults in bad.items()))
    most, now = int(os.environ.get("HERMES3_MAX_BAD_NODES", max(2, math.ceil(nodes / 4)))), len(known) + len(bad)
    if now > most:
        wrong = f"{now} bad nodes in {file}, more than the {most} that this job may exclude: look at them first"
        raise UserError(f"{wrong}; then set HERMES3_MAX_BAD_NODES, or submit with --exclude")


if __name__ == "__main__":
    folder, job = Path(sys.argv[1]), queue.shown(os.environ.get("SLURM_JOB_ID", ""))
    taken = job.get("PreemptTime", "")  # GraceTime before the job ends; or in an attempt before
    if taken[:1].isdigit() and taken > job.get("StartTime", ""):
        again, why = True, f"{folder.name}: preempted"
    else:
        again, why = verdict(folder, Path(os.environ.get("HERMES3_STOP_FILE", "")).is_file())
    print(f"{'to be queued again' if again else 'stopped'}: {why}")
    sys.exit(not again)
