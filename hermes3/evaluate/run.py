"""Running a suite: plain `lm_eval` commands, which a user may copy, one process per protocol.

A model is loaded once for all tasks that are asked alike (`hermes3.results.suite.Protocol`). Tasks whose results are
whole are not run again, and what a killed process had answered is in lm-eval's own cache.
"""

import json
import os
import random
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from hermes3.evaluate.setting import digest, own_tasks, setting_of
from hermes3.files import UserError, read_json, write_text
from hermes3.model_folder import check_model
from hermes3.results.lm_eval import ResultsFile, leaves, protocol_of
from hermes3.results.suite import Protocol, Suite, require

# Requests that vLLM gets at once. lm-eval would hand over all 500,000, and its cache learns of them when all are done;
# at 512 the batch drains now and then, and a killed run loses a minute.
VLLM_CHUNK = 512
FIXED = ("pretrained", "add_bos_token", "prefix_token_id")  # the model, and what would add a second BOS
STALE = ".stale"  # no reader of results looks at it
TICK = 60  # seconds between two words of progress
# GPQA and others shuffle choices by `random` inside Dataset.map, whose result the cache of datasets keeps whatever the
# seed. Of a data set that is held in memory it keeps nothing, so that the order follows the seed.
IN_MEMORY, IN_MEMORY_BYTES = "HF_DATASETS_IN_MEMORY_MAX_SIZE", "1e9"


def model_args(suite: Suite, backend: str, more: str = "") -> str:
    """lm_eval's `--model_args`, without the model. `more` is the user's, as `tensor_parallel_size=8`."""
    if named := sorted({part.partition("=")[0] for part in more.split(",")} & set(FIXED)):
        raise UserError(f"--model-args {named[0]}: `hermes3 eval` sets it; leave it out")
    length = {"hf": f"max_length={suite.max_length}", "vllm": f"max_model_len={suite.max_length},seed={suite.seed}"}
    return ",".join([f"dtype={suite.dtype}", length[backend], *([more] if more else [])])


def command(
    model: Path, out: Path, suite: Suite, protocol: Protocol, tasks: list[str], backend: str, more: str, cache: str = ""
) -> list[str]:
    """The `lm_eval` call that asks `tasks` of `suite` of `model` by `protocol`."""
    batch_size = suite.batch_size if backend == "hf" else VLLM_CHUNK
    turns = () if protocol.fewshot_as_turns else ("--fewshot_as_multiturn", "false")
    return [
        *("lm_eval", "run", "--model", backend),
        *("--model_args", f"pretrained={model},{model_args(suite, backend, more)}"),
        *(("--device", suite.device) if backend == "hf" else ()),
        *("--include_path", str(suite.tasks_folder), "--tasks", ",".join(tasks)),
        *("--num_fewshot", str(protocol.shots), *(("--apply_chat_template", *turns) if protocol.chat_template else ())),
        *("--batch_size", str(batch_size), "--seed", ",".join(map(str, [*[suite.seed] * 3, suite.fewshot_seed]))),
        *(("--limit", str(suite.limit)) if suite.limit else ()),
        *("--output_path", str(out / protocol.folder), "--log_samples"),
        *(("--use_cache", cache) if cache else ()),
    ]


def shown(argv: list[str]) -> str:
    """The command as a user may copy it, with the variable that it runs under."""
    return f"{IN_MEMORY}={IN_MEMORY_BYTES} {shlex.join(argv)}"


