"""The one message form, as Transformers' chat templates take it: {"messages": [...], "tools": [...]}.

An optional system message comes first, then user, assistant and tool messages. An assistant message may carry
`tool_calls` (`{"type": "function", "function": {"name": str, "arguments": {...}}}`), a tool message carries `name`.
"""

import json
import re
from typing import Any

import orjson

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
AFTER = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "tool": ("assistant", "tool")}


class BadRow(ValueError):
    """A row that cannot become a conversation; `reason` is the counter that it falls under."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def is_text(value: Any) -> bool:
    """Whether `value` is text that UTF-8 can hold: a JSON escape may leave half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def is_json(value: Any) -> bool:
    """Whether every JSON parser reads `value` back: no NaN, no integer beyond 64 bits, at most 254 levels deep."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value and bool(orjson.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return False


def tool_call(name: Any, arguments: Any) -> Message:
    """One entry of `tool_calls`; `arguments` are an object, or its JSON text."""
    if not is_text(name):
        raise BadRow("tool_call_not_json", "a call has no name")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise BadRow("tool_call_not_json", f"arguments of {name}: {error}") from None
    if not isinstance(arguments, dict) or not is_json(arguments):
        altered = "an integer beyond 64 bits, NaN, half a surrogate pair, over 254 levels"
        raise BadRow("tool_call_not_json", f"arguments of {name} are no object, or hold what parsers alter: {altered}")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def clean(message: Message) -> Message:
    """`message` with known keys alone, its content text.
    The assistant's is stripped: no model must learn to begin with a blank line; header and text stay two tokens."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        shown = repr(role)[:40] if isinstance(role, str) else type(role).__name__
        raise BadRow("unknown_role", f"role {shown} is none of {', '.join(ROLES)}")
    calls = (message.get("tool_calls") or []) if role == "assistant" else []
    content = "" if content is None and calls else content
    if not is_text(content):
        raise BadRow("content_not_text", f"{role} content is {type(content).__name__}, or not Unicode")
    out: Message = {"role": role, "content": content.strip() if role == "assistant" else content}
    if calls:
        try:
            functions = [call.get("function") or call for call in calls]
            out["tool_calls"] = [tool_call(one.get("name"), one.get("arguments")) for one in functions]
        except (AttributeError, TypeError):
            raise BadRow("tool_call_not_json", "tool_calls are not a list of objects, or a function is none") from None
    if role == "tool":
        if not is_text(message.get("name")):
            raise BadRow("tool_response_unnamed", "a tool message carries the name of the tool that answers")
        out["name"] = message["name"]
    return out | ({"train": False} if message.get("train") is False else {})


def check(messages: list[Message], tools: list[Message]) -> None:
    """Raise `BadRow` unless the turns follow one another as the template and a model expect."""
    if not messages:
        raise BadRow("no_messages")
    declared = {tool.get("function", tool).get("name") for tool in tools}
    previous, open_calls = None, 0
    for message in messages:
        role, calls = message["role"], message.get("tool_calls", [])
        if role != "system" and not message["content"].strip() and not calls:
            raise BadRow("empty_turn", f"{role} says nothing")
        if role == previous == "tool" and not open_calls:
            raise BadRow("response_without_call", f"nothing called {message['name']}")
        if role not in AFTER.get(previous, ("tool",) if open_calls else ("user",)):
            raise BadRow("role_order", f"{role} after {previous or 'start'}")
        if unknown := [call["function"]["name"] for call in calls if call["function"]["name"] not in declared]:
            raise BadRow("undeclared_tool", f"{unknown[0]} is not among the tools offered")
        previous, open_calls = role, open_calls - 1 if role == "tool" else len(calls)
