"""Running a suite: plain `lm_eval` commands, which a user may copy, one process per number of shots.

A model is loaded once for all tasks of a number of shots. Tasks whose results are whole are not run again, and what a
killed process had answered is in lm-eval's own cache.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hermes3.evaluate.setting import digest, own_tasks, setting_of
from hermes3.files import UserError, read_json, write_text
from hermes3.model_folder import check_model
from hermes3.results.lm_eval import ResultsFile
from hermes3.results.suite import Suite, require

# Requests that vLLM gets at once. lm-eval would hand over all 500,000, and its cache learns of them when all are done;
# at 512 the batch drains now and then, and a killed run loses a minute.
VLLM_CHUNK = 512
FIXED = ("pretrained", "add_bos_token", "prefix_token_id")  # the model, and what would add a second BOS
STALE = ".stale"  # no reader of results looks at it


def model_args(suite: Suite, backend: str, more: str = "") -> str:
    """lm_eval's `--model_args`, without the model. `more` is the user's, as `tensor_parallel_size=8`."""
    if named := sorted({part.partition("=")[0] for part in more.split(",")} & set(FIXED)):
        raise UserError(f"--model-args {named[0]}: `hermes3 eval` sets it; leave it out")
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
    `UserError` for a model that is not fit to evaluate, and for a run that failed.
    """
    if dry_run:
        for shots, tasks in suite.by_shots().items():
            print(shlex.join(command(model, out, suite, shots, tasks, backend, more)))
        return
    check_model(model)
    require(suite.name, [*suite.needs, *(["vllm"] if backend == "vllm" else [])])
    setting = setting_of(model, backend, model_args(suite, backend, more), suite.seed, suite.limit)
    shots_of = {task: shots for shots, tasks in suite.by_shots().items() for task in tasks}
    own_names, own_hash = own_tasks(suite.include_path)
    if own_names & shots_of.keys():
        setting["own_tasks"] = own_hash
    _set_aside_other_settings(out, suite.name, setting)
    done = whole_tasks(out, shots_of)
    cache = out / "cache" / digest(setting)
    todo = {shots: [task for task in tasks if task not in done] for shots, tasks in suite.by_shots().items()}
    commands = {
        shots: command(model, out, suite, shots, tasks, backend, more, str(cache))
        for shots, tasks in todo.items()
        if tasks
    }
    record = {"suite": suite.name, "setting": setting}
    record["commands"] = _recorded(out).get("commands", []) + [shlex.join(argv) for argv in commands.values()]
    write_text(out / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
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
        raise UserError(f"lm_eval ended with {code} on {model}; its own message is above")


def _check(out: Path, model: Path, tasks: dict[str, int]) -> None:
    """lm_eval ends with 0 when it could not write its results, and where a task's file fixes its number of shots."""
    files = results_files(out)
    if not files:
        raise UserError(f"{out}: lm_eval ended well on {model} and left no results there; see its messages above")
    for task, shots in tasks.items():
        if wrong := _fault(ResultsFile.read(files[-1]), task, shots):
            raise UserError(f"{files[-1]}: {wrong}; see lm_eval's messages above")


def whole_tasks(out: Path, tasks: dict[str, int]) -> set[str]:
    """Those of `tasks` (name -> num_fewshot) whose results and samples under `out` are whole; says what is run again.

    The newest file that holds a task counts, as in the report. A file that is cut short is set aside.
    """
    faults: dict[str, str | None] = {}
    for path in results_files(out):
        try:
            file = ResultsFile.read(path)
        except UserError as error:
            set_aside(path, str(error))
            continue
        present = [task for task in tasks if file.content["n-samples"].keys() & set(file.leaves(task))]
        faults |= {task: _fault(file, task, tasks[task]) for task in present}
    for task, wrong in faults.items():
        if wrong:
            print(f"{task} is run again: {wrong}", flush=True)
    return {task for task, wrong in faults.items() if wrong is None}


def _fault(file: ResultsFile, task: str, num_fewshot: int) -> str | None:
    """Why the results in `file` are not those of `task`, in words; None if they are."""
    for leaf in file.leaves(task):
        if leaf not in file.content["n-samples"]:
            return f"{leaf} is not in it"
        if (shots := file.content["n-shot"].get(leaf)) != num_fewshot:
            return f"{leaf} was run with {shots} shots, not {num_fewshot}"
        try:
            file.samples(leaf)
        except UserError as error:
            return str(error)
    return None


def results_files(out: Path, nested: bool = False) -> list[Path]:
    """Results files of the suite that was run to `out`, the newest last; `nested`: also what others wrote below it."""
    return sorted(out.rglob("results_*.json") if nested else out.glob("*_shot/**/results_*.json"), key=lambda p: p.name)


def set_aside(path: Path, why: str) -> None:
    """Rename a results file and its samples, so that no reader takes them for results."""
    print(f"{path} is not used, and named {STALE} from now on: {why}", flush=True)
    for samples in path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl"):
        samples.rename(samples.with_name(samples.name + STALE))
    path.rename(path.with_name(path.name + STALE))


def _recorded(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return read_json(path) if path.is_file() else {}


def _set_aside_other_settings(out: Path, suite: str, setting: dict[str, Any]) -> None:
    """Set aside results of another model, template, backend, seed, version or folder of tasks, and say what differs.

    `UserError` where they are another suite's results of this very model:
    hours of work that are as good as before.
    """
    before = _recorded(out)
    if before.get("setting") == setting:
        return
    old = before.get("setting", {})
    changed = [key for key, value in setting.items() if old.get(key) != value]
    why = ", ".join(f"{key} was {old.get(key)}, is {setting[key]}" for key in changed)
    other_model = bool({"model", "weights"} & set(changed))
    if before and before["suite"] != suite and not other_model:
        raise UserError(
            f"{out}: holds results of suite {before['suite']} under another setting ({why}); give --out {out}/{suite}"
        )
    # of another model, MT-Bench's results and those of a suite that was run to a folder below are stale too
    for path in results_files(out, nested=bool(before) and other_model):
        set_aside(path, why if before else "no run.json says how it was made")
    (out / "run.json").unlink(missing_ok=True)


def fetch(suite: Suite) -> None:
    """Load each task of `suite` as lm-eval will, so that its questions are in the cache: many nodes have no network.

    What is in the cache already is not fetched again. `UserError` names the tasks that failed, and the remedy.
    """
    require(suite.name, suite.needs)
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=str(suite.include_path))
    tasks = [task for of_shots in suite.by_shots().values() for task in of_shots]
    failed = []
    for number, task in enumerate(tasks, 1):
        outcome = "here"
        try:
            get_task_dict([task], manager)
            if "ifeval" in task:  # on import it asks nltk for the data, which fails in silence
                import nltk

                nltk.data.find("tokenizers/punkt_tab")
        except Exception as error:  # the Hub's, the data's or the network's: each library has its own
            failed.append(task)
            outcome = f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        print(f"{number} of {len(tasks)}: {task}: {outcome}", flush=True)
    if failed:
        raise UserError(
            f"{suite.name}: {len(failed)} of {len(tasks)} tasks failed, each for the reason above: {', '.join(failed)}"
            "; run this again where there is a network, without HF_HUB_OFFLINE; for a gated data set (GPQA's is one) "
            "accept its terms on the Hub and set HF_TOKEN"
        )
