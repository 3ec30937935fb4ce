"""Running a suite: plain `lm_eval` commands, which a user may copy; one process a number of shots.

A model is loaded once for all tasks of a number of shots. Tasks whose results are whole are not run again, and what a
process that was killed had answered is in lm-eval's own cache.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hermes3 import portable
from hermes3.evaluate.setting import digest, own_tasks, setting_of
from hermes3.evaluate.suite import Suite, require
from hermes3.evaluate.whole import fault, results_files, set_aside, whole_tasks
from hermes3.files import write_text
from hermes3.model_folder import check_model

# Requests that vLLM gets at once. lm-eval would hand over all 500,000, and its cache learns of them when all are done;
# at 512 the batch drains now and then, and a killed run loses a minute.
VLLM_CHUNK = 512
FIXED = ("pretrained", "add_bos_token", "prefix_token_id")  # model, and what would add a second BOS


def model_args(suite: Suite, backend: str, more: str = "") -> str:
    """lm_eval's `--model_args`, without the model. `more` is the user's, as `tensor_parallel_size=8`."""
    named = {part.partition("=")[0] for part in more.split(",")} & set(FIXED)
    if named:
        raise ValueError(f"--model-args {sorted(named)[0]}: `hermes3 eval` sets it")
    length = {"hf": f"max_length={suite.max_length}", "vllm": f"max_model_len={suite.max_length},seed={suite.seed}"}
    return ",".join([f"dtype={suite.dtype}", length[backend], *([more] if more else [])])


def command(
    model: Path,
    out: Path,
    suite: Suite,
    shots: int,
    tasks: list[str],
    backend: str = "hf",
    more: str = "",
    cache: str = "",
) -> list[str]:
    """The `lm_eval` call that runs `tasks` of `suite` on `model` with `shots` examples."""
    batch_size = suite.batch_size if backend == "hf" else VLLM_CHUNK
    return [
        *("lm_eval", "run", "--model", backend),
        *("--model_args", f"pretrained={model},{model_args(suite, backend, more)}"),
        *(("--device", suite.device) if backend == "hf" else ()),
        *("--include_path", str(suite.include_path), "--tasks", ",".join(tasks), "--num_fewshot", str(shots)),
        *("--apply_chat_template", "--batch_size", str(batch_size), "--seed", str(suite.seed)),
        *(("--limit", str(suite.limit)) if suite.limit else ()),
        *("--output_path", str(out / f"{shots}_shot"), "--log_samples"),
        *(("--use_cache", cache) if cache else ()),
    ]


def run(model: Path, out: Path, suite: Suite, backend: str = "hf", more: str = "", dry_run: bool = False) -> None:
    """Print the commands and run those whose results are not there.

    Writes lm-eval's results and samples, and `run.json`: the setting (`hermes3.evaluate.setting`) and the commands.
    `ValueError` for a model that is not fit to evaluate, and for a run that failed.
    """
    if dry_run:
        for shots, tasks in suite.by_shots().items():
            print(shlex.join(command(model, out, suite, shots, tasks, backend, more)))
        return
    check_model(model)
    if backend == "vllm":
        portable.check(model)
    require(suite.name, [*suite.needs, *(["vllm"] if backend == "vllm" else [])])
    setting = setting_of(model, backend, model_args(suite, backend, more), suite.seed, suite.limit)
    own_names, own_hash = own_tasks(suite.include_path)
    changed = _set_aside_other_settings(out, suite.name, setting, own_hash)
    shots_of = {task: shots for shots, tasks in suite.by_shots().items() for task in tasks}
    done = whole_tasks(out, shots_of, own_names if changed else None)
    cache = out / "cache" / digest(setting)
    todo = {shots: [task for task in tasks if task not in done] for shots, tasks in suite.by_shots().items()}
    todo = {shots: tasks for shots, tasks in todo.items() if tasks}
    commands = {
        shots: command(model, out, suite, shots, tasks, backend, more, str(cache)) for shots, tasks in todo.items()
    }
    said = {"suite": suite.name, "setting": setting, "own_tasks": own_hash}
    lines = _read(out).get("commands", []) + [shlex.join(argv) for argv in commands.values()]
    write_text(out / "run.json", json.dumps({**said, "commands": lines}, indent=2, ensure_ascii=False) + "\n")
    if done:
        print(f"whole already, not run again: {', '.join(task for task in shots_of if task in done)}", flush=True)
    for number, (shots, argv) in enumerate(commands.items(), 1):
        print(f"{number} of {len(commands)}: {len(todo[shots])} tasks with {shots} shots", flush=True)
        print(shlex.join(argv), flush=True)
        _lm_eval(argv, model)
        _check(out, model, {task: shots for task in todo[shots]})
    shutil.rmtree(out / "cache", ignore_errors=True)


def _lm_eval(argv: list[str], model: Path) -> None:
    # lm_eval stands beside this Python, also where the environment is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(argv, env={**os.environ, "PATH": path, "TOKENIZERS_PARALLELISM": "false"}).returncode
    if code:
        raise ValueError(f"lm_eval ended with {code} on {model}; its own message is above")


def _check(out: Path, model: Path, tasks: dict[str, int]) -> None:
    """lm_eval ends with 0 when it could not write its results, and where a task's file fixes its number of shots."""
    files = results_files(out)
    if not files:
        raise ValueError(f"{out}: lm_eval ended well on {model} and left no results there; see its messages above")
    results = json.loads(files[-1].read_text(encoding="utf-8"))
    for task, shots in tasks.items():
        if wrong := fault(files[-1], results, task, shots):
            raise ValueError(f"{files[-1]}: {wrong}; see lm_eval's messages above")


def _read(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _set_aside_other_settings(out: Path, suite: str, setting: dict[str, Any], own_hash: str) -> bool:
    """Results of another model, template, backend, seed or version are no results of this run; say what differs.

    Returns whether our tasks have changed since. `ValueError` where they are another suite's results of this very
    model, hours of work that are as good as before.
    """
    before = _read(out)
    if before.get("setting") == setting:
        return before["own_tasks"] != own_hash
    old = before.get("setting", {})
    changed = [key for key, new in setting.items() if old.get(key) != new]
    why = ", ".join(f"{key} was {old.get(key)}, is {setting[key]}" for key in changed)
    other_model = bool({"model", "weights"} & set(changed))
    if before and before["suite"] != suite and not other_model:
        raise ValueError(
            f"{out}: holds results of suite {before['suite']} under another setting ({why}); give --out {out}/{suite}"
        )
    # of another model, MT-Bench's results and those of a suite that was run to a folder below are stale too
    for path in results_files(out, nested=bool(before) and other_model):
        set_aside(path, why if before else "no run.json says how it was made")
    (out / "run.json").unlink(missing_ok=True)
    return False
