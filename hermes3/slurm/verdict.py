"""Whose fault is it? Of a run that crashed, by its logs; of nodes that must not train, by what all of them answer.

`python -m hermes3.slurm.verdict LOGS/attempt_N`: try a run that crashed again (exit code 0), or stop (1), and why. It
reads the logs of the ranks, in a fraction of a second. Stop: a user's error, which the next attempt would meet too; a
crash that was there before, with the same message at the same place of the run; more than `MAX_CRASHES`. A node whose
ranks alone meet what a machine can cause is left out of the next attempt. What it prints ends with the error itself.
For later verdicts an attempt's folder keeps `crash.json`, or `notice.json` for one that ended as it was told to. What
Slurm preempts is neither.
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
from typing import Any

from hermes3.files import UserError, write_text
from hermes3.slurm import queue
from hermes3.train.checkpoints import newest_complete, step_of

# Attempts that a job may lose. Llama 3's training lost something every 16 days for each 128 GPUs (Grattafiori et al.
# 2024, section 3.3.4): what makes a run of a day crash five times must be looked at.
MAX_CRASHES = 5
# Errors of what was written, whichever rank meets them
USERS = {
    "AttributeError", "IndexError", "KeyError", "NameError", "NotImplementedError", "OutOfMemoryError", "SyntaxError",
    "TypeError", "ValidationError", "ValueError",
}  # fmt: skip
# Errors of what was written if every rank meets them; else of a node: its mount, its libraries, its driver
SHARED = {
    "AssertionError", "EOFError", "FileNotFoundError", "ImportError", "ModuleNotFoundError", "NotADirectoryError",
    "PermissionError", "SafetensorError", "UnicodeDecodeError",
}  # fmt: skip
# Words of a node's own fault, in errors of any class
OF_NODE = re.compile(
    r"Input/output error|Remote I/O error|os error 5\b|Stale file handle|Transport endpoint|Read-only file system|"
    r"GLIBC|libcuda|ECC |Xid|NVIDIA driver|No CUDA GPUs|CUDA-capable|CUDA driver|NVLink|fallen off the bus|Bus error"
)
# What a rank says whose partner is gone: another one's error came before
PEER = re.compile(
    r"remote process|[Cc]onnection (was )?(closed|reset|refused|aborted)|closed by peer|Broken pipe|[Tt]imed out|"
    r"[Tt]imeout|watchdog|[Hh]eartbeat|remote peer|ncclRemoteError|Socket|communicator was aborted|got 0 bytes"
)
AT_ONCE = 2.0  # seconds
LINES = 60  # of a message that are shown
TAIL = 400_000  # bytes of a log that are read: far more than the longest traceback
TRACEBACK = "Traceback (most recent call last):"
CHAINED = re.compile(r"During handling of|The above exception was the direct cause")
# Above a traceback that ended no process
NO_END = re.compile(
    r"Exception ignored|Exception in thread|Error in atexit|never retrieved|excepthook|\b(ERROR|WARNING|CRITICAL)\b"
)
ERROR = re.compile(r"(?:\w+\.)*([A-Z]\w*)(?::|$)")  # `torch.OutOfMemoryError: CUDA out of memory.`
# What a process says as it ends, below its error: `nanobind: leaked`, `[rank0]:[W1124`, `wandb: `
OTHERS = re.compile(r"\s*$|\[|\w+: ")
AT_END = 60  # lines of it at most; an error with more below it was caught, and the process went on
# The last line of a program that ended itself without a traceback: `PROGRAM OR FILE: what is wrong`
LAST_WORDS = re.compile(r"(?!wandb|nanobind|INFO|WARNING|DEBUG|srun|.*%\|)[\w./+-]+: \S")
EPOCH = re.compile(r"'epoch': '?([\d.]+)")
FATAL = re.compile(r"^\s*(?:what\(\): |Fatal Python error: ).+", re.MULTILINE)  # of C++ and of Python's own end
OUT_OF_MEMORY = re.compile(r".*(oom.kill|OOM Killed|Out of memory: Kill).*", re.IGNORECASE)
DISK = re.compile(r".*(No space left on device|[Dd]isk quota exceeded).*")
KILLED = "no error in any log: a rank was killed from outside, as when a node is lost"
NOT_STARTED = "no rank has started: srun could not launch on all nodes, or preprocessing was killed"
NO_CHECKPOINT = (
    "notice of the end came, and no checkpoint was written since the attempt began: give more time (--time), or more "
    "notice (--signal) where a step and a checkpoint take longer than that"
)
# Kinds of ours that say too little to be one and the same crash: only their number ends a job
VAGUE = {"Killed", "NotStarted", "NoCheckpoint"}


def tail(log: Path) -> str:
    """The end of a log: a line for each state of a progress bar, and no rank before the lines of a traceback."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)