def run(model: Path, out: Path, suite: Suite, backend: str = "hf", more: str = "", dry_run: bool = False) -> None:
    """Print the commands and run those whose results are not there.

    Writes lm-eval's results and samples, and `run.json`: the setting (`hermes3.evaluate.setting`), the commands and how
    long each took. `UserError` for a model that is not fit to evaluate, and for a run that failed.
    """
    if dry_run:
        for protocol, tasks in suite.by_protocol().items():
            print(shown(command(model, out, suite, protocol, tasks, backend, more)))
        return
    check_model(model)
    require(suite.name, [*suite.needs, *(["vllm"] if backend == "vllm" else [])])
    setting = setting_of(model, backend, model_args(suite, backend, more), suite.seed, suite.limit)
    setting["fewshot_seed"] = suite.fewshot_seed
    protocols = {task: protocol for protocol, tasks in suite.by_protocol().items() for task in tasks}
    own_names, own_hash = own_tasks(suite.tasks_folder)
    if own_names & protocols.keys():
        setting["own_tasks"] = own_hash
    before = read_json(out / "run.json") if (out / "run.json").is_file() else {}
    if before.get("setting") != setting:
        _set_aside_other_settings(out, suite.name, setting, before)
        before = {}
    done = whole_tasks(out, protocols)
    if done:
        print(f"whole already, not run again: {', '.join(task for task in protocols if task in done)}", flush=True)
    todo = {protocol: [one for one in tasks if one not in done] for protocol, tasks in suite.by_protocol().items()}
    todo = {protocol: tasks for protocol, tasks in todo.items() if tasks}
    cache = out / "cache" / digest(setting)
    commands = [command(model, out, suite, *of_protocol, backend, more, str(cache)) for of_protocol in todo.items()]
    record = {"suite": suite.name, "setting": setting, "seconds": before.get("seconds", [])}
    record["commands"] = before.get("commands", []) + [shown(argv) for argv in commands]
    for number, (argv, (protocol, tasks)) in enumerate(zip(commands, todo.items(), strict=True), 1):
        write_text(out / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(f"{number} of {len(commands)}: {len(tasks)} tasks, {protocol}\n{shown(argv)}", flush=True)
        record["seconds"].append(_lm_eval(argv, model, cache.parent))
        _check(out, model, {task: protocol for task in tasks})
    write_text(out / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(out / "cache", ignore_errors=True)


def _lm_eval(argv: list[str], model: Path, cache: Path) -> int:
    """Run it, say every minute how many answers its cache holds, and return its seconds. `UserError` where it fails."""
    # lm_eval stands beside this Python, also where the environment is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "TOKENIZERS_PARALLELISM": "false", IN_MEMORY: IN_MEMORY_BYTES}
    start, before = time.monotonic(), answers(cache)
    with subprocess.Popen(argv, env=environment) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(TICK)
                    break
                minutes = (time.monotonic() - start) / 60
                count = answers(cache) - before
                print(f"{minutes:.0f} min: {count:,} answers, {count / minutes:,.0f} per minute", flush=True)
        except BaseException:
            process.kill()
            raise
    if code:
        raise UserError(f"lm_eval ended with {code} on {model}; its own message is above")
    return round(time.monotonic() - start)


def answers(cache: Path) -> int:
    """How many answers lm-eval's cache of answers holds, one file per process of it."""
    count = 0
    for path in cache.glob("*.db"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            count += database.execute("select count(*) from unnamed").fetchone()[0]
    return count


def _check(out: Path, model: Path, tasks: dict[str, Protocol]) -> None:
    """lm_eval ends with 0 when it could not write its results, and where a task's file fixes its number of shots."""
    files = results_files(out)
    if not files:
        raise UserError(f"{out}: lm_eval ended well on {model} and left no results there; see its messages above")
    for task, protocol in tasks.items():
        if wrong := _fault(ResultsFile(files[-1]), task, protocol):
            raise UserError(f"{files[-1]}: {wrong}; see lm_eval's messages above")


def whole_tasks(out: Path, tasks: dict[str, Protocol]) -> set[str]:
    """Those of `tasks` (name -> protocol) whose results and samples under `out` are whole; says what is run again.

    The newest file that holds a task counts, as in the report. A file that is cut short is set aside.
    """
    faults: dict[str, str | None] = {}
    for path in results_files(out):
        try:
            file = ResultsFile(path)
        except UserError as error:
            set_aside(path, str(error))
            continue
        present = [task for task in tasks if file.counts.keys() & set(leaves(file.subtasks, task))]
        faults |= {task: _fault(file, task, tasks[task]) for task in present}
    for task, wrong in faults.items():
        if wrong:
            print(f"{task} is run again: {wrong}", flush=True)
    return {task for task, wrong in faults.items() if wrong is None}


def _fault(file: ResultsFile, task: str, protocol: Protocol) -> str | None:
    """Why the results in `file` are not those of `task`, in words; None if they are."""
    for leaf in leaves(file.subtasks, task):
        if leaf not in file.counts:
            return f"{leaf} is not in it"
        if (asked := protocol_of(file.facts(leaf))) != protocol:
            return f"{leaf} was asked {asked}, not {protocol}"
        try:
            file.samples(leaf)
        except UserError as error:
            return str(error)
    return None


def results_files(out: Path, nested: bool = False) -> list[Path]:
    """Results files of the suite that was run to `out`, the newest last; `nested`: also what others wrote below it."""
    paths = out.rglob("results_*.json") if nested else out.glob("*_shot*/**/results_*.json")
    return sorted(paths, key=lambda path: path.name)


def set_aside(path: Path, why: str) -> None:
    """Rename a results file and its samples, so that no reader takes them for results."""
    print(f"{path} is not used, and named {STALE} from now on: {why}", flush=True)
    for file in [*path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl"), path]:
        file.rename(file.with_name(file.name + STALE))


def _set_aside_other_settings(out: Path, suite: str, setting: dict[str, Any], before: dict[str, Any]) -> None:
    """Set aside results of another model, template, backend, seed, version or folder of tasks, and say what differs.

    `before`: what run.json held. `UserError` where they are another suite's results of this very model: hours of work
    that are as good as before.
    """
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

    What is in the cache already is not fetched again; what a task shuffles is not kept, as in a run (`IN_MEMORY`).
    `UserError` names the tasks that failed, and the remedy.
    """
    require(suite.name, suite.needs)
    import datasets
    from lm_eval.tasks import TaskManager, get_task_dict

    datasets.config.IN_MEMORY_MAX_SIZE = float(IN_MEMORY_BYTES)
    random.seed(suite.seed)
    manager = TaskManager(include_path=str(suite.tasks_folder))
    tasks = [task for of_protocol in suite.by_protocol().values() for task in of_protocol]
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
