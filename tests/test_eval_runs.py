"""Whole runs of lm-eval over local task files: real questions, a kill in the middle, and what is run again."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.evaluate.run import STALE, results_files, run
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import Suite

REAL = ROOT.parent / "shared/data/eval"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {file}{field}}}
test_split: train
fewshot_split: train
process_docs: !function rows.{rows}
output_type: {output_type}
{more}
metadata: {{version: 1}}
"""
CHOICE = """\
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]"""
GSM8K = """\
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Q:"], do_sample: false, max_gen_toks: 8}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: '#### (-?[0-9.,]+)'}, {function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: '([0-9]+)', group_select: -1}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
ROWS = """\
import re


def bbh(data):
    choices = sorted(set(data["target"]))
    return data.map(lambda row: {"question": row["input"], "choices": choices, "gold": choices.index(row["target"])})


def agieval(data):
    def row(given):
        options = [re.sub(r"^\\(.\\)", "", option) for option in given["options"]]
        question = f"{given['passage'] or ''}\\n{given['question']}"
        return {"question": question, "choices": options, "gold": ord(given["label"]) - ord("A")}

    return data.filter(lambda given: given["label"] in "ABCDE").map(row)


def gsm8k(data):
    return data
"""


def questions(name: str, folder: Path) -> Path:
    """The public file of questions, or where it is not, one of the same shape."""
    if (REAL / name).is_file():
        return REAL / name
    kind, made = name.partition("/")[0], folder / Path(name).name
    if kind == "bbh":
        rows = [{"input": f"Is {n} even?", "target": "no" if n % 2 else "yes"} for n in range(9)]
        made.write_text(json.dumps({"examples": rows}))
    elif kind == "agieval":
        options = ["(A)1", "(B)2", "(C)3"]
        rows = [{"passage": None, "question": f"{n} + 1?", "options": options, "label": "ABC"[n]} for n in range(3)]
        made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(9)]
        made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A suite in two numbers of shots, as local lm-eval tasks over files of questions."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "tasks").mkdir()
    (folder / "tasks/rows.py").write_text(ROWS)
    field = ", field: examples"
    given = [
        *(
            (f"real_{name}", questions(f"bbh/{name}.json", folder), field, "bbh")
            for name in ("navigate", "boolean_expressions")
        ),
        *(
            (f"real_{name}", questions(f"agieval/{name}.jsonl", folder), "", "agieval")
            for name in ("sat-math", "lsat-ar")
        ),
        ("real_gsm8k", questions("gsm8k_test.jsonl", folder), "", "gsm8k"),
    ]
    for name, file, inner, rows in given:
        kind, more = ("generate_until", GSM8K) if rows == "gsm8k" else ("multiple_choice", CHOICE)
        text = TASK.format(name=name, file=file, field=inner, rows=rows, output_type=kind, more=more)
        (folder / f"tasks/{name}.yaml").write_text(text)
    group = "group: real_bbh\ntask: [real_navigate, real_boolean_expressions]\n"
    (folder / "tasks/real_bbh.yaml").write_text(
        group + "aggregate_metric_list: [{metric: acc_norm, weight_by_size: true}]\n"
    )
    suite = {
        "groups": {
            "BBH": {"tasks": {"real_bbh": "acc_norm"}, "num_fewshot": 1, "aggregation": "weighted"},
            "AGIEval": {"tasks": {"real_sat-math": "acc_norm", "real_lsat-ar": "acc"}, "num_fewshot": 0},
            "GSM8K": {"tasks": {"real_gsm8k": "exact_match,strict-match"}, "num_fewshot": 1},
        },
        "include_path": str(folder / "tasks"),
        "limit": 3,
    }
    plain = yaml.safe_load((ROOT / "eval/suites/tiny.yml").read_text())
    return folder, Suite.model_validate(plain | suite | {"name": "real", "batch_size": 4})


@pytest.fixture(scope="module")
def evaluated(real, base):
    """The suite on the base model, killed when the first answers were in and run again; what the second run said."""
    folder, suite = real
    (folder / "real.yml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    argv = [sys.executable, "-m", "hermes3.cli", "eval", str(base), "--suite", str(folder / "real.yml")]
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


def answers(cache) -> int:
    """How many answers lm-eval's cache holds."""
    found = 0
    for path in cache.glob("*.db"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                found += database.execute("select count(*) from unnamed").fetchone()[0]
        except sqlite3.Error:  # not made yet, or being written to
            continue
    return found


def test_a_killed_run_goes_on_with_the_answers_that_it_had(evaluated):
    folder, _, kept, said = evaluated
    assert kept and f"Cached requests: {kept}," in said
    assert not (folder / "out/cache").exists()


def test_real_questions_run_in_their_shots_with_samples(evaluated, base):
    folder, _, _, _ = evaluated
    stage = read_evaluation("base", folder / "out")
    shots = {task: facts["n_shot"] for task, facts in stage.tasks.items()}
    bbh = {"real_navigate": 1, "real_boolean_expressions": 1}
    assert shots == bbh | {"real_sat-math": 0, "real_lsat-ar": 0, "real_gsm8k": 1}
    assert stage.subtasks["real_bbh"] == list(bbh)
    assert {key[2] for key in stage.scores if key[0] == "real_gsm8k"} == {"strict-match", "last"}
    prompts = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        sample = json.loads(path.read_text().splitlines()[0])
        prompts[path.name.split("_2")[0]] = sample["arguments"]["gen_args_0"]["arg_0"]
    assert len(prompts) == 5
    for prompt in prompts.values():  # the rows of the folder, where it is there
        assert prompt.startswith("<|begin_of_text|><|im_start|>system\n") and prompt.count("<|begin_of_text|>") == 1
        assert prompt.endswith("<|im_start|>assistant\n")
    assert prompts["samples_real_gsm8k"].count("<|im_start|>user") == 2, "an example is a turn of its own"
    assert prompts["samples_real_lsat-ar"].count("<|im_start|>user") == 1


def test_the_setting_is_recorded_as_lm_eval_saw_it(evaluated, base):
    folder, _, _, said = evaluated
    record = json.loads((folder / "out/run.json").read_text())
    setting = record["setting"]
    results = json.loads(results_files(folder / "out")[-1].read_text())
    assert setting["chat_template_sha"] == results["chat_template_sha"]
    assert setting["versions"]["lm_eval"] == results["lm_eval_version"]
    assert setting["bos"] == {"token": "<|begin_of_text|>", "count": 1}
    assert {results["config"][f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")} == {setting["seed"]}
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

    def note(argv, model):
        asked.extend(argv[argv.index("--tasks") + 1].split(","))

    monkeypatch.setattr("hermes3.evaluate.run._lm_eval", note)
    monkeypatch.setattr("hermes3.evaluate.run._check", lambda *_: None)

    def evaluate(**changes):
        asked.clear()
        run(base, tmp_path / "out", suite.model_copy(update=changes))
        return asked, capfd.readouterr().out

    return tmp_path / "out", evaluate


EVERY = ["real_sat-math", "real_lsat-ar", "real_bbh", "real_gsm8k"]


def test_whole_results_are_not_made_again(again):
    asked, said = again[1]()
    assert asked == [] and f"whole already, not run again: {', '.join(EVERY)}" in said
    assert not list(again[0].rglob(f"*{STALE}"))


@pytest.mark.parametrize("harm", ["cut", "gone", "fewer"])
def test_a_task_without_its_samples_is_run_again_alone(harm, again):
    out, evaluate = again
    path = next(out.rglob("samples_real_navigate_*.jsonl"))
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_text(path.read_text()[:-20])
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    asked, said = evaluate()
    assert asked == ["real_bbh"] and "real_bbh is run again: " in said and "navigate" in said


def test_a_results_file_that_is_cut_short_is_set_aside(again):
    out, evaluate = again
    path = next((out / "0_shot").rglob("results_*.json"))
    path.write_text(path.read_text()[:1000])
    asked, said = evaluate()
    assert asked == EVERY[:2] and f"{path} is not used" in said and "cut short" in said
    assert path.with_name(path.name + STALE).is_file() and not path.exists()
    assert not list((out / "0_shot").rglob("samples_*.jsonl"))


def test_results_with_another_number_of_shots_are_not_reused(again, evaluated):
    groups = evaluated[1].groups
    asked, said = again[1](groups=groups | {"GSM8K": groups["GSM8K"].model_copy(update={"num_fewshot": 2})})
    assert asked == ["real_gsm8k"] and "real_gsm8k was run with 1 shots, not 2" in said


def test_another_suite_sets_no_results_aside(again):
    out, evaluate = again
    with pytest.raises(ValueError, match=f"results of suite real under another setting .*; give --out {out}/other"):
        evaluate(name="other", limit=4)
    assert not list(out.rglob(f"*{STALE}")) and evaluate()[0] == []


@pytest.mark.parametrize(("change", "why"), [({"limit": 4}, "limit was 3, is 4"), ({"seed": 1}, "seed was 42, is 1")])
def test_results_of_another_setting_are_set_aside(change, why, again):
    out, evaluate = again
    asked, said = evaluate(**change)
    assert asked == EVERY and why in said
    assert not results_files(out) and len(list(out.rglob(f"results_*{STALE}"))) == 2


@pytest.mark.parametrize(
    ("what", "why"),
    [("template", "chat_template_sha was"), ("version", "versions was"), ("unknown", "no run.json says")],
)
def test_results_of_another_template_or_version_are_set_aside(what, why, again):
    out, evaluate = again
    record = json.loads((out / "run.json").read_text())
    if what == "template":
        record["setting"]["chat_template_sha"] = "0"
    else:
        record["setting"]["versions"]["lm_eval"] = "0.4.10"
    (out / "run.json").write_text(json.dumps(record))
    if what == "unknown":
        (out / "run.json").unlink()
    asked, said = evaluate()
    assert asked == EVERY and why in said


@pytest.mark.parametrize("what", ["the model", "the seed"])
def test_results_below_are_set_aside_with_the_model_alone(what, again):
    """MT-Bench's, or those of a second suite: they stand while the model that they are of does."""
    out, evaluate = again
    below = out / "mt_bench/model/results_2026-01-01T00-00-00.json"
    below.parent.mkdir(parents=True)
    below.write_text("{}")
    if what == "the model":
        record = json.loads((out / "run.json").read_text())
        record["setting"]["weights"] = "0"
        (out / "run.json").write_text(json.dumps(record))
        evaluate()
    else:
        evaluate(seed=1)
    assert below.exists() == (what == "the seed")
    assert not results_files(out)


def test_our_own_tasks_run_again_when_they_have_changed(again, real):
    rows = real[0] / "tasks/rows.py"
    before = rows.read_text()
    try:
        rows.write_text(before + "\n# another\n")
        asked, said = again[1]()
    finally:
        rows.write_text(before)
    assert asked == EVERY and "has changed since" in said


# questions fetched ahead


def fetch(suite: Path, cache: Path) -> subprocess.CompletedProcess:
    """`hermes3 eval --fetch` on a machine that has no network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "hermes3.cli", "eval", "--suite", str(suite), "--fetch"]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_questions_are_fetched_ahead_and_what_is_missing_is_named(real, tmp_path):
    """A task whose file is not there and one of the Hub fail; those behind them are fetched all the same."""
    folder, suite = real
    text = TASK.format(
        name="real_gone", file=tmp_path / "gone.jsonl", field="", rows="gsm8k", output_type="generate_until", more=GSM8K
    )
    shutil.copytree(folder / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks/real_gone.yaml").write_text(text)
    tasks = {"real_gone": "exact_match", "arc_easy": "acc", "real_bbh": "acc_norm", "real_lsat-ar": "acc"}
    given = suite.model_dump(mode="json") | {"include_path": str(tmp_path / "tasks")}
    given["groups"] = {"All": {"tasks": tasks, "num_fewshot": 0}}
    (tmp_path / "it.yml").write_text(yaml.safe_dump(given, sort_keys=False))
    failed = fetch(tmp_path / "it.yml", tmp_path / "cache")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    said = failed.stdout.splitlines()
    assert said[0].startswith("1 of 4: real_gone: failed: FileNotFoundError: ")
    assert said[1].startswith("2 of 4: arc_easy: failed: ")
    assert said[2:] == ["3 of 4: real_bbh: here", "4 of 4: real_lsat-ar: here"]
    last = failed.stderr.splitlines()[-1]
    assert "2 of 4 tasks failed, each for the reason above: real_gone, arc_easy; run this again" in last
    assert list((tmp_path / "cache/json").iterdir())

    given["groups"]["All"]["tasks"] = {name: tasks[name] for name in ("real_bbh", "real_lsat-ar")}
    (tmp_path / "it.yml").write_text(yaml.safe_dump(given, sort_keys=False))
    assert fetch(tmp_path / "it.yml", tmp_path / "cache").returncode == 0


def test_a_model_is_needed_but_to_fetch(capsys):
    from typer.testing import CliRunner

    from hermes3.cli import app

    for words in (["--suite", "tiny"], ["outputs/none", "--suite", "tiny"]):
        refused = CliRunner().invoke(app, ["eval", *words])
        assert isinstance(refused.exception, ValueError) and "give MODEL and --out FOLDER" in str(refused.exception)
