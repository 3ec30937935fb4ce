"""The message form: what is cleaned, and what is refused with which reason."""

import pytest
from test_adapters import ANSWER, DATA, USER

from hermes3.messages import BadRow, check, clean, tool_call

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [tool_call("f", {})]}
RESPONSE = {"role": "tool", "name": "f", "content": "{}"}


def test_clean_keeps_known_keys_and_strips_what_the_assistant_says():
    assert clean({"role": "assistant", "content": "\n a ", "weight": 1}) == {"role": "assistant", "content": "a"}
    assert clean({"role": "user", "content": "\n a "})["content"] == "\n a "
    assert clean({"role": "assistant", "content": None, "tool_calls": [tool_call("f", {})]})["content"] == ""
    assert clean({**ANSWER, "train": False})["train"] is False
    assert tool_call("f", '{"a": null}') == tool_call("f", {"a": None})


@pytest.mark.parametrize("case", DATA["bad_messages"])
def test_a_bad_message_is_refused(case):
    with pytest.raises(BadRow, match=f"^{case['reason']}"):
        clean(case["message"])


@pytest.mark.parametrize("case", DATA["orders"])
def test_a_bad_order_is_refused(case):
    with pytest.raises(BadRow, match=f"^{case['reason']}"):
        check([{"call": CALL, "response": RESPONSE}.get(str(one), one) for one in case["turns"]], TOOLS)


def test_good_conversations_pass_and_an_undeclared_tool_is_refused():
    with pytest.raises(BadRow, match="^undeclared_tool"):
        check([USER, CALL], [])
    check([{"role": "system", "content": ""}, USER, ANSWER, USER, CALL, RESPONSE, ANSWER], TOOLS)
