"""Turns as data has them, to messages; calls to their responses; two statements of one conversation to one.

Turns come in OpenAI's form (`role`, `content`) or in ShareGPT's (`from`, `value`). What is no turn raises `BadRow`.
"""

from bisect import bisect
from typing import Any

from hermes3.messages import BadRow, Message, check, clean, is_text
from hermes3.mix.columns import Row, is_empty
from hermes3.mix.tool_text import calls_in, stated, structured

ROLE_OF = {  # compared in lower case
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bing", "model", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "observation", "function_response", "function"], "tool"),
}
# marks of a turn that is not to be trained: OpenAI's weight, Axolotl's train and training, and what others call them
MARKS = ("train", "training", "trainable", "weight", "loss", "loss_weight")
TRAINED = dict.fromkeys([1, "1", "1.0", "true", "yes"], True) | dict.fromkeys([0, "0", "0.0", "false", "no"], False)
TURN = frozenset({"role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", *MARKS})


def conversation(messages: list[Message], tools: list[Message]) -> dict[str, Any]:
    """{"messages", "tools"}, cleaned and checked. Responses are named by their calls, and stand in the calls' order."""
    messages, tools = structured(messages, tools)
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    out: list[Message] = []
    first, open_calls, answered = 0, [], []  # open_calls: (place, id, name) of those without a response
    for message in messages:
        if message["role"] == "tool":
            place, message = _response(message, open_calls)
            at = bisect(answered, place)
            answered.insert(at, place)
            out.insert(first + at, clean(message))
            continue
        cleaned = clean(message)
        out.append(cleaned)
        first, answered, open_calls = len(out), [], []
        for place, call in enumerate(cleaned.get("tool_calls", [])):
            function, raw = call["function"], message["tool_calls"][place]
            open_calls.append((place, _id(raw.get("id")), function["name"]))
            if isinstance((raw.get("function") or raw).get("arguments"), dict) and message.get("in_columns"):
                function["arguments"] = stated(function["arguments"], parameters.get(function["name"]))
    check(out, tools)
    return {"messages": out, "tools": tools}


def _response(message: Message, open_calls: list[tuple[int, str | None, str]]) -> tuple[int, Message]:
    """The place of the call that `message` answers, open no longer, and `message` with a name.

    It is the call of its `tool_call_id`, whose name counts, or else the next one of its name, or the next.
    """
    if not open_calls:
        raise BadRow("response_without_call", "a tool message answers no call")
    name, call_id = message.get("name"), _id(message.get("tool_call_id"))
    same_id = [call for call in open_calls if call[1] == call_id] if call_id else []
    if call_id and not same_id and (not isinstance(name, str) or any(call[1] for call in open_calls)):
        raise BadRow("tool_response_unnamed", f"no open call has its tool_call_id, {call_id[:40]!r}")
    call = (same_id or [call for call in open_calls if call[2] == name] or open_calls)[0]
    open_calls.remove(call)
    return call[0], message if isinstance(name, str) and not same_id else {**message, "name": call[2]}


def _id(value: Any) -> str | None:
    """The id of a call as text: 1, "1" and the 1.0 that a column with gaps makes of it are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**64) else None


def joined(before: list[Message], after: list[Message]) -> list[Message]:
    """`after`, which may repeat `before` or its end, as one conversation with it; answers just follow.

    `BadRow` where both hold a prompt, and one does not go on from the other.
    """
    if not before or not after or after[0]["role"] not in ("system", "user"):
        return [*before, *after]
    one, other = ([words(message) for message in turns] for turns in (before, after))
    if any(other[at : at + len(one)] == one for at in range(len(other))):
        return after
    for n in range(min(len(one), len(other)), 0, -1):
        if one[-n:] == other[:n]:
            return [*before[:-n], *after]
    if [turn[0] for turn in one] == ["system"] and other[0][0] == "user":
        return [*before, *after]
    raise BadRow("prompts_differ", "the prompt's column and the turns that repeat the prompt say different things")


def words(message: Message) -> tuple[str, str | None, Any]:
    """What two statements of one turn are compared by."""
    content = message["content"]
    return message["role"], content.strip() if isinstance(content, str) else None, message.get("tool_calls")


def message_of(row: Row, turn: Any) -> Message:
    """A turn in our roles, its calls as they come; `conversation` checks them."""
    if not isinstance(turn, dict):
        raise BadRow("wrong_shape", f"a turn is {type(turn).__name__}, not an object")
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content, other = turn.get("content"), turn.get("value")
    if content is not None and other is not None and content != other:
        raise BadRow("wrong_shape", "a turn has both content and value, and they differ")
    content = other if content is None else content
    role = role.strip().lower() if isinstance(role, str) else role
    ours = ROLE_OF.get(role) if isinstance(role, str) else None
    if ours is None:
        shown = repr(role)[:40] if isinstance(role, str) else type(role).__name__
        raise BadRow("unknown_role", f"{shown} is none of {', '.join(ROLE_OF)}")
    message = {"role": ours, "content": _text_of(content) if isinstance(content, list) else content}
    row.leave(turn, TURN | {"name"} if ours == "tool" else TURN)
    if ours == "assistant":
        if role == "function_call":
            if not isinstance(content, str):
                raise BadRow("content_not_text", f"{role} value is {type(content).__name__}")
            message |= {"content": "", "tool_calls": calls_in(content)}
        elif calls := turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None):
            message |= {"tool_calls": calls, "in_columns": True}  # function_call is OpenAI's older form
        if not _trained(turn):
            message["train"] = False
    elif ours == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    return message


def _trained(turn: dict[str, Any]) -> bool:
    """Whether an assistant's turn bears loss. `BadRow` where its marks say anything but yes or no, or both."""
    if turn.keys().isdisjoint(MARKS):
        return True
    answers = {}
    for key in MARKS:
        if is_empty(value := turn.get(key)):
            continue
        value = value.strip().lower() if isinstance(value, str) else value
        answers[key] = TRAINED.get(value) if isinstance(value, str | int | float) else None
        if answers[key] is None:
            shown = repr(value)[:40] if isinstance(value, str | float) else type(value).__name__
            raise BadRow("mark_not_understood", f"{key}: {shown} of a turn is none of 0, 1, false, true")
    if len(set(answers.values())) > 1:
        raise BadRow("mark_not_understood", f"{', '.join(answers)} of one turn contradict each other")
    return all(answers.values())


def _text_of(parts: list[Any]) -> str:
    """The text of OpenAI's content parts."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise BadRow("content_not_text", f"a content part is {kind[:40] if is_text(kind) else 'unnamed'}, not text")
    return "\n".join(part["text"] for part in parts)
