"""Evaluation: which models are refused, what lm_eval is told, and how generated text is scored."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from hermes3.evaluate import check_model, command, load

sys.path.insert(0, str(ROOT / "eval/tasks"))
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}


def score(function, row, text):
    import chat_task

    return getattr(chat_task, function)({"row": json.dumps(row)}, [text])


@pytest.mark.parametrize(
    ("text", "valid", "exact"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>', 1, 1),
        ('Sure. <tool_call>{"arguments": {"n": 1}, "name": "f"}</tool_call>', 1, 1),
        ('<tool_call>\n{"name": "f", "arguments": {"n": 2}}\n</tool_call>', 1, 0),
        ('<tool_call>\n{"name": "f", "arguments": {"n": "1"}}\n</tool_call>', 0, 0),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', 0, 0),
        ('<tool_call>\n{"name": "g", "arguments": {"n": 1}}\n</tool_call>', 0, 0),
        ('<tool_call>\n{"name": "f", "arguments": {"n": 1}\n</tool_call>', 0, 0),
        ("", 0, 0),
    ],
)
def test_tool_calls_are_scored(text, valid, exact):
    row = {"tools": [TOOL], "expected": [{"name": "f", "arguments": {"n": 1}}]}
    assert score("score_tool_call", row, text) == {"valid": valid, "exact": exact}


@pytest.mark.parametrize(
    ("text", "valid", "exact"),
    [('{"n": 1}', 1, 1), ('{"n": 1}<|im_end|>', 1, 1), ('{"n": 2}', 1, 0), ('{"m": 1}', 0, 0), ('ok {"n": 1}', 0, 0)],
)
def test_json_mode_is_scored(text, valid, exact):
    row = {"schema": TOOL["function"]["parameters"], "expected": {"n": 1}}
    assert score("score_json", row, text) == {"valid": valid, "exact": exact}


def test_a_prompt_with_tools_is_what_the_template_renders(tokenizer):
    import chat_task

    row = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}], "tools": [TOOL]}
    ours = tokenizer.apply_chat_template(chat_task.prompt({"row": json.dumps(row)}), tokenize=False)
    assert ours == tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)


@pytest.mark.parametrize("suite", sorted((ROOT / "eval/suites").glob("*.yml")), ids=lambda path: path.stem)
def test_every_task_of_a_suite_is_known_to_lm_eval(suite):
    from lm_eval.tasks import TaskManager

    known = set(TaskManager(include_path=str(ROOT / "eval/tasks")).all_tasks)
    assert set(load(suite).tasks) <= known


def test_the_command_scores_through_the_chat_template(tmp_path):
    argv = command(tmp_path, tmp_path / "out", load(ROOT / "eval/suites/tiny.yml"))
    assert argv[:4] == ["lm_eval", "run", "--model", "hf"]
    assert "--apply_chat_template" in argv and "--log_samples" in argv


def test_an_adapter_is_refused(tmp_path):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="merge-lora"):
        check_model(tmp_path)


def test_a_model_without_template_is_refused(llama):
    with pytest.raises(ValueError, match="no chat_template.jinja"):
        check_model(llama)


def test_a_failed_run_is_an_error(base, tmp_path):
    suite = (ROOT / "eval/suites/tiny.yml").read_text().replace("tiny_choice", "no_such_task")
    (tmp_path / "suite.yml").write_text(suite)
    ran = subprocess.run(
        [sys.executable, "-m", "hermes3.cli", "eval", base, "--out", tmp_path / "o", "--suite", tmp_path / "suite.yml"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and "lm_eval ended with 1" in ran.stderr
