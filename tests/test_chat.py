"""Template, tokenizer and renderer: what a model sees is the same in all three, and loss falls where it should."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from hermes3.chat.prompts import json_system, parse_tool_calls, rag_system, rag_user
from hermes3.chat.render import IGNORE, Renderer, as_text, turns
from hermes3.cli import app

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": 'Weather: "now", & <soon>'}
TOOLS = [{"type": "function", "function": WEATHER | {"parameters": CITY | {"required": ["city"]}}}]
DATA = yaml.safe_load((ROOT / "tests/chat_cases.yml").read_text(encoding="utf-8"))
CASES = {
    name: (case["messages"], TOOLS * case["tools"] if "tools" in case else None)
    for name, case in DATA["conversations"].items()
}
USER, CALL, _, ANSWER = CASES["tools"][0]


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(Path(tokenizer.name_or_path))


def test_a_message_marked_train_false_bears_no_loss(renderer):
    assert (renderer.render([([USER, ANSWER | {"train": False}], None)])[0].labels == IGNORE).all()


def test_the_system_and_user_messages_of_the_forms_are_those_of_the_cases():
    system, *_ = CASES["json mode"][0]
    assert json_system(CITY) == system["content"]
    system, user, _ = CASES["citations"][0]
    documents = [("Fair", "In May."), ("Market", "On Monday.")]
    assert (rag_system(), rag_user("When is the market?", documents)) == (system["content"], user["content"])


def test_a_broken_call_is_no_call():
    assert [parse_tool_calls(text) for text in DATA["broken_calls"]] == [None] * len(DATA["broken_calls"])
    assert parse_tool_calls("hello") == []


@pytest.mark.parametrize("case", DATA["refused"])
def test_the_template_refuses_what_it_cannot_say(case, tokenizer):
    with pytest.raises(Exception, match=case["says"]):
        tokenizer.apply_chat_template(case["messages"], tokenize=False)


def test_a_call_without_content_needs_none(tokenizer):
    for call in (CALL | {"content": None}, CALL):
        text = tokenizer.apply_chat_template([USER, call], tools=TOOLS, tokenize=False)
        assert "<|im_start|>assistant\n<tool_call>\n" in text


@pytest.mark.parametrize("content", DATA["tool_text"])
def test_tool_text_that_is_no_json_stands_as_a_string(content, tokenizer):
    written = DATA["tool_text"][content]
    messages = [USER, CALL, {"role": "tool", "content": content, "name": "get_weather"}]
    ours = list(turns(messages, TOOLS))[-1].text
    assert ours == f'<tool_response>\n{{"name": "get_weather", "content": {written}}}\n</tool_response>'
    assert ours in tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)


def test_a_row_is_shown_with_what_bears_loss(renderer, tokenizer, base, samples):
    tokens = renderer.render([CASES["tools"]])[0]
    text = as_text(tokens, tokenizer)
    assert text.plain.startswith(tokenizer.decode(tokens.input_ids))
    spans = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    trained = "".join(piece for piece, style in spans if "green" in style)
    assert trained.startswith("<tool_call>") and trained.endswith("It is grey.<|im_end|>")
    assert {"<tool_call>", "<|im_end|>"} <= {piece for piece, style in spans if "bold" in style}
    call = ["render", str(samples / "train/rag.jsonl"), "--row", "2", "--tokenizer", str(base)]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0 and shown.stdout.startswith("<|begin_of_text|><|im_start|>system\n")
