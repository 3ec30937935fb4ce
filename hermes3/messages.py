"""The one message form, and its validation.

A conversation is `{"messages": [...], "tools": [...]}` in the form that Transformers' chat templates take:
an optional system message, then user, assistant and tool messages; an assistant message may carry `tool_calls`
(`{"type": "function", "function": {"name": str, "arguments": {...}}}`), a tool message carries `name`.
"""

import json
from typing import Any

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


class BadRow(ValueError):
    """A row that cannot become a conversation; `reason` is the counter that it falls under."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def tool_call(name: str, arguments: dict[str, Any] | str) -> Message:
    """One entry of `tool_calls`; `arguments` may come as the JSON text of an object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise BadRow("tool_call_not_json", f"arguments of {name}: {error}") from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise BadRow("tool_call_not_json", "a call needs a name and an object of arguments")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def clean(message: Message) -> Message:
    """`message` with known keys alone, its content text.

    Assistant text is stripped: a model must not learn to begin with a blank line, and the boundary between the header
    and the first trained token stays a token boundary.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise BadRow("unknown_role", f"role {role!r} is none of {', '.join(ROLES)}")
    calls = message.get("tool_calls") or []
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadRow("content_not_text", f"{role} content is {type(content).__name__}")
    if role == "assistant":
        content = content.strip()
    out: Message = {"role": role, "content": content}
    if calls:
        functions = [call.get("function", call) for call in calls]
        out["tool_calls"] = [tool_call(f.get("name"), f.get("arguments")) for f in functions]
    if role == "tool":
        if not isinstance(message.get("name"), str):
            raise BadRow("tool_response_unnamed", "a tool message carries the name of the tool that answers")
        out["name"] = message["name"]
    if message.get("train") is False:
        out["train"] = False
    return out


def check(messages: list[Message], tools: list[Message]) -> None:
    """Raise `BadRow` unless the turns follow one another as the template and a model expect."""
    if not messages:
        raise BadRow("no_messages")
    declared = {tool.get("function", tool).get("name") for tool in tools}
    previous, open_calls = "start", 0
    for message in messages:
        role = message["role"]
        calls = message.get("tool_calls", [])
        if role != "system" and not message["content"].strip() and not calls:
            raise BadRow("empty_turn", f"{role} says nothing")
        allowed = {
            "start": ("system", "user"),
            "system": ("user",),
            "user": ("assistant",),
            "assistant": ("tool",) if open_calls else ("user",),
            "tool": ("assistant", "tool"),
        }[previous]
        if role not in allowed:
            raise BadRow("role_order", f"{role} after {previous}")
        if role == "tool":
            _check_response(message, open_calls)
            open_calls -= 1
        else:
            open_calls = len(calls)
        for call in calls:
            name = call["function"]["name"]
            if name not in declared:
                raise BadRow("undeclared_tool", f"{name} is not among the tools offered")
        previous = role


def _check_response(message: Message, open_calls: int) -> None:
    if open_calls < 1:
        raise BadRow("response_without_call", f"nothing called {message['name']}")
    text = message["content"].strip()
    if (text[:1], text[-1:]) in (("{", "}"), ("[", "]")):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRow("tool_response_not_json", str(error)) from None
