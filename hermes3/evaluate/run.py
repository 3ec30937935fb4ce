"""Running a suite: plain `lm_eval` commands, which a user may copy, one process per protocol.
Tasks with whole results of an equal setting are not run again; what a killed process answered is in lm-eval's cache."""

import hashlib
import importlib.metadata
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_json, sha256, write_text
from hermes3.model_folder import check_model
from hermes3.results.lm_eval import ResultsFile, leaves, protocol_of
from hermes3.results.suite import Protocol, Suite

VLLM_CHUNK = 512  # requests at once: lm-eval's cache learns of them when all are done, of 500,000 much too late
FIXED = {"pretrained", "add_bos_token", "prefix_token_id"}  # the model, and what would add a second BOS
STALE = ".stale"  # no reader of results looks at it
TICK = 60  # seconds between two words of progress
# GPQA and others shuffle choices by `random` inside Dataset.map, whose result the cache of datasets keeps whatever the
# seed. Of a data set that is held in memory it keeps nothing, so that the order follows the seed.
IN_MEMORY, IN_MEMORY_BYTES = "HF_DATASETS_IN_MEMORY_MAX_SIZE", "1e9"
PACKAGES = ("lm_eval", "transformers", "torch", "vllm")
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def run(
    model: Path, out: Path, suite: Suite, backend: str = "hf", more: str = "", dry_run: bool = False, part: str = ""
) -> None:
    """Print the commands and run those whose results are not there; `OUT/run.json` holds the setting.
    `part`: "i/N", a share of the tasks. `UserError` for a model that is not fit to evaluate, or a run that failed."""
    number, count = part_of(part, out)
    calls = suite.by_protocol(number, count)
    # parts run at once: each has folders of its own, for its results and for its answers
    own = f"part_{number}_of_{count}" if count > 1 else ""
    if not calls:
        print(f"part {number} of {count}: nothing to ask, {suite.name} has fewer tasks")
    if dry_run:
        for call in calls.items():
            print(shown(command(model, out, suite, *call, backend, more, own)))
        return
    check_model(model)
    _require(suite, *(["vllm"] if backend == "vllm" else []))
    setting = setting_of(model, suite, backend, model_args(suite, backend, more))
    _set_aside_other_settings(out, suite.name, setting)
    record = {"suite": suite.name, "setting": setting} | ({"parts": count} if own else {})
    write_text(out / "run.json", json.dumps(record, indent=2) + "\n")
    done = whole_tasks(out, calls, own)
    if done:
        print(f"whole already, not run again: {', '.join(task for _, task in done)}", flush=True)
    left = {protocol: [task for task in calls[protocol] if (protocol, task) not in done] for protocol in calls}
    calls = {protocol: tasks for protocol, tasks in left.items() if tasks}
    cache = out / "cache" / own / digest(setting)
    for number, (protocol, tasks) in enumerate(calls.items(), 1):
        argv = [*command(model, out, suite, protocol, tasks, backend, more, own), "--use_cache", str(cache)]
        print(f"{number} of {len(calls)}: {len(tasks)} tasks, {protocol}\n{shown(argv)}", flush=True)
        _lm_eval(argv, model, cache.parent)
        if read_json(out / "run.json", "setting")["setting"] != setting:
            other = "another run under another setting has begun here meanwhile"
            for path in (out / protocol.folder / own).glob("*/results_*.json"):
                set_aside(path, other)
            raise UserError(f"{out}: {other}; give each --out of its own")
        # it ends with 0 when it could not write its results, and where a task's file fixes its number of shots
        done = whole_tasks(out, {protocol: tasks}, own)
        if missing := [task for task in tasks if (protocol, task) not in done]:
            wrong = f"lm_eval ended well and left no whole results of {', '.join(missing)}, asked {protocol}"
            raise UserError(f"{out}: {wrong}; see its messages above")
    shutil.rmtree(cache.parent, ignore_errors=True)


def part_of(text: str, out: Path) -> tuple[int, int]:
    """(i, N) of "i/N", and of "i" with the N that OUT/run.json notes; (1, 1) of "". `UserError` for anything else."""
    number, _, count = (text or "1/1").partition("/")
    if not count and (out / "run.json").is_file():
        count = str(read_json(out / "run.json").get("parts"))
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part {text}: give i/N, from 1/N to N/N; i alone is of as many as {out}/run.json notes")
    return int(number), int(count)


def model_args(suite: Suite, backend: str, more: str = "") -> str:
    """lm_eval's `--model_args`, without the model. `more` is the user's, as `tensor_parallel_size=8`."""
    if named := sorted({part.partition("=")[0] for part in more.split(",")} & FIXED):
        raise UserError(f"--model-args {named[0]}: `hermes3 eval` sets it; leave it out")
    length = {"hf": f"max_length={suite.max_length}", "vllm": f"max_model_len={suite.max_length},seed={suite.seed}"}
    return ",".join(filter(None, [f"dtype={suite.dtype}", length[backend], more]))


