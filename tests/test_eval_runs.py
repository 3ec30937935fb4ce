"""Whole runs of lm-eval over local task files: a kill in the middle, and what is run again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import yaml
from conftest import ROOT
from lm_eval.tasks import TaskManager, get_task_dict
from quick_site import QuickSite

from hermes3.evaluate import run as module
from hermes3.evaluate.run import STALE, answers, fetch, results_files, run
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import GroupSpec, Protocol, Suite, load

DATA = yaml.safe_load((ROOT / "tests/eval_runs.yml").read_text())
CHOICES = [{"question": f"{n} + 1?", "choices": ["1", "2", "3"], "gold": n % 3} for n in range(9)]
SUMS = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(9)]
VLLM = ROOT / ".venv-eval/bin/python"
EVERY = ["sat", "lsat", "bbh", "gsm"]  # in the order in which they are run


def write_tasks(folder: Path, tasks: dict, data: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, task in tasks.items():
        text = re.sub("'(!function .*)'", r"\1", yaml.safe_dump(task)).replace("{folder}", str(data))
        (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A suite of two protocols, as local lm-eval tasks: a group of two, two of choices, and one of sums."""
    folder = tmp_path_factory.mktemp("local")
    for name, rows in (("choices", CHOICES), ("sums", SUMS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tasks(folder / "tasks", DATA["tasks"], folder)
    plain = yaml.safe_load((ROOT / "eval/suites/tiny.yml").read_text())
    return folder, Suite.model_validate(plain | DATA["suite"] | {"include_path": folder / "tasks"})


@pytest.fixture(scope="module")
def evaluated(local, base):
    """The suite on the base model, killed when the first answers were in and run again; what the second run said."""
    folder, suite = local
    (folder / "local.yml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    argv = [sys.executable, "-m", "hermes3.cli", "eval", str(base), "--suite", str(folder / "local.yml")]
    argv += ["--out", str(folder / "out")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(argv, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    while first.poll() is None and not answers(folder / "out/cache"):
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = answers(folder / "out/cache")
    ran = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder, suite, kept, ran.stdout + ran.stderr


def test_a_killed_run_goes_on_with_the_answers_that_it_had_and_leaves_tasks_by_their_protocols(evaluated):
    folder, _, kept, said = evaluated
    # sat and lsat ask the same here, so an answer may serve two requests
    assert int(re.search(r"Cached requests: (\d+),", said)[1]) >= kept > 0 and not (folder / "out/cache").exists()
    assert all(f"--num_fewshot {shots} " in said for shots in (0, 1))
    stage = read_evaluation("base", folder / "out")
    chat, plain = Protocol(1, True, True), Protocol(0, False, False)
    asked = {"navigate": chat, "boolean": chat, "gsm": chat, "sat": plain, "lsat": plain}
    assert {task: stage.protocol(task) for task in stage.tasks} == asked
    assert stage.subtasks["bbh"] == ["navigate", "boolean"]
    assert {key[2] for key in stage.scores if key[0] == "gsm"} == {"strict-match", "last"}
    lines = {task: json.loads(path.read_text().splitlines()[0]) for task, path in stage.samples_files.items()}
    prompts = {task: sample["arguments"]["gen_args_0"]["arg_0"] for task, sample in lines.items()}
    assert prompts["sat"] == prompts["lsat"] == "0 + 1?"
    for prompt in (prompts["gsm"], prompts["navigate"]):
        assert prompt.startswith("<|begin_of_text|><|im_start|>system\n") and prompt.count("<|begin_of_text|>") == 1
        assert prompt.endswith("<|im_start|>assistant\n")
    assert prompts["gsm"].count("<|im_start|>user") == 2, "an example is a turn of its own"
    # the setting is recorded as lm_eval saw it
    record = json.loads((folder / "out/run.json").read_text())
    setting = record["setting"]
    choices, results = (json.loads(path.read_text()) for path in results_files(folder / "out"))
    assert choices["chat_template_sha"] is None and setting["chat_template_sha"] == results["chat_template_sha"]
    assert setting["versions"]["lm_eval"] == results["lm_eval_version"] and record["suite"] == "local"
    assert setting["bos"] == {"token": "<|begin_of_text|>", "count": 1}
    assert {results["config"][f"{name}_seed"] for name in ("random", "numpy", "torch")} == {setting["seed"]} == {42}
    assert results["config"]["fewshot_seed"] == setting["fewshot_seed"] == 1234


@pytest.fixture
def again(evaluated, base, tmp_path, monkeypatch, capfd):
    """A copy of the results, and a function that evaluates again: the tasks that lm_eval would run, and what was said.

    lm_eval itself is not started: what is asked here is which tasks need it.
    """
    folder, suite, _, _ = evaluated
    shutil.copytree(folder / "out", tmp_path / "out")
    asked, whole_tasks = [], module.whole_tasks

    def whole(out, calls, part):
        every = [(protocol, task) for protocol in calls for task in calls[protocol]]
        return every if asked else whole_tasks(out, calls, part)

    monkeypatch.setattr(module, "_lm_eval", lambda argv, *_: asked.extend(argv[argv.index("--tasks") + 1].split(",")))
    monkeypatch.setattr(module, "whole_tasks", whole)

    def evaluate(**changes):
        asked.clear()
        run(base, tmp_path / "out", suite.model_copy(update=changes))
        return asked, capfd.readouterr().out

    return tmp_path / "out", evaluate


def edit_record(out, **changes):
    record = json.loads((out / "run.json").read_text())
    record["setting"] |= changes
    (out / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("harm", "tasks", "words", "stale"),
    [
        (lambda out: None, [], f"whole already, not run again: {', '.join(EVERY)}", 0),
        (lambda out: next(out.rglob("samples_navigate_*")).unlink(), EVERY[2:], "samples_navigate_", 1),
        (lambda out: os.truncate(next(out.glob("0_shot_plain/**/results_*")), 1000), EVERY[:2], "not JSON", 1),
        (lambda out: edit_record(out, limit=4), EVERY, "limit was 4, is 3", 2),
        (lambda out: edit_record(out, own_tasks="0"), EVERY, "own_tasks was 0", 2),
        (lambda out: edit_record(out, weights="0"), EVERY, "weights was 0", 3),
        (lambda out: (out / "run.json").unlink(), EVERY, "no run.json says", 2),
    ],
)
def test_only_what_is_whole_and_of_the_same_setting_is_kept(harm, tasks, words, stale, again):
    """What lies below, as MT-Bench's or a second suite's, stands while the model that it is of does."""
    out, evaluate = again
    below = out / "mt_bench/model/results_2026-01-01T00-00-00.json"
    below.parent.mkdir(parents=True)
    below.write_text("{}")
    harm(out)
    asked, said = evaluate()
    assert asked == tasks and words in said
    assert len(list(out.rglob(f"results_*{STALE}"))) == stale and below.exists() == (stale < 3)
    assert bool(list(out.rglob(f"samples_*{STALE}"))) == bool(stale)


def test_another_suite_sets_no_results_aside_and_another_number_of_shots_reuses_none(again, evaluated):
    out, evaluate = again
    with pytest.raises(ValueError, match=f"results of suite local under another setting .*; give --out {out}/other"):
        evaluate(name="other", limit=4)
    assert not list(out.rglob(f"*{STALE}")) and evaluate()[0] == []
    groups = evaluated[1].groups
    assert evaluate(groups=groups | {"GSM8K": groups["GSM8K"].model_copy(update={"num_fewshot": 2})})[0] == ["gsm"]


def test_results_that_come_when_another_setting_has_begun_are_set_aside(evaluated, base, tmp_path, monkeypatch):
    def lm_eval(*_):
        shutil.copytree(evaluated[0] / "out", tmp_path, dirs_exist_ok=True)
        edit_record(tmp_path, limit=4)

    monkeypatch.setattr(module, "_lm_eval", lm_eval)
    with pytest.raises(ValueError, match="another run under another setting has begun here meanwhile; give each --out"):
        run(base, tmp_path, evaluated[1])
    assert [path.parts[-3] for path in results_files(tmp_path)] == ["1_shot"]


def test_our_own_tasks_are_another_setting_when_they_have_changed(local, tmp_path):
    shutil.copytree(local[0] / "tasks", tmp_path / "tasks")
    suite = local[1].model_copy(update={"include_path": tmp_path / "tasks"})
    before = module.own_tasks(suite)
    (tmp_path / "tasks/sat.yaml").open("a").write("# another")
    assert before == module.own_tasks(local[1]) != module.own_tasks(suite)


def test_lm_eval_that_leaves_no_results_is_an_error(local, base, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_lm_eval", lambda *_: None)
    with pytest.raises(ValueError, match="ended well and left no whole results of sat, lsat, asked 0-shot"):
        run(base, tmp_path / "out", local[1])


def test_an_array_s_parts_make_the_results_of_one_process(evaluated, base, slurm, tmp_path, capfd):
    """The first part's node dies, and the third, whose job has the array's number, meets its time limit."""
    folder, suite, _, _ = evaluated
    site, out = QuickSite(tmp_path / "a site", slurm), tmp_path / "a site/the results"
    site.script("bin/hermes3", f'exec {sys.executable} -m hermes3.cli "$@"')
    words = ("launch/eval.sbatch", base, "--suite", folder / "local.yml", "--out", "the results")
    jid = site.command("--array=1-3", *words, HF_DATASETS_CACHE=str(folder / "cache"))
    tasks = [f"{jid}_{number}" for number in (1, 2, 3)]
    numbers = [int(slurm.wait_job(task, ("RUNNING",))["JobId"]) for task in tasks]
    assert numbers[2] == jid
    site.wait_log(jid, "1 of 1: 1 tasks, 1-shot")
    site.notice(tasks[2])
    site.wait_log(numbers[0], "2 of 2: 1 tasks, 1-shot")
    (node,) = slurm.hosts(tasks[0])
    slurm.kill_node(node)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # or wait for 300 s
    assert [site.end(task) for task in tasks] == [("COMPLETED", restarts) for restarts in (1, 0, 1)]
    assert "whole already, not run again: lsat\n" in site.log(numbers[0])
    again = site.command("--array=2", *words)
    assert site.end(again) == ("COMPLETED", 0) and "whole already, not run again: sat\n" in site.log(again)
    parts, one = (read_evaluation("base", place) for place in (out, folder / "out"))
    assert (parts.scores, parts.docs, parts.tasks) == (one.scores, one.docs, one.tasks)
    assert {path.parts[-3] for path in parts.results_files} == {f"part_{number}_of_3" for number in (1, 2, 3)}
    run(base, out, suite)
    assert "lm_eval run" not in capfd.readouterr().out and not (out / "cache").exists()


@pytest.mark.skipif(not VLLM.exists(), reason="no .venv-eval: bash launch/install.sh .venv-eval requirements-eval.txt")
def test_the_locked_vllm_s_own_parser_takes_our_options():
    """Those of a suite, of `launch/eval.sbatch` and of the README's server; without a GPU vLLM must be told so."""
    of_script = re.search(r'--model-args "(\w+)=', (ROOT / "launch/eval.sbatch").read_text())[1]
    pairs = module.model_args(load("paper"), "vllm", f"{of_script}=8").split(",")
    engine = [f"--{name.replace('_', '-')}={value}" for name, _, value in (pair.partition("=") for pair in pairs)]
    server = re.search(r"bin/vllm serve (.*)", (ROOT / "README.md").read_text())[1].split()
    subprocess.run([VLLM, "-c", DATA["vllm"], json.dumps([["model", *engine], server])], check=True)


def test_questions_are_fetched_ahead_and_what_is_missing_is_named(local, tmp_path, monkeypatch, capsys):
    """A task whose file is not there and one of the Hub fail; those behind them are fetched all the same.

    What a task shuffles is not kept: the next load has the order of its own seed.
    """
    folder, suite = local
    write_tasks(tmp_path / "tasks", DATA["tasks"] | DATA["fetched"], folder)
    (tmp_path / "tasks/shuffled.py").write_text(DATA["shuffled"])
    tasks = {"gone": "exact_match", "arc_easy": "acc", "mixed": "acc", "lsat": "acc"}
    fetched = suite.model_copy(update={"include_path": tmp_path / "tasks", "seed": 7})
    fetched.groups = {"All": GroupSpec(tasks=tasks, num_fewshot=0)}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 0)
    with pytest.raises(ValueError, match="2 of 4 tasks failed, each for the reason above: gone, arc_easy; run"):
        fetch(fetched)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 of 4: gone: failed: FileNotFoundError: ")
    assert lines[1].startswith("2 of 4: arc_easy: failed: ")
    assert lines[2:] == ["3 of 4: mixed: here", "4 of 4: lsat: here"]
    assert list((tmp_path / "cache/json").iterdir()) and not list(tmp_path.rglob("cache-*.arrow"))
    orders = []
    for cache in ("cache", "fresh"):  # as fetched, and where nothing was
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / cache)
        monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 0)
        random.seed(42)
        docs = get_task_dict(["mixed"], TaskManager(include_path=str(tmp_path / "tasks")))["mixed"].eval_docs
        orders.append([doc["gold"] for doc in docs])
    assert orders[0] == orders[1]
