"""The alignment tasks: a good answer scores 1 and each kind of bad one 0; their rows; lm-eval runs them all."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator

from hermes3.chat.prompts import DEFAULT_SYSTEM, json_system
from hermes3.evaluate.run import command
from hermes3.results.suite import load

sys.path.insert(0, str(ROOT / "eval/tasks"))
import alignment_format  # noqa: E402
import alignment_rows  # noqa: E402
import alignment_score  # noqa: E402
import chat_task  # noqa: E402

ANSWERS = yaml.safe_load((ROOT / "tests/alignment_answers.yml").read_text(encoding="utf-8"))
TEXTS = ANSWERS["languages"]
TASKS = sorted(path.stem for path in (ROOT / "eval/tasks").glob("alignment_*.yaml"))
KINDS = sorted(path.stem for path in (ROOT / "eval/tasks/alignment").glob("*.yml"))


def score(function, row, answer):
    module = alignment_format if function == "followed" else alignment_score
    return getattr(module, function)({"row": json.dumps(row)}, [answer])


@cache
def rows(kind):
    return [json.loads(row["row"]) for row in alignment_rows.load(kind)["test"]]


@pytest.mark.parametrize("function", ANSWERS["scored"])
def test_a_good_answer_scores_1_and_each_kind_of_bad_one_0(function):
    for case in ANSWERS["scored"][function]:
        for answer, scores in case["answers"]:
            assert score(function, case["row"], answer) == scores, answer


def test_languages_are_told_by_a_sentence_or_two_and_an_answer_in_another_or_in_two_does_not_follow():
    assert set(TEXTS) == set(alignment_score.LANGUAGES)
    told = [(code, alignment_score.language_of(text)) for code, texts in TEXTS.items() for text in texts]
    assert [pair for pair in told if pair[0] != pair[1]] == []
    for code, texts in TEXTS.items():
        ours, theirs = " ".join(texts), " ".join(TEXTS["de" if code != "de" else "fr"])
        assert score("language", {"language": code}, ours + "<|im_end|>") == {"followed": 1}
        for bad in (theirs, f"{ours}\n\n{theirs}", f"{theirs}\n\n{ours}", "", "...", "42 :-)"):
            assert score("language", {"language": code}, bad) == {"followed": 0}, bad


def test_form_and_length_are_checked():
    used = {name for kind in ("format", "length") for row in rows(kind) for name in row["checks"]}
    assert set(ANSWERS["forms"]) == set(alignment_format.CHECKS) == used
    for check, form in ANSWERS["forms"].items():
        row = {"checks": {check: form["value"]}}
        assert score("followed", row, form["good"] + "<|im_end|>") == {"followed": 1}, check
        for answer in [*form["bad"], ""]:
            assert score("followed", row, answer) == {"followed": 0}, answer
    both = {"checks": {"lines": 2, "upper": 1}}
    assert [score("followed", both, answer)["followed"] for answer in ("A\nB", "A", "a\nb")] == [1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_many_different_and_not_trained_on(kind, samples):
    trained = "".join(path.read_text(encoding="utf-8") for path in sorted(samples.rglob("*.jsonl")))
    asked = rows(kind)
    assert len(asked) >= 50
    prompts = [json.dumps(row["messages"] + row.get("tools", [])) for row in asked]
    assert len(set(prompts)) == len(prompts)
    for row in asked:
        *before, last = row["messages"]
        assert last["role"] == "user" and last["content"].strip() == last["content"] != ""
        assert json.dumps(last["content"], ensure_ascii=False)[1:-1] not in trained
        roles = [message["role"] for message in before if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_what_rows_are_checked_by_is_sound():
    assert {row["language"] for row in rows("language")} == set(alignment_score.LANGUAGES)
    for row in rows("persona"):  # what any assistant says is no persona
        assert score("persona", row, "Hello! I am a helpful assistant. How can I help you today?") == {"kept": 0}
    for row in rows("tool_calls"):
        functions = [tool["function"] for tool in row["tools"]]
        for function in functions:
            Draft202012Validator.check_schema(function["parameters"])
        assert set(row["names"]) <= {function["name"] for function in functions}
    for row in rows("json_mode"):
        Draft202012Validator.check_schema(row["schema"])
        assert row["messages"][0]["content"] == json_system(row["schema"])
        of_one = [set(kind["properties"]) for kind in row["schema"].get("oneOf", [row["schema"]])]
        assert any(set(row["fields"]) <= keys for keys in of_one)
        if set(row["fields"]) in of_one:
            answer = json.dumps(row["fields"])
            assert score("json_mode", row, answer) == {"valid": 1, "right": 1}, answer
    # the fact of a citation stands in its document alone
    for item in yaml.safe_load((ROOT / "eval/tasks/alignment/citations.yml").read_text(encoding="utf-8")):
        for question, number, *facts in item["questions"]:
            holds = [any(alignment_score.has(text, fact) for fact in facts) for _, text in item["documents"]]
            assert [i for i, held in enumerate(holds) if held] == [number], question
            assert not any(alignment_score.has(question, fact) for fact in facts), question


def test_an_answer_within_the_limit_has_ended(tokenizer):
    text = (ROOT / "eval/tasks/alignment.default").read_text(encoding="utf-8").replace("!function ", "")
    limit = yaml.safe_load(text)["generation_kwargs"]["max_gen_toks"]
    task = object.__new__(chat_task.EndOfTurnTask)
    task._config = type("Config", (), {"generation_kwargs": {"max_gen_toks": limit}})
    task.encode = tokenizer.encode
    for words, ended in ((0, 0), (1, 1), (limit // 3, 1), (limit, 0)):
        assert task.process_results({}, ["dog " * words]) == {"ended": ended}, words


def test_lm_eval_runs_every_task_on_a_model_of_random_weights(base, tmp_path):
    """The command of `hermes3 eval`, two questions and 64 tokens each. Such a model never ends its turn."""
    suite = load("alignment").model_copy(update={"device": "cpu", "dtype": "float32", "limit": 2, "max_length": 2048})
    ((protocol, tasks),) = suite.by_protocol().items()
    argv = [*command(base, tmp_path, suite, protocol, tasks, "hf", ""), "--gen_kwargs", "max_gen_toks=64"]
    done = subprocess.run([f"{Path(sys.executable).parent}/{argv[0]}", *argv[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (ran,) = tmp_path.rglob("results_*.json")
    results = json.loads(ran.read_text())["results"]
    assert sorted(results) == TASKS
    for task, scores in results.items():
        values = {name: value for name, value in scores.items() if name.endswith(",none") and "stderr" not in name}
        assert values and all(0 <= value <= 1 for value in values.values()), task
    assert results["alignment_end_of_turn"]["ended,none"] == 0
    # the empty system message stays empty, and none becomes the default
    files = [ran.parent.glob(f"samples_alignment_{kind}_system_*.jsonl") for kind in ("empty", "default")]
    texts = [[json.loads(line)["arguments"]["gen_args_0"]["arg_0"] for line in next(file).open()] for file in files]
    for empty, default in zip(*texts, strict=True):
        assert "<|im_start|>system\n<|im_end|>" in empty
        assert empty.replace("system\n<|im_end|>", f"system\n{DEFAULT_SYSTEM}<|im_end|>") == default


def test_a_careful_reader_agrees():
    """200 answers that were marked by hand before the scorers saw them (docs/alignment.md); 95 % must agree."""
    held_out = yaml.safe_load((ROOT / "tests/alignment_held_out.yml").read_text(encoding="utf-8"))
    answers = [(task.removeprefix("alignment_"), *one) for task, of in held_out.items() for one in of]
    assert len(answers) == 200
    named = {task: metric for group in load("alignment").groups.values() for task, metric in group.tasks.items()}
    other = []
    for kind, item, answer, right in answers:
        row = next(row for row in rows(kind) if item in json.dumps(row, ensure_ascii=False))
        function = "followed" if kind in ("format", "length") else kind
        if score(function, row, answer)[named[f"alignment_{kind}"]] != right:
            other.append((kind, answer))
    assert len(other) <= 10, other
