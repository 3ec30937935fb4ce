"""The message form: what is cleaned, and what is refused with which reason."""

import pytest

from hermes3.messages import BadRow, check, clean, tool_call

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [tool_call("f", {})]}
RESPONSE = {"role": "tool", "name": "f", "content": "{}"}


def reason(act, *args) -> str:
    with pytest.raises(BadRow) as caught:
        act(*args)
    return caught.value.reason


def test_clean_keeps_known_keys_and_strips_what_the_assistant_says():
    assert clean({"role": "assistant", "content": "\n a ", "weight": 1}) == {"role": "assistant", "content": "a"}
    assert clean({"role": "user", "content": "\n a "})["content"] == "\n a "
    assert clean({"role": "assistant", "content": None, "tool_calls": [tool_call("f", {})]})["content"] == ""
    assert clean({**ANSWER, "train": False})["train"] is False
    assert tool_call("f", '{"a": null}') == tool_call("f", {"a": None})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "narrator", "content": "x"}, "unknown_role"),
        ({"role": "user", "content": ["x"]}, "content_not_text"),
        ({"role": "user"}, "content_not_text"),
        ({"role": "tool", "content": "x"}, "tool_response_unnamed"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "tool_call_not_json"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": []}]}, "tool_call_not_json"),
    ],
)
def test_a_bad_message_is_refused(message, expected):
    assert reason(clean, message) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "no_messages"),
        ([ANSWER], "role_order"),
        ([USER, USER], "role_order"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "role_order"),
        ([{"role": "user", "content": "  "}, ANSWER], "empty_turn"),
        ([USER, {"role": "assistant", "content": ""}], "empty_turn"),
        ([USER, ANSWER, RESPONSE], "role_order"),
        ([USER, CALL, ANSWER], "role_order"),
        ([USER, CALL, RESPONSE, RESPONSE], "response_without_call"),
    ],
)
def test_a_bad_order_is_refused(messages, expected):
    assert reason(check, messages, TOOLS) == expected


def test_good_conversations_pass_and_an_undeclared_tool_is_refused():
    assert reason(check, [USER, CALL], []) == "undeclared_tool"
    check([{"role": "system", "content": ""}, USER, ANSWER, USER, CALL, RESPONSE, ANSWER], TOOLS)
