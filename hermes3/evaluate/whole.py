"""Which tasks of a suite a folder already holds whole, so that they are not run again."""

import json
from pathlib import Path
from typing import Any

from hermes3.report.samples import read_samples

STALE = ".stale"  # no reader of results looks at it


def leaves(results: dict[str, Any], task: str) -> list[str]:
    """The tasks that lm-eval's group `task` consists of, or the task itself."""
    members = results["group_subtasks"].get(task) or []
    return [leaf for member in members for leaf in leaves(results, member)] or [task]


def fault(path: Path, results: dict[str, Any], task: str, num_fewshot: int) -> str | None:
    """What keeps the results in file `path` from being those of `task`, in words; None if nothing does."""
    for leaf in leaves(results, task):
        if leaf not in results["n-samples"]:
            return f"{leaf} is not in it"
        if results["n-shot"].get(leaf) != num_fewshot:
            return f"{leaf} was run with {results['n-shot'].get(leaf)} shots, not {num_fewshot}"
        wanted = results["n-samples"][leaf]["effective"]
        samples = path.with_name(f"samples_{leaf}_{path.stem.removeprefix('results_')}.jsonl")
        try:
            found = read_samples(samples)
        except ValueError as error:
            return str(error)
        if not found or any(len(one.docs) != wanted for one in found.values()):
            return f"{samples.name} does not hold {wanted} questions"
    return None


def whole_tasks(out: Path, tasks: dict[str, int], own: set[str] | None = None) -> set[str]:
    """Those of `tasks` (name -> num_fewshot) whose results and samples under `out` are whole.

    The newest file that holds a task speaks for it, as it does for the report. A file that is cut short, or that holds
    a task of `own`, is set aside, and says so.
    """
    faults: dict[str, str | None] = {}
    for path in results_files(out):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            present = [task for task in tasks if set(leaves(results, task)) & set(results["n-samples"])]
        except (ValueError, KeyError):
            set_aside(path, "it is cut short")
            continue
        if changed := sorted((own or set()) & set(results["n-samples"])):
            set_aside(path, f"the folder of tasks that {changed[0]} is from has changed since")
            continue
        faults |= {task: fault(path, results, task, tasks[task]) for task in present}
    for task, wrong in faults.items():
        if wrong:
            print(f"{task} is run again: {wrong}", flush=True)
    return {task for task, wrong in faults.items() if wrong is None}


def results_files(out: Path, nested: bool = False) -> list[Path]:
    """Results files of the suite that was run to `out`, the newest last; `nested`: also what others wrote below it."""
    found = out.rglob("results_*.json") if nested else out.glob("*_shot/**/results_*.json")
    return sorted(found, key=lambda path: path.name)


def set_aside(path: Path, why: str) -> None:
    """Rename a results file and its samples, so that no reader takes them for results."""
    print(f"{path} is not used, and named {STALE} from now on: {why}", flush=True)
    for samples in path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl"):
        samples.rename(samples.with_name(samples.name + STALE))
    path.rename(path.with_name(path.name + STALE))
