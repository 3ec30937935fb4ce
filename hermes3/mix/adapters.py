"""From the shapes that data comes in to conversations (`hermes3.messages`), one function a shape.

Each raises `BadRow` for a row that is not of its shape.
"""

import json
from collections.abc import Callable
from typing import Any

from hermes3.messages import BadRow, Message, check, clean, tool_call

Row = dict[str, Any]
ROLE_OF = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def conversation(row: Row) -> Row:
    """{"messages", "tools"} of a row whose shape is already ours, cleaned and checked."""
    messages = [clean(message) for message in _field(row, "messages", list)]
    tools = _tools(row)
    check(messages, tools)
    return {"messages": messages, "tools": tools}


def sharegpt(row: Row) -> Row:
    """`conversations` of {from, value}; `function_call` and `observation` turns; `system` and `tools` columns."""
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    called: list[str] = []
    for turn in _field(row, "conversations", list):
        kind, value = turn.get("from"), turn.get("value")
        if not isinstance(value, str):
            raise BadRow("content_not_text", f"{kind} value is {type(value).__name__}")
        if kind == "function_call":
            calls = _calls(value)
            called = [call["function"]["name"] for call in calls]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif kind in ("observation", "tool"):
            if not called:
                raise BadRow("response_without_call", "an observation follows no function_call")
            messages.append({"role": "tool", "name": called.pop(0), "content": value})
        elif kind in ROLE_OF:
            messages.append({"role": ROLE_OF[kind], "content": value})
        else:
            raise BadRow("unknown_role", f"from {kind!r}")
    return conversation({"messages": messages, "tools": row.get("tools")})


def instruction(row: Row) -> Row:
    """Alpaca and GPTeacher: `instruction`, optional `input`, `output` or `response`."""
    asked = _field(row, "instruction", str)
    if row.get("input"):
        asked += f"\n\n{row['input']}"
    answer = row["response"] if "response" in row else _field(row, "output", str)
    return _single(asked, answer)


def question_answer(row: Row) -> Row:
    """`question`, `answer`."""
    return _single(_field(row, "question", str), _field(row, "answer", str))


def preference(row: Row) -> Row:
    """Prompt messages (ours or ShareGPT), `chosen` and `rejected` as text or one assistant message."""
    if "conversations" in row:
        prompt = [{"role": ROLE_OF.get(t.get("from")), "content": t.get("value")} for t in row["conversations"]]
    else:
        prompt = _field(row, "messages", list)
    tools = _tools(row)
    messages = [clean(message) for message in prompt]
    answers = {}
    for side in ("chosen", "rejected"):
        said = row.get(side)
        if isinstance(said, dict):
            said = said.get("content", said.get("value"))
        answers[side] = clean({"role": "assistant", "content": said})
        check([*messages, answers[side]], tools)
    if answers["chosen"] == answers["rejected"]:
        raise BadRow("no_preference", "chosen and rejected are the same")
    return {"messages": messages, "tools": tools, **answers}


ADAPTERS: dict[str, Callable[[Row], Row]] = {
    "messages": conversation,
    "sharegpt": sharegpt,
    "instruction": instruction,
    "question_answer": question_answer,
    "preference": preference,
}


def _single(asked: Any, answer: Any) -> Row:
    return conversation(
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], "tools": None}
    )


def _field(row: Row, key: str, kind: type) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
        raise BadRow("wrong_shape", f"no {key} of type {kind.__name__}")
    return row[key]


def _json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(reason, str(error)) from None


def _calls(value: str) -> list[Message]:
    data = _json(value, "tool_call_not_json")
    calls = data if isinstance(data, list) else [data]
    if not all(isinstance(call, dict) for call in calls):
        raise BadRow("tool_call_not_json", "a call is not an object")
    return [tool_call(call.get("name"), call.get("arguments")) for call in calls]


def _tools(row: Row) -> list[Message]:
    """The tools on offer, each as {"type": "function", "function": {...}}; they may come as JSON text."""
    tools = row.get("tools") or []
    if isinstance(tools, str):
        tools = _json(tools, "tools_not_json")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools_not_json", "tools are not a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
