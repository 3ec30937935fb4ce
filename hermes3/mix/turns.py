"""Turns as they come, OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`), to a checked conversation."""

from bisect import bisect
from typing import Any

from hermes3.messages import BadRow, Message, check, clean
from hermes3.mix.tool_text import calls_in, schemas, structured

Row = dict[str, Any]
ROLE_OF = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bing", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "observation", "function_response", "function"], "tool"),
}


def field(row: Row, kind: type, *keys: str) -> Any:
    """The first of the columns `keys` that is a `kind`. `BadRow` where none is."""
    if not isinstance(row, dict):
        raise BadRow("wrong_shape", f"a row is {type(row).__name__}, not an object")
    for key in keys:
        if isinstance(row.get(key), kind):
            return row[key]
    columns = repr([key for key in row if isinstance(key, str)])[:200]
    raise BadRow("wrong_shape", f"no {' or '.join(keys)} of type {kind.__name__} among {columns}")


def tools_of(row: Row) -> list[Message]:
    """The tools on offer, each as {"type": "function", "function": {...}}; they may come as JSON text."""
    tools = row.get("tools") or row.get("functions")
    return schemas(tools) if tools else []


def messages_of(turns: list[Any]) -> list[Message]:
    """One message a turn, in our roles, its calls as they come; what `conversation` of them checks."""
    return [_message(turn) for turn in turns]


def said(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def asked(row: Row) -> str:
    """Alpaca's `instruction` with its `input`, where it has one."""
    parts = [field(row, str, "instruction"), field(row, str, "input") if row.get("input") else ""]
    return "\n\n".join(part for part in parts if part)


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """`messages` after the system message that stands in a column of its own."""
    if not row.get("system") and not row.get("system_prompt"):
        return messages
    system = said("system", field(row, str, "system", "system_prompt"))
    return messages if messages[:1] == [system] else [system, *messages]


def conversation(messages: list[Message], tools: list[Message]) -> Row:
    """{"messages", "tools"}, cleaned and checked. Responses are named by their calls, and stand in the calls' order."""
    messages, tools = structured(messages, tools)
    out: list[Message] = []
    first, open_calls, answered = 0, [], []  # open_calls: (place, id, name) of those without a response
    for message in messages:
        if message["role"] == "tool":
            place, message = _response(message, open_calls)
            at = bisect(answered, place)
            answered.insert(at, place)
            out.insert(first + at, clean(message))
            continue
        one = clean(message)
        out.append(one)
        first, answered, calls = len(out), [], one.get("tool_calls", [])
        open_calls = [
            (place, message["tool_calls"][place].get("id"), call["function"]["name"])
            for place, call in enumerate(calls)
        ]
    check(out, tools)
    return {"messages": out, "tools": tools}


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("wrong_shape", f"a turn is {type(turn).__name__}, not an object")
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    known = ROLE_OF.get(role) if isinstance(role, str) else None
    if known is None:
        shown = repr(role)[:40] if isinstance(role, str) else type(role).__name__
        raise BadRow("unknown_role", f"{shown} is none of {', '.join(ROLE_OF)}")
    message: Message = {"role": known, "content": _joined(content) if isinstance(content, list) else content}
    if known == "assistant":
        if role == "function_call":
            if not isinstance(content, str):
                raise BadRow("content_not_text", f"{role} value is {type(content).__name__}")
            message |= {"content": "", "tool_calls": calls_in(content)}
        elif calls := turn.get("tool_calls"):
            message["tool_calls"] = calls
        elif call := turn.get("function_call"):  # OpenAI's older form
            message["tool_calls"] = [call]
        if turn.get("train") is False or turn.get("weight") in (0, False):
            message["train"] = False
    elif known == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    return message


def _joined(parts: list[Any]) -> str:
    """The text of OpenAI's content parts."""
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise BadRow("content_not_text", "a content part is not of type text")
    return "\n".join(part["text"] for part in parts)


def _response(message: Message, open_calls: list[tuple[int, Any, str]]) -> tuple[int, Message]:
    """The place of the call that `message` answers, open no longer, and `message` with a name.

    It is the call of its `tool_call_id`, or else the next one of its name, or else the next one.
    """
    if not open_calls:
        raise BadRow("response_without_call", "a tool message answers no call")
    name, by_id = message.get("name"), message.get("tool_call_id")
    if isinstance(by_id, str):
        same = [call for call in open_calls if call[1] == by_id]
        if not same and not isinstance(name, str):
            raise BadRow("tool_response_unnamed", "no open call has its tool_call_id")
    else:
        same = [call for call in open_calls if call[2] == name]
    call = (same or open_calls)[0]
    open_calls.remove(call)
    return call[0], message if isinstance(name, str) else {**message, "name": call[2]}
