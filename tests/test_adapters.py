"""Adapters: every shape that data comes in, to one message form; what is refused, what is left unread, and why."""

import json
import re
from itertools import product
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from hermes3.chat.prompts import tools_system
from hermes3.messages import BadRow, check, clean, tool_call
from hermes3.mix.adapt import ADAPTERS, SHAPE
from hermes3.mix.columns import Row
from hermes3.mix.spec import Adapter
from hermes3.mix.turns import ROLE_OF

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SAID = [USER, ANSWER]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "its 'name'"}}}
TOOL = {"type": "function", "function": {"name": "sky", "description": "The sky.", "parameters": PARAMETERS}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [tool_call("sky", {"city": "Ulm"})]}
RESPONSE = {"role": "tool", "name": "sky", "content": '{"sky": "grey"}'}
OBJECTS = {"TOOL": TOOL, "FUNCTION": TOOL["function"], "CALLS": CALLS, "RESPONSE": RESPONSE}

PROMPTS = yaml.safe_load((ROOT / "tests/tool_prompts.yml").read_text(encoding="utf-8"))
WORDINGS = {n: p.replace("@json", json.dumps([TOOL])).replace("@python", str([TOOL])) for n, p in PROMPTS.items()}
NEWEST = tools_system([TOOL])
CALLED = '<tool_call>\n{"name": "sky", "arguments": {"city": "Ulm"}}\n</tool_call>'
TEXTS = WORDINGS | {"newest": NEWEST, "called": CALLED, "tool": json.dumps(TOOL)}
TEXTS |= {"function": json.dumps(TOOL["function"]), "other": NEWEST.replace("The sky.", "Another.")}
TEXTS |= {"bare": NEWEST.replace(json.dumps(TOOL), ""), "broken": NEWEST.replace('"type"', "type", 1)}
TEXTS["strange"] = WORDINGS["common"].replace("return a JSON object", "give back an object")


def written_out(value, keys=("role", "content")):
    """`value` of adapters.yml with its turns, {user: q}, as the data has them, and with what its names stand for."""
    if isinstance(value, list):
        return [written_out(one, keys) for one in value]
    if isinstance(value, str):
        return OBJECTS.get(value) or re.sub("@([a-z]+)", lambda name: TEXTS[name[1]], value)
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and {key.lower() for key in value} & (set(ROLE_OF) - {"function"} | {"alien", "narrator"}):
        [(role, content)] = value.items()
        return dict(zip(keys, (role, written_out(content)), strict=True))
    sharegpt = dict.fromkeys(("conversations", "conversation"), ("from", "value"))
    return {key: written_out(one, sharegpt.get(key, keys)) for key, one in value.items()}


DATA = written_out(yaml.safe_load((ROOT / "tests/adapters.yml").read_text(encoding="utf-8")))


def sharegpt(*turns, **columns) -> dict:
    """A ShareGPT row of (from, value) pairs."""
    return {"conversations": [{"from": kind, "value": value} for kind, value in turns], **columns}


def refused(adapter, row) -> BadRow:
    with pytest.raises(BadRow) as caught:
        ADAPTERS[adapter](row)
    return caught.value


@pytest.mark.parametrize("case", DATA["become"] + DATA["structured"])
def test_every_shape_becomes_messages(case):
    tools = case.get("tools", [TOOL] if case in DATA["structured"] else [])
    assert ADAPTERS[case["adapter"]](case["row"]) == {"messages": case["messages"], "tools": tools}


@pytest.mark.parametrize("case", DATA["prompts"] + DATA["repeated"] + DATA["answers"])
def test_a_preference_comes_in_every_form_and_its_prompt_is_compared_with_what_both_sides_repeat(case):
    chosen, rejected = ANSWER, {**ANSWER, "content": "b"}
    row = {"chosen": "a", "rejected": "b"} | case["row"]
    if shared := case.get("shared"):
        row |= {"chosen": [*shared, chosen], "rejected": [*shared, rejected]}
    expected = {"messages": case["messages"], "tools": case.get("tools", []), "chosen": chosen, "rejected": rejected}
    assert ADAPTERS["preference"](row) == expected | case.get("sides", {})


@pytest.mark.parametrize("case", DATA["unread"])
def test_columns_and_fields_that_are_not_read_are_named(case):
    answer = ANSWER | case.get("turn", {})
    turns = {"messages": [USER, answer]} if case["adapter"] in ("messages", "sharegpt") else {}
    row = Row(turns | case.get("row", {}))
    ADAPTERS[case["adapter"]](row)
    names = {what: {name for kind, name in row.account() if kind == what} for what in ("unread", "unread, may train")}
    assert names == {"unread": set(case.get("describes", [])), "unread, may train": set(case.get("stops", []))}


def test_a_column_may_be_read_as_another():
    row = Row({"question": "q", "answer": "a", "passage": "p"}, {"passage": "context"})
    assert ADAPTERS["question_answer"](row)["messages"][0] == {"role": "user", "content": "q\n\np"}
    assert ("unread, may train", "passage") not in set(row.account())
    with pytest.raises(BadRow, match="passage is to be read as context"):
        Row({"passage": "p", "context": "c"}, {"passage": "context"})