def command(
    model: Path, out: Path, suite: Suite, protocol: Protocol, tasks: list[str], backend: str, more: str, part: str = ""
) -> list[str]:
    """The `lm_eval` call that asks `tasks` of `suite` of `model` by `protocol`."""
    turns = () if protocol.fewshot_as_turns else ("--fewshot_as_multiturn", "false")
    return [
        *("lm_eval", "run", "--model", backend),
        *("--model_args", f"pretrained={model},{model_args(suite, backend, more)}"),
        *(("--device", suite.device) if backend == "hf" else ()),
        *("--include_path", str(suite.include_path), "--tasks", ",".join(tasks)),
        *("--num_fewshot", str(protocol.shots), *(("--apply_chat_template", *turns) if protocol.chat_template else ())),
        *("--batch_size", str(suite.batch_size if backend == "hf" else VLLM_CHUNK)),
        *("--seed", ",".join(map(str, [*[suite.seed] * 3, suite.fewshot_seed]))),
        *(("--limit", str(suite.limit)) if suite.limit else ()),
        *("--output_path", str(out / protocol.folder / part), "--log_samples"),
    ]


def shown(argv: list[str]) -> str:
    return f"{IN_MEMORY}={IN_MEMORY_BYTES} {shlex.join(argv)}"


def _require(suite: Suite, *more: str) -> None:
    for module in (*suite.needs, *more):
        if not find_spec(module):
            raise UserError(f"{suite.name}: no {module} here; install requirements-eval.txt, an environment of its own")


def setting_of(model: Path, suite: Suite, backend: str, model_args: str) -> dict[str, Any]:
    """All that a score depends on, as plain data. `UserError` where prompts would begin with two BOS."""
    setting = {"model": str(model), "weights": fingerprint(model), "bos": prompt_start(model), "backend": backend}
    setting |= {"model_args": model_args, "seed": suite.seed, "fewshot_seed": suite.fewshot_seed, "limit": suite.limit}
    setting["chat_template_sha"] = sha256(model / "chat_template.jinja")  # as lm-eval writes it into its results
    setting["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES if find_spec(name)}
    return setting | ({"own_tasks": own} if (own := own_tasks(suite)) else {})


def digest(*parts: Any) -> str:
    """16 hex digits that change when any of `parts`, plain data, does."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: Path) -> str:
    """Changes when the model does. Of weights size and time count: hashing 812 GB takes ten minutes."""
    parts = [(name, sha256(model / name)) for name in SMALL if (model / name).is_file()]
    weights = [(path.name, path.stat()) for path in sorted(model.glob("*.safetensors"))]
    parts += [(name, f"{stat.st_size} {stat.st_mtime_ns}") for name, stat in weights]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def prompt_start(model: Path) -> dict[str, Any]:
    """{"token": BOS or None, "count": how often a chat prompt begins with it}; `UserError` where that is twice."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat, bos = [{"role": "user", "content": "x"}], tokenizer.bos_token
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    # lm-eval 0.4.11 lets the tokenizer add its special tokens unless the text begins with what `bos_token` (or else
    # `eos_token`) names: a BOS that the configuration does not name comes twice, and a template may write two
    prefix = bos or tokenizer.eos_token
    ids = tokenizer.encode(text, add_special_tokens=not (prefix and text.startswith(prefix)))[:2]
    first, *second = tokenizer.convert_ids_to_tokens(ids)
    if [first] == second:
        remedy = "let chat_template.jinja or tokenizer.json write it, and bos_token of tokenizer_config.json name it"
        raise UserError(f"{model}: prompts would begin with two {first}; {remedy} (now {bos})")
    return {"token": bos, "count": int(first == bos)}


def own_tasks(suite: Suite) -> str | None:
    """A hash of the folder of tasks beside lm-eval's own; None where no task of the suite is from there."""
    files = {str(path.relative_to(suite.include_path)): path for path in sorted(suite.include_path.rglob("*.*"))}
    files = {name: path for name, path in files.items() if path.is_file() and "__pycache__" not in name}
    texts = "\n".join(path.read_text(encoding="utf-8") for path in files.values() if path.suffix in (".yaml", ".yml"))
    own = set(re.findall(r"^(?:task|group): *(\S+)", texts, re.MULTILINE))
    asked = {task for tasks in suite.by_protocol().values() for task in tasks}
    return digest({name: sha256(path) for name, path in files.items()}) if own & asked else None


def _lm_eval(argv: list[str], model: Path, cache: Path) -> None:
    # lm_eval stands beside this Python, also where the environment is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "TOKENIZERS_PARALLELISM": "false", IN_MEMORY: IN_MEMORY_BYTES}
    start, before = time.monotonic(), answers(cache)
    with subprocess.Popen(argv, env=environment) as process:
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TICK)
                minutes, count = (time.monotonic() - start) / 60, answers(cache) - before
                print(f"{minutes:.0f} min: {count:,} answers, {count / minutes:,.0f} per minute", flush=True)
        finally:
            process.kill()
    if process.returncode:
        raise UserError(f"lm_eval ended with {process.returncode} on {model}; its own message is above")