def last_error(text: str) -> tuple[str, str] | None:
    """Class and message (up to `LINES` lines) of the exception that ended the process; None without one.

    Of exceptions that came while another was handled, the first that a machine causes counts, or else the last.
    """
    errors: list[tuple[str, str]] = []
    for start in re.finditer(rf"^{re.escape(TRACEBACK)}", text, re.MULTILINE):
        above = "\n".join(text[max(0, start.start() - 400) : start.start()].rstrip().splitlines()[-1:])
        if "future: <" in above or NO_END.search(above) or not (error := _error(text[start.end() :])):
            continue
        errors = [*(errors if CHAINED.match(above) else []), error]
        if EPOCH.search(text, start.start()):  # training went on
            errors = []
    if not errors and (fatal := FATAL.findall(text)):
        return "Fatal", fatal[-1].strip()
    machines = (error for error in errors if OF_NODE.search(error[1]) or "NCCL" in error[1])
    return next(machines, errors[-1]) if errors else None


def _error(traceback: str) -> tuple[str, str] | None:
    lines = traceback.splitlines()[1:]
    for number, line in enumerate(lines):
        if error := ERROR.match(line):  # the frames and their carets are indented, the exception is not
            below = lines[number + 1 :]
            others = [one for one in below if one[:1].strip() and not OTHERS.match(one)]
            if len(others) > AT_END and len(others) > len(below) / 2:  # most lines of a long message are indented
                return None
            return error[1], "\n".join([line, *islice(takewhile(lambda one: not OTHERS.match(one), below), LINES)])
    return None


def last_words(text: str) -> tuple[str, str] | None:
    """What a program that never took a step says as it ends itself without a traceback."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    if not lines or EPOCH.search(text) or TRACEBACK in text or not LAST_WORDS.match(lines[-1]):
        return None
    return "Exit", "\n".join(lines[-LINES // 3 :])


def crash(attempt: Path) -> dict[str, Any]:
    """What ended the attempt: `log`, `node`, `kind` (class of the error), `message`, `epoch` (the last that is logged).

    `met`: which ranks' logs have the same. The cause goes before what it makes other ranks say, and the first in time
    before later ones; of errors within `AT_ONCE` seconds a user's goes first.
    """
    ranks = sorted(attempt.glob("rank_*.log"))
    logs = ranks or sorted(attempt.glob("*.log"))  # preparation has ended well where ranks have begun
    texts = {log: tail(log) for log in logs}
    errors = [(log, *error) for log, text in texts.items() if (error := last_error(text))]
    errors = errors or [(log, *words) for log, text in texts.items() if (words := last_words(text))]
    first = min((log.stat().st_mtime for log, _, words in errors if not PEER.search(words)), default=0.0)
    errors.sort(
        key=lambda one: (bool(PEER.search(one[2])), one[0].stat().st_mtime > first + AT_ONCE, one[1] not in USERS)
    )
    epochs = EPOCH.findall(texts.get(attempt / "rank_0.log", ""))
    page: dict[str, Any] = {"epoch": epochs[-1] if epochs else None, "ranks": [log.name for log in ranks]}
    if errors and not PEER.search(errors[0][2]):
        log, kind, message = errors[0]
        met = [other.name for other, same, words in errors if same == kind and not PEER.search(words)]
        return page | {"log": log.name, "node": _node(log), "kind": kind, "message": message, "met": met}
    everything = "\n".join([*texts.values(), *map(tail, attempt.glob("node_*.log")), _job_log(attempt)])
    page |= {"log": None, "node": None, "met": []}
    if full := OUT_OF_MEMORY.search(everything):
        return page | {"kind": "OutOfMemoryError", "message": f"a node's own memory was full: {full[0].strip()}"}
    kind, message = ("Killed", KILLED) if ranks else ("NotStarted", NOT_STARTED)
    if errors:  # each says that another one is gone, which was killed; or that all wait for each other
        log, of_peer, message = errors[0]
        page |= {"log": log.name, "node": _node(log)}
        kind = of_peer if re.search("[Tt]imed? ?out|watchdog", message) else kind
    hint = f"; but: {full[0].strip()}" if (full := DISK.search(everything)) else ""
    return page | {"kind": kind, "message": message + hint, "hint": hint}


def _job_log(attempt: Path) -> str:
    """What Slurm itself has written of this attempt into the job's log, to which this process prints."""
    log = Path("/proc/self/fd/1").resolve()
    _, begun, text = (tail(log) if log.is_file() else "").rpartition(f"{attempt.name.replace('_', ' ')} on ")
    return text if begun else ""