@pytest.mark.parametrize("what", ["trained", "untrained", "refused"])
def test_a_mark_says_whether_a_turn_is_trained(what):
    for marks, column in product(DATA["marks"][what], ("messages", "conversations")):
        row = {column: [USER, ANSWER | marks]}
        if what == "refused":
            assert str(refused("messages", row)).startswith(f"mark_not_understood: {next(iter(marks))}")
        else:
            expected = ANSWER if what == "trained" else {**ANSWER, "train": False}
            assert ADAPTERS["messages"](row)["messages"][1] == expected, marks


@pytest.mark.parametrize("case", DATA["nulls"])
def test_nulls_that_a_schema_does_not_allow_are_no_arguments(case):
    declared = {"type": "object", "properties": case["properties"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": declared, "strict": None}}]
    call = {"type": "function", "function": {"name": "f", "arguments": case["arguments"]}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": tools}
    got = ADAPTERS["messages"](row)
    assert got["messages"][1]["tool_calls"] == [tool_call("f", case["remain"])]
    kept = {"type": "object", "properties": case.get("schema", case["properties"])}
    assert got["tools"] == [{"type": "function", "function": {"name": "f", "parameters": kept}}]
    call["function"]["arguments"] = json.dumps(case["arguments"])  # text is the writer's own
    assert ADAPTERS["messages"](row)["messages"][1]["tool_calls"] == [tool_call("f", case["arguments"])]


@pytest.mark.parametrize("ids", [("c1", "c2"), (1, 2), ("1", 2), (1.0, "2")])
def test_responses_are_named_by_id_and_stand_in_the_calls_order(ids):
    calls = [{"id": i, "function": {"name": n, "arguments": '{"x": 1}'}} for i, n in zip(ids, "fg", strict=True)]
    as_stated = [int(i) if isinstance(i, float) else i for i in ids]
    out_of_order = [{"role": "tool", "tool_call_id": i, "content": str(i)} for i in reversed(as_stated)]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    row = {"messages": [USER, called, *out_of_order, ANSWER], "tools": [{"function": {"name": name}} for name in "fg"]}
    got = ADAPTERS["messages"](row)["messages"]
    assert got[1]["tool_calls"] == [tool_call("f", {"x": 1}), tool_call("g", {"x": 1})]
    assert [(m["name"], m["content"]) for m in got[2:4]] == list(zip("fg", map(str, as_stated), strict=True))
    out_of_order[0]["tool_call_id"] = 7
    assert "no open call has its tool_call_id, '7'" in str(refused("messages", row))


@pytest.mark.parametrize("prompt", [NEWEST, *WORDINGS.values(), WORDINGS["common"].replace(". ", ".\n")])
def test_hermes_text_becomes_structured(prompt):
    for call, response in product(DATA["texts"]["calls"], DATA["texts"]["responses"]):
        row = sharegpt(("system", prompt), ("human", "q"), ("gpt", call), ("tool", response), ("gpt", "a"))
        assert ADAPTERS["sharegpt"](row) == {"messages": [USER, CALLS, RESPONSE, ANSWER], "tools": [TOOL]}


@pytest.mark.parametrize("case", DATA["rag"]["cases"])
def test_rag_takes_the_paper_s_form(case):
    got = ADAPTERS["glaive_rag"](DATA["rag"]["row"] | case.get("columns", {}))["messages"]
    assert [message["role"] for message in got] == ["system", "user", "assistant"]
    assert case | {message["role"]: message["content"] for message in got if message["role"] in case} == case


@pytest.mark.parametrize("case", DATA["refused"])
def test_a_row_of_the_wrong_shape_is_refused(case):
    assert refused(case["adapter"], case["row"]).reason == case["reason"]


def test_a_reason_is_either_of_shape_or_of_content_and_names_the_columns():
    assert set(get_args(Adapter)) == set(ADAPTERS)
    assert {"wrong_shape", "content_not_text", "tool_call_not_json", "mark_not_understood"} <= SHAPE
    assert not SHAPE & {"role_order", "empty_turn", "undeclared_tool", "no_preference", "citation_without_document"}
    error = refused("question_answer", {"text": "x", "meta": {}})
    assert "no question of type str among ['text', 'meta']" in str(error)


def test_clean_keeps_known_keys_and_strips_what_the_assistant_says():
    assert clean({"role": "assistant", "content": "\n a ", "weight": 1}) == {"role": "assistant", "content": "a"}
    assert clean({"role": "user", "content": "\n a "})["content"] == "\n a "
    assert clean({**CALLS, "content": None})["content"] == ""
    assert clean({**ANSWER, "train": False})["train"] is False
    assert tool_call("f", '{"a": null}') == tool_call("f", {"a": None})


@pytest.mark.parametrize("case", DATA["bad_messages"] + DATA["orders"])
def test_a_bad_message_or_order_is_refused_and_a_good_one_passes(case):
    check([{"role": "system", "content": ""}, USER, ANSWER, USER, CALLS, RESPONSE, ANSWER], [TOOL])
    with pytest.raises(BadRow, match=f"^{case['reason']}"):
        check([clean(message) for message in case["turns"]], [TOOL])
