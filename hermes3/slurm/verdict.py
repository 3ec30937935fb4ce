"""Whose fault is it? Of a run that crashed, by its logs; of nodes that must not train, by what all of them answer.

`python -m hermes3.slurm.verdict LOGS/attempt_N`: try a run that crashed again (exit code 0), or stop (1), and why. It
reads the logs of the ranks, in a fraction of a second. Stop: a user's error, which the next attempt would meet too; a
crash that was there before, with the same message at the same place of the run; more than `MAX_CRASHES`. What it prints
ends with the error itself. For later verdicts an attempt's folder keeps `crash.json`, or `notice.json` for one that
ended as it was told to. What Slurm preempts is neither.
"""

import json
import os
import re
import sys
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from hermes3.files import write_text
from hermes3.slurm import queue

# Attempts that a job may lose. Llama 3's training lost something every 16 days for each 128 GPUs (Grattafiori et al.
# 2024, section 3.3.4): what makes a run of a day crash five times must be looked at.
MAX_CRASHES = 5
# Errors of what was written, not of the machine
USERS = {
    "AssertionError", "AttributeError", "FileNotFoundError", "ImportError", "IndexError", "KeyError", "NameError",
    "ModuleNotFoundError", "NotADirectoryError", "NotImplementedError", "OutOfMemoryError", "PermissionError",
    "SafetensorError", "SyntaxError", "TypeError", "UnicodeDecodeError", "ValidationError", "ValueError",
}  # fmt: skip
LINES = 20  # of a message that are shown
TAIL = 400_000  # bytes of a log that are read: far more than the longest traceback
TRACEBACK = "Traceback (most recent call last):"
ERROR = re.compile(r"(?:\w+\.)*([A-Z]\w*)(?::|$)")  # `torch.OutOfMemoryError: CUDA out of memory.`
# What a process says as it ends, below its error: `nanobind: leaked`, `[rank0]:[W1124`, `wandb: `
OTHERS = re.compile(r"\s*$|\[|\w+: ")
AT_END = 60  # lines of it at most; an error with more below it was caught, and the process went on
EPOCH = re.compile(r"'epoch': '?([\d.]+)")
KILLED = "no error in any log: a rank was killed from outside, as when the host's memory is full or a node is lost"
NOT_STARTED = "no rank has started: srun could not launch on all nodes, or preprocessing was killed"
NO_STEP = "notice of the end came before the first step: give more time (--time) or less notice (--signal)"
NO_FURTHER = (
    "notice of the end came, and an attempt before had come as far: give more time (--time), or more notice (--signal) "
    "where a checkpoint takes longer than that"
)
# Kinds of ours that say too little to be one and the same crash: only their number ends a job
VAGUE = {"Killed", "NotStarted", "NoStep"}