def _node(log: Path) -> str | None:
    file = log.with_suffix(".node")  # rank.sh
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def of_user(crash: dict[str, Any]) -> bool:
    """Whether the next attempt would meet it too: by its class, and by how many of the ranks have met it."""
    everywhere = len(crash["met"]) == max(1, len(crash["ranks"]))
    if crash["kind"] in USERS:
        return everywhere or not OF_NODE.search(crash["message"])
    return crash["kind"] in SHARED and everywhere


def of_node(crash: dict[str, Any], attempt: Path) -> str | None:
    """The one node that has met it, of several, if a node can be what causes it."""
    nodes = {_node(attempt / name) for name in crash["met"]}
    others = {_node(attempt / name) for name in crash["ranks"]} - nodes
    of_its_own = crash["kind"] in SHARED or OF_NODE.search(crash["message"])
    return nodes.pop() if len(nodes) == 1 and others and of_its_own and not PEER.search(crash["message"]) else None


def verdict(attempt: Path, notified: bool = False) -> tuple[bool, str]:
    """Whether to try again, and why. `notified`: it was told to end.

    Writes `notice.json` if it did and has saved a checkpoint, else `crash.json`, and a bad node into ../bad_nodes.
    Where no `start.json` says which checkpoint the attempt began from, an epoch beyond former notices' counts as saved.
    """
    now, begun = crash(attempt), _load(attempt / "start.json")
    told = [float(_load(path)["epoch"] or 0) for path in attempt.parent.glob("*/notice.json")]
    if begun:
        newest = newest_complete(Path(begun["output_dir"]))
        saved = bool(newest) and step_of(newest) > begun["step"]
    else:
        saved = bool(now["epoch"]) and not now["log"] and float(now["epoch"]) > max(told, default=-1)
    place = f"epoch {now['epoch']}" if now["epoch"] else "before the first step"
    if notified and saved:
        write_text(attempt / "notice.json", json.dumps({"epoch": now["epoch"]}))
        return True, f"{attempt.name}: ended on notice, in {place}"
    if notified and now["kind"] in VAGUE:
        now |= {"kind": "NoCheckpoint", "message": NO_CHECKPOINT + now["hint"]}
    before = [_load(path) for path in attempt.parent.glob("attempt_*/crash.json")]
    write_text(attempt / "crash.json", json.dumps(now, indent=1))
    most = int(os.environ.get("HERMES3_MAX_CRASHES", MAX_CRASHES))
    again = False
    if of_user(now):
        why = "an error that another attempt would meet too"
    elif now["kind"] not in VAGUE and signature(now) in map(signature, before):
        why = "the same crash as before, at the same place"
    else:
        why = f"crash {len(before) + 1} of at most {most} (HERMES3_MAX_CRASHES)"
        again = len(before) + 1 < most
        if again and (node := of_node(now, attempt)):
            try:
                exclude({node: [now["message"].splitlines()[0]]}, len(now["ranks"]), attempt.parent / "bad_nodes")
                why += f"; {node} alone has met it, and is left out"
            except UserError as error:
                again, why = False, f"{error}"
    where = f"{now['log'] or 'all ranks'}{' on ' + now['node'] if now['node'] else ''}"
    return again, f"{attempt.name}, {where}, {place}: {why}\n{now['message']}"


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def signature(crash: dict[str, Any]) -> tuple:
    """What two crashes share that are one: all but the numbers, which are of processes, ports and addresses."""
    return crash["kind"], re.sub(r"0x[0-9a-f]+|\d+", "#", crash["message"]), crash["epoch"]


# the nodes of a job

SKEW = 5.0  # seconds that a node's clock may be off: the logs of ranks are read side by side
# Checks of files that all nodes share: on a job of one node too, the fault is not the node's
OF_FILES = ("disk", "shared", "model", "mix")
# Faults of single nodes, however many have them
OF_NODES = ("health", "idle", "clock", "all-reduce")
Answers = dict[str, dict[str, Any]]  # node -> {"checks": {name: {"ok", "text", "remedy", "same"}}}, as of `node_check`


