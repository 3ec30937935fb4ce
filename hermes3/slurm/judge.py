"""What the answers of all nodes say together: which nodes are bad, and which fault is nobody's own."""

from collections import Counter
from typing import Any

# Checks that say something of files that all nodes share: on a job of one node too, the fault is not the node's
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


def judge(answers: dict[str, dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """(bad, everyone's): faults by node, and the faults that all nodes have which looked: not the nodes' own."""
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


def table(answers: dict[str, dict[str, Any]]) -> str:
    """A line a node, a column a check: ok, BAD, or - for what was not looked at."""
    names = list(dict.fromkeys(name.split()[0] for got in answers.values() for name in got["checks"]))
    wide = max(4, *map(len, answers))
    lines = [" ".join([f"{'node':{wide}}", *names])]
    for node, got in answers.items():
        cells = []
        for name in names:
            ok = [check["ok"] for full, check in got["checks"].items() if full.split()[0] == name]
            cell = "BAD" if False in ok else "ok" if True in ok else "-"
            cells.append(f"{cell:{len(name)}}")
        lines.append(" ".join([f"{node:{wide}}", *cells]).rstrip())
    skipped: dict[str, list[str]] = {}
    for name, check in [pair for got in answers.values() for pair in got["checks"].items()]:
        if check["ok"] is None and name not in skipped.setdefault(check["said"], []):
            skipped[check["said"]].append(name)
    return "\n".join([*lines, *(f"not looked at: {', '.join(names)}, as {why}" for why, names in skipped.items())])
