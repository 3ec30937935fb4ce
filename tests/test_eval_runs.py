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
from typer.testing import CliRunner

from hermes3.cli import app
from hermes3.evaluate.run import STALE, answers, fetch, results_files, run
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import GroupSpec, Protocol, Suite

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
fewshot_split: train
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
{more}
metadata: {{version: 1}}
"""
CHOICE = """\
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]"""
GENERATE = """\
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Q:"], do_sample: false, max_gen_toks: 8}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: '#### (-?[0-9.,]+)'}, {function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: '([0-9]+)', group_select: -1}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
CHOICES = [{"question": f"{n} + 1?", "choices": ["1", "2", "3"], "gold": n % 3} for n in range(9)]
SHUFFLED = """import random

def docs(rows):
    return rows.map(lambda row: {"gold": random.randrange(3)})
"""
SUMS = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(9)]
EVERY = ["sat", "lsat", "bbh", "gsm"]  # in the order in which they are run


def write_task(folder: Path, name: str, file: Path, output_type: str = "multiple_choice", more: str = CHOICE) -> None:
    text = TASK.format(name=name, file=file, output_type=output_type, more=more)
    (folder / f"tasks/{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A suite of two protocols, as local lm-eval tasks: a group of two, two of choices, and one of sums."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "tasks").mkdir()
    for name, rows in (("choices", CHOICES), ("sums", SUMS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("navigate", "boolean", "sat", "lsat"):
        write_task(folder, name, folder / "choices.jsonl")
    write_task(folder, "gsm", folder / "sums.jsonl", "generate_until", GENERATE)
    group = "aggregate_metric_list: [{metric: acc_norm, weight_by_size: true}]\n"
    (folder / "tasks/bbh.yaml").write_text("group: bbh\ntask: [navigate, boolean]\n" + group)
    suite = {
        "groups": {
            "BBH": {"tasks": {"bbh": "acc_norm"}, "num_fewshot": 1, "aggregation": "weighted"},
            "AGIEval": {"tasks": {"sat": "acc_norm", "lsat": "acc"}, "num_fewshot": 0, "chat_template": False},
            "GSM8K": {"tasks": {"gsm": "exact_match,strict-match"}, "num_fewshot": 1},
        },
        "include_path": str(folder / "tasks"),
        "limit": 3,
    }
    plain = yaml.safe_load((ROOT / "eval/suites/tiny.yml").read_text())
    return folder, Suite.model_validate(plain | suite | {"name": "local", "batch_size": 4})


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


def test_a_killed_run_goes_on_with_the_answers_that_it_had(evaluated):
    folder, _, kept, said = evaluated
    # sat and lsat ask the same here, so an answer may serve two requests
    assert int(re.search(r"Cached requests: (\d+),", said)[1]) >= kept > 0
    assert not (folder / "out/cache").exists()


def test_tasks_run_by_their_protocols_with_samples_and_are_read_together(evaluated):
    folder, _, _, _ = evaluated
    stage = read_evaluation("base", folder / "out")
    assert {task: stage.protocol(task) for task in stage.tasks} == {
        **dict.fromkeys(("navigate", "boolean", "gsm"), Protocol(1, True, True)),
        **dict.fromkeys(("sat", "lsat"), Protocol(0, False, False)),
    }
    assert stage.subtasks["bbh"] == ["navigate", "boolean"]
    assert {key[2] for key in stage.scores if key[0] == "gsm"} == {"strict-match", "last"}
    prompts = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        sample = json.loads(path.read_text().splitlines()[0])
        prompts[path.name.split("_")[1]] = sample["arguments"]["gen_args_0"]["arg_0"]
    assert len(prompts) == 5
    assert prompts["sat"] == prompts["lsat"] == "0 + 1?"
    for prompt in (prompts["gsm"], prompts["navigate"]):
        assert prompt.startswith("<|begin_of_text|><|im_start|>system\n") and prompt.count("<|begin_of_text|>") == 1
        assert prompt.endswith("<|im_start|>assistant\n")
    assert prompts["gsm"].count("<|im_start|>user") == 2, "an example is a turn of its own"


def test_the_setting_is_recorded_as_lm_eval_saw_it(evaluated, base):
    folder, _, _, said = evaluated
    record = json.loads((folder / "out/run.json").read_text())
    setting = record["setting"]
    plain, results = (json.loads(path.read_text()) for path in results_files(folder / "out"))
    assert plain["chat_template_sha"] is None
    assert setting["chat_template_sha"] == results["chat_template_sha"]
    assert setting["versions"]["lm_eval"] == results["lm_eval_version"]
    assert setting["bos"] == {"token": "<|begin_of_text|>", "count": 1}
    assert {results["config"][f"{name}_seed"] for name in ("random", "numpy", "torch")} == {setting["seed"]} == {42}
    assert results["config"]["fewshot_seed"] == setting["fewshot_seed"] == 1234
    assert len(record["seconds"]) == 2
    assert all(line in said for line in record["commands"][-2:])
    assert all(f"--num_fewshot {shots}" in record["commands"][-2:][shots] for shots in (0, 1))


@pytest.fixture
def again(evaluated, base, tmp_path, monkeypatch, capfd):
    """A copy of the results, and a function that evaluates again: the tasks that lm_eval would run, and what was said.

    lm_eval itself is not started: what is asked here is which tasks need it.
    """
    folder, suite, _, _ = evaluated
    shutil.copytree(folder / "out", tmp_path / "out")
    asked = []

    def note(argv, model, cache):
        asked.extend(argv[argv.index("--tasks") + 1].split(","))
        return 1

    monkeypatch.setattr("hermes3.evaluate.run._lm_eval", note)
    monkeypatch.setattr("hermes3.evaluate.run._check", lambda *_: None)

    def evaluate(**changes):
        asked.clear()
        run(base, tmp_path / "out", suite.model_copy(update=changes))
        return asked, capfd.readouterr().out

    return tmp_path / "out", evaluate


def test_whole_results_are_not_made_again(again):
    asked, said = again[1]()
    assert asked == [] and f"whole already, not run again: {', '.join(EVERY)}" in said
    assert not list(again[0].rglob(f"*{STALE}"))


def test_a_task_without_its_samples_is_run_again_alone(again):
    out, evaluate = again
    next(out.rglob("samples_navigate_*.jsonl")).unlink()
    asked, said = evaluate()
    assert asked == ["bbh"] and "bbh is run again: " in said and "navigate" in said


def test_a_results_file_that_is_cut_short_is_set_aside(again):
    out, evaluate = again
    path = next((out / "0_shot_plain").rglob("results_*.json"))
    path.write_text(path.read_text()[:1000])
    asked, said = evaluate()
    assert asked == EVERY[:2] and f"{path} is not used" in said and "cut short" in said
    assert path.with_name(path.name + STALE).is_file() and not path.exists()
    assert not list((out / "0_shot_plain").rglob("samples_*.jsonl"))


def test_results_with_another_number_of_shots_are_not_reused(again, evaluated):
    groups = evaluated[1].groups
    asked, said = again[1](groups=groups | {"GSM8K": groups["GSM8K"].model_copy(update={"num_fewshot": 2})})
    assert asked == ["gsm"] and "gsm was asked 1-shot, with the chat template, examples as turns, not 2-shot" in said


def test_another_suite_sets_no_results_aside(again):
    out, evaluate = again
    with pytest.raises(ValueError, match=f"results of suite local under another setting .*; give --out {out}/other"):
        evaluate(name="other", limit=4)
    assert not list(out.rglob(f"*{STALE}")) and evaluate()[0] == []


@pytest.mark.parametrize(
    ("what", "why"), [("limit", "limit was 3, is 4"), ("weights", "weights was 0"), ("unknown", "no run.json says")]
)
def test_results_of_another_setting_are_set_aside(what, why, again):
    """What lies below, as MT-Bench's or a second suite's, stands while the model that it is of does."""
    out, evaluate = again
    below = out / "mt_bench/model/results_2026-01-01T00-00-00.json"
    below.parent.mkdir(parents=True)
    below.write_text("{}")
    record = json.loads((out / "run.json").read_text())
    if what == "weights":
        record["setting"]["weights"] = "0"
    (out / "run.json").write_text(json.dumps(record))
    if what == "unknown":
        (out / "run.json").unlink()
    asked, said = evaluate(**({"limit": 4} if what == "limit" else {}))
    assert asked == EVERY and why in said
    assert below.exists() == (what != "weights")
    assert not results_files(out) and len(list((out).glob(f"*_shot*/**/results_*{STALE}"))) == 2


def test_our_own_tasks_run_again_when_they_have_changed(again, local):
    rows = local[0] / "tasks/sat.yaml"
    before = rows.read_text()
    try:
        rows.write_text(before + "\n# another\n")
        asked, said = again[1]()
    finally:
        rows.write_text(before)
    assert asked == EVERY and "own_tasks was" in said


# questions fetched ahead


def test_questions_are_fetched_ahead_and_what_is_missing_is_named(local, tmp_path, monkeypatch, capsys):
    """A task whose file is not there and one of the Hub fail; those behind them are fetched all the same.

    What a task shuffles is not kept: the next load has the order of its own seed.
    """
    folder, suite = local
    shutil.copytree(folder / "tasks", tmp_path / "tasks")
    write_task(tmp_path, "gone", tmp_path / "gone.jsonl", "generate_until", GENERATE)
    write_task(tmp_path, "mixed", folder / "choices.jsonl", more=CHOICE + "\nprocess_docs: !function shuffled.docs")
    (tmp_path / "tasks/shuffled.py").write_text(SHUFFLED)
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


def test_a_model_is_needed_but_to_fetch(capsys):
    for words in (["--suite", "tiny"], ["outputs/none", "--suite", "tiny"]):
        refused = CliRunner().invoke(app, ["eval", *words])
        assert isinstance(refused.exception, ValueError) and "give MODEL and --out FOLDER" in str(refused.exception)