def tail(log: Path) -> str:
    """The end of a log: a line for each state of a progress bar, and no rank before the lines of a traceback."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)


def last_error(text: str) -> tuple[str, str] | None:
    """Class and message (up to `LINES` lines) of the exception that ended the process; None without one."""
    start = text.rfind(TRACEBACK)
    if start < 0 or EPOCH.search(text, start):  # training went on
        return None
    lines = text[start:].splitlines()[1:]
    for number, line in enumerate(lines):
        if error := ERROR.match(line):  # the frames and their carets are indented, the exception is not
            if len(lines) - number > AT_END:
                return None
            message = takewhile(lambda one: not OTHERS.match(one), islice(lines, number + 1, number + LINES))
            return error[1], "\n".join([line, *message])
    return None


def crash(attempt: Path) -> dict[str, str | None]:
    """What ended the attempt: `log`, `kind` (class of the error), `message`, `epoch` (the last that was logged).

    A user's error goes before others: one rank's error ends the others with errors of their own, such as a closed
    connection.
    """
    logs = sorted(attempt.glob("*.log"))
    ranks = [log for log in logs if log.name.startswith("rank_")]
    epochs = EPOCH.findall(tail(attempt / "rank_0.log")) if ranks else []
    epoch = epochs[-1] if epochs else None
    errors = [(log.name, *error) for log in logs if (error := last_error(tail(log)))]
    errors.sort(key=lambda error: error[1] not in USERS)
    nothing = (None, "Killed", KILLED) if ranks else (None, "NotStarted", NOT_STARTED)
    log, kind, message = errors[0] if errors else nothing
    return {"log": log, "kind": kind, "message": message, "epoch": epoch}


def verdict(attempt: Path, notified: bool = False) -> tuple[bool, str]:
    """Whether to try again, and why. `notified`: it was told to end.

    Writes `notice.json` if it did and has come further than those before it that were told so, else `crash.json`.
    """
    now = crash(attempt)
    told = [json.loads(path.read_text(encoding="utf-8"))["epoch"] for path in attempt.parent.glob("*/notice.json")]
    if notified and now["epoch"] and float(now["epoch"]) > max(map(float, told), default=-1):
        write_text(attempt / "notice.json", json.dumps({"epoch": now["epoch"]}))
        return True, f"{attempt.name}: ended on notice, in epoch {now['epoch']}"
    if notified:
        now |= {"log": None, "kind": "NoStep", "message": NO_FURTHER if now["epoch"] else NO_STEP}
    before = [json.loads(path.read_text(encoding="utf-8")) for path in attempt.parent.glob("attempt_*/crash.json")]
    write_text(attempt / "crash.json", json.dumps(now, indent=1))
    most = int(os.environ.get("HERMES3_MAX_CRASHES", MAX_CRASHES))
    again = False
    if now["kind"] in USERS:
        why = "an error that another attempt would meet too"
    elif now["kind"] not in VAGUE and signature(now) in map(signature, before):
        why = "the same crash as before, at the same place"
    else:
        why = f"crash {len(before) + 1} of at most {most} (HERMES3_MAX_CRASHES)"
        again = len(before) + 1 < most
    place = f"epoch {now['epoch']}" if now["epoch"] else "before the first step"
    return again, f"{attempt.name}, {now['log'] or 'all ranks'}, {place}: {why}\n{now['message']}"


def signature(crash: dict) -> tuple:
    """What two crashes share that are one: all but the numbers, which are of processes, ports and addresses."""
    return crash["kind"], re.sub(r"0x[0-9a-f]+|\d+", "#", crash["message"]), crash["epoch"]


# the nodes of a job

# Checks of files that all nodes share: on a job of one node too, the fault is not the node's
OF_FILES = ("disk", "shared", "model", "mix")
# Faults of single nodes, however many have them
OF_NODES = ("health", "idle", "all-reduce")


def compare(answers: dict[str, dict[str, Any]]) -> None:
    """Mark as bad what must be the same on all nodes and is not what most have; the first node has the casting vote."""
    names = dict.fromkeys(name for got in answers.values() for name in got["checks"])
    for name in names:
        checks = [got["checks"][name] for got in answers.values() if got["checks"].get(name, {}).get("same")]
        values = Counter(check["same"] for check in checks if check["ok"])
        usual = max(values, key=values.get, default=None)
        for check in checks:
            if check["ok"] and check["same"] != usual:
                others = next(one["said"] for one in checks if one["same"] == usual)
                check |= {"ok": False, "said": f"{_difference(check['said'], others)}"}


def _difference(here: str, others: str) -> str:
    mine, theirs = here.split(", "), others.split(", ")
    if here == others:
        return f"{here}, but other content than on the other nodes"
    return f"{', '.join(x for x in mine if x not in theirs)}; others: {', '.join(x for x in theirs if x not in mine)}"


def blame(answers: dict[str, dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """(bad, shared): faults by node, and the faults that all nodes have which looked, so not the nodes' own.

    `answers`: node -> {"checks": {name: {"ok", "said", "remedy", "same"}}}, as `node_check` gives them.
    """
    bad: dict[str, list[str]] = {}
    shared: list[str] = []
    for name in dict.fromkeys(name for got in answers.values() for name in got["checks"]):
        looked = {node: got["checks"][name] for node, got in answers.items() if name in got["checks"]}
        faulty = {node: check for node, check in looked.items() if check["ok"] is False}
        lines = {node: f"{name}: {check['said']} -> {check['remedy']}" for node, check in faulty.items()}
        told_apart = len(looked) > 1 or (len(answers) == 1 and name.split()[0] in OF_FILES)
        if faulty and len(faulty) == len(looked) and told_apart and name not in OF_NODES:
            shared += dict.fromkeys(lines.values())
        else:
            for node, line in lines.items():
                bad.setdefault(node, []).append(line)
    return bad, shared


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if queue.preempted(os.environ.get("SLURM_JOB_ID", "")):
        again, why = True, f"{folder.name}: preempted"
    else:
        again, why = verdict(folder, Path(os.environ.get("HERMES3_STOP_FILE", "")).is_file())
    print(f"{'queued again' if again else 'stopped'}: {why}")
    sys.exit(not again)