def clocks(offsets: dict[str, float]) -> dict[str, dict[str, Any]]:
    """A check for each node, by how far its clock is from the first node's, in s: right is what most nodes have."""

    def agreed(mine: float) -> bool:
        return sum(abs(mine - other) <= SKEW for other in offsets.values()) * 2 > len(offsets)

    most = [mine for mine in offsets.values() if agreed(mine)]
    apart = max(offsets.values(), default=0) - min(offsets.values(), default=0)
    checks = {}
    for node, mine in offsets.items():
        text = f"its clock is off by {abs(mine - statistics.median(most)):.0f} s" if most else (
            f"the nodes' clocks differ by {apart:.0f} s, and nobody can tell which is right"
        )  # fmt: skip
        checks[node] = {"ok": agreed(mine), "text": text, "remedy": "set its clock (chrony or ntpd)"}
    return checks


def compare(answers: Answers) -> None:
    """Mark as bad what must be the same on all nodes and is not what most have; the first node has the casting vote."""
    names = dict.fromkeys(name for answer in answers.values() for name in answer["checks"])
    for name in names:
        checks = [answer["checks"][name] for answer in answers.values() if answer["checks"].get(name, {}).get("same")]
        values = Counter(check["same"] for check in checks if check["ok"])
        usual = max(values, key=values.get, default=None)
        for check in checks:
            if check["ok"] and check["same"] != usual:
                others = next(one["text"] for one in checks if one["same"] == usual)
                check |= {"ok": False, "text": f"{_difference(check['text'], others)}"}


def _difference(here: str, others: str) -> str:
    mine, theirs = here.split(", "), others.split(", ")
    if here == others:
        return f"{here}, but other content than on the other nodes"
    return f"{', '.join(x for x in mine if x not in theirs)}; others: {', '.join(x for x in theirs if x not in mine)}"


def blame(answers: Answers) -> tuple[dict[str, list[str]], list[str]]:
    """(bad, shared): faults by node, and the faults that all nodes have which looked, so not the nodes' own."""
    bad: dict[str, list[str]] = {}
    shared: list[str] = []
    for name in dict.fromkeys(name for answer in answers.values() for name in answer["checks"]):
        looked = {node: answer["checks"][name] for node, answer in answers.items() if name in answer["checks"]}
        faulty = {node: check for node, check in looked.items() if check["ok"] is False}
        lines = {node: f"{name}: {check['text']} -> {check['remedy']}" for node, check in faulty.items()}
        told_apart = len(looked) > 1 or (len(answers) == 1 and name.split()[0] in OF_FILES)
        if faulty and len(faulty) == len(looked) and told_apart and name not in OF_NODES:
            shared += dict.fromkeys(lines.values())
        else:
            for node, line in lines.items():
                bad.setdefault(node, []).append(line)
    return bad, shared


def exclude(bad: dict[str, list[str]], nodes: int, file: Path) -> None:
    """Add bad nodes to `file`, for `queue.requeue`. `UserError` for more than a quarter of `nodes`, and over two."""
    known = queue.bad_nodes(file)
    if again := [node for node in bad if node in known]:
        raise UserError(
            f"{', '.join(again)} bad again: Slurm gave this job nodes that it was to leave out; submit it anew with "
            f"--exclude={','.join(again)}"
        )
    lines = file.read_text(encoding="utf-8") if known else ""
    write_text(file, lines + "".join(f"{node}\t{'; '.join(faults)}\n" for node, faults in bad.items()))
    most = int(os.environ.get("HERMES3_MAX_BAD_NODES", max(2, math.ceil(nodes / 4))))
    if len(known) + len(bad) > most:
        raise UserError(
            f"{len(known) + len(bad)} bad nodes in {file}, more than the {most} that this job may exclude: look at "
            "them first; then set HERMES3_MAX_BAD_NODES, or submit with --exclude"
        )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if queue.preempted(os.environ.get("SLURM_JOB_ID", "")):
        again, why = True, f"{folder.name}: preempted"
    else:
        again, why = verdict(folder, Path(os.environ.get("HERMES3_STOP_FILE", "")).is_file())
    print(f"{'to be queued again' if again else 'stopped'}: {why}")
    sys.exit(not again)