def answers(cache: Path) -> int:
    """How many answers lm-eval's cache of answers holds, one file per process of it."""
    count = 0
    for path in cache.glob("*.db"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            count += database.execute("select count(*) from unnamed").fetchone()[0]
    return count


def whole_tasks(out: Path, calls: dict[Protocol, list[str]], part: str = "") -> list[tuple[Protocol, str]]:
    """The tasks of `calls` whose results and samples under `out` are whole.
    A file that is cut short is set aside; by a part only if it is its own, as another part may be writing it."""
    done: dict[tuple[Protocol, str], None] = {}
    for path in results_files(out):
        try:
            file = ResultsFile(path)
            protocols = {task: protocol_of(file.facts(task)) for task in file.tasks if file.samples(task)}
        except UserError as error:
            if part in ("", path.parent.parent.name):
                set_aside(path, str(error))
            else:
                print(f"{path} is not whole, or not yet: {error}", flush=True)
            continue
        for call in ((protocol, task) for protocol, tasks in calls.items() for task in tasks):
            if {protocols.get(leaf) for leaf in leaves(file.subtasks, call[1])} == {call[0]}:
                done[call] = None
    return list(done)


def results_files(out: Path, nested: bool = False) -> list[Path]:
    """Results files of the suite that was run to `out`, the newest last; `nested`: also what others wrote below it."""
    return sorted(out.glob("**/results_*.json" if nested else "*_shot*/**/results_*.json"), key=lambda path: path.name)


def set_aside(path: Path, why: str) -> None:
    """Rename a results file and its samples, so that no reader takes them for results."""
    print(f"{path} is not used, and named {STALE} from now on: {why}", flush=True)
    for file in [*path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl"), path]:
        with suppress(FileNotFoundError):  # another part was first
            file.rename(file.with_name(file.name + STALE))


def _set_aside_other_settings(out: Path, suite: str, setting: dict[str, Any]) -> None:
    """`UserError` where they are another suite's results of this very model: hours of work, as good as before."""
    before = read_json(out / "run.json", "suite", "setting") if (out / "run.json").is_file() else {}
    old = before.get("setting", {})
    changed = [key for key, value in setting.items() if old.get(key) != value]
    why = ", ".join(f"{key} was {old.get(key)}, is {setting[key]}" for key in changed)
    other_model = not {"model", "weights"}.isdisjoint(changed)
    if changed and before and before["suite"] != suite and not other_model:
        wrong = f"results of suite {before['suite']} under another setting ({why})"
        raise UserError(f"{out}: {wrong}; give --out {out}/{suite}")
    # of another model, MT-Bench's results and those of a suite that was run to a folder below are stale too
    for path in results_files(out, nested=bool(before) and other_model) if changed else ():
        set_aside(path, why if before else "no run.json says how it was made")


def fetch(suite: Suite) -> None:
    """Load each task as lm-eval will, so that its questions are in the cache: many nodes have no network.
    `UserError` names the tasks that failed, and the remedy."""
    _require(suite)
    import datasets
    from lm_eval.tasks import TaskManager, get_task_dict

    datasets.config.IN_MEMORY_MAX_SIZE = float(IN_MEMORY_BYTES)
    random.seed(suite.seed)
    manager = TaskManager(include_path=str(suite.include_path))
    tasks = [task for of_protocol in suite.by_protocol().values() for task in of_protocol]
    failed = []
    for number, task in enumerate(tasks, 1):
        try:
            get_task_dict([task], manager)
            if "ifeval" in task:  # on import it asks nltk for the data, which fails in silence
                import nltk

                nltk.data.find("tokenizers/punkt_tab")
            outcome = "here"
        except Exception as error:  # the Hub's, the data's or the network's: each library has its own
            failed.append(task)
            outcome = f"failed: {type(error).__name__}: " + str(error).strip().partition("\n")[0]
        print(f"{number} of {len(tasks)}: {task}: {outcome}", flush=True)
    if failed:
        wrong = f"{len(failed)} of {len(tasks)} tasks failed, each for the reason above: {', '.join(failed)}"
        remedy = "run this again where there is a network, without HF_HUB_OFFLINE"
        gated = "for a gated data set (GPQA's is one) accept its terms on the Hub and set HF_TOKEN"
        raise UserError(f"{suite.name}: {wrong}; {remedy}; {gated}")
