"""Turns as data has them, to messages: OpenAI's (`role`, `content`), ShareGPT's (`from`, `value`), or Hermes text.
Hermes text (the Hermes Function Calling standard) holds schemas within <tools> in the system turn, <tool_call> and
<tool_response> blocks in the others, in JSON or Python's notation. Where no tools are declared, such tags stay text."""

import ast
import json
import re
from itertools import groupby
from operator import itemgetter
from typing import Any

from hermes3.chat.prompts import CALL, to_json
from hermes3.messages import BadRow, Message, check, clean, is_json, is_text
from hermes3.mix import rules
from hermes3.mix.columns import Row, is_empty

_FILE = rules.load("turns")
ROLE_OF: dict[str, str] = _FILE["roles"]  # compared in lower case
LOSS = frozenset(_FILE["loss"])
TURN = LOSS | {"role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id"}

DECODER = json.JSONDecoder(strict=False)  # the released template leaves raw line breaks in descriptions
SCHEMAS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
RESPONSE = re.compile(r"<tool_response>(.*?)(?:</tool_response>|\Z)", re.DOTALL)
# quoted text, or a word of JSON's among Python's quotes
JSON_WORD = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b""", re.DOTALL)
PYTHON = {"true": "True", "false": "False", "null": "None"}
GAP = re.compile(r"[\s,]*")
STANDARD, LEFT_OVER, PROMPT = (
    re.compile(pattern.pattern.replace(" ?", r"\s*").replace(" ", r"\s+"), re.IGNORECASE)
    for pattern in rules.load("tool_prompt")["patterns"].values()
)


def message_of(row: Row, turn: Any) -> Message:
    """A turn in our roles, its calls as they come; `conversation` checks them."""
    if not isinstance(turn, dict):
        raise BadRow("wrong_shape", f"a turn is {type(turn).__name__}, not an object")
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content, other = turn.get("content"), turn.get("value")
    if content is not None and other is not None and content != other:
        raise BadRow("wrong_shape", "a turn has both content and value, and they differ")
    content = other if content is None else content
    if isinstance(content, list):  # OpenAI's content parts
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise BadRow("content_not_text", "a content part is not text")
        content = "\n".join(texts)
    role = role.strip().lower() if isinstance(role, str) else None
    if role not in ROLE_OF:
        raise BadRow("unknown_role", f"{repr(role)[:40]} is none of {', '.join(ROLE_OF)}")
    message = {"role": ROLE_OF[role], "content": content}
    row.leave(turn, TURN | {"name"} if message["role"] == "tool" else TURN)
    if message["role"] == "tool":
        return message | {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    if message["role"] == "assistant":
        if role == "function_call":
            if not isinstance(content, str):
                raise BadRow("content_not_text", f"{role} value is {type(content).__name__}")
            message |= {"content": "", "tool_calls": calls_in(content)}
        elif calls := turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None):
            message |= {"tool_calls": calls, "in_columns": True}  # function_call is OpenAI's older form
        if not _trained(turn):
            message["train"] = False
    return message


def _trained(turn: dict[str, Any]) -> bool:
    """Whether an assistant's turn bears loss. `BadRow` where its marks say anything but yes or no, or both."""
    if LOSS.isdisjoint(turn):
        return True
    marks = {key: turn[key] for key in _FILE["loss"] if not is_empty(turn.get(key))}
    values = [mark.strip().lower() if isinstance(mark, str) else mark for mark in marks.values()]
    trained, masked = (all(value in _FILE[what] for value in values) for what in ("trained", "masked"))
    if not trained and not masked:
        raise BadRow("mark_not_understood", f"{', '.join(marks)} of a turn must say one of 0, 1, false, true")
    return trained


def conversation(messages: list[Message], tools: list[Message]) -> dict[str, Any]:
    """{"messages", "tools"}, cleaned and checked. Responses are named by their calls, and stand in the calls' order."""
    messages, tools = structured(messages, tools)
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    out: list[Message] = []
    open_calls: list[tuple[int, str | None, str]] = []  # (place, id, name) of those without a response
    for are_responses, group in groupby(messages, lambda message: message["role"] == "tool"):
        if are_responses:
            placed = [_answer(message, open_calls) for message in group]
            out += [clean(message) for _, message in sorted(placed, key=itemgetter(0))]
            continue
        for message in group:
            out.append(cleaned := clean(message))
            open_calls = []
            for place, call in enumerate(cleaned.get("tool_calls", [])):
                function, raw = call["function"], message["tool_calls"][place]
                open_calls.append((place, _id(raw.get("id")), function["name"]))
                if isinstance((raw.get("function") or raw).get("arguments"), dict) and message.get("in_columns"):
                    function["arguments"] = _stated(function["arguments"], parameters.get(function["name"]))
    check(out, tools)
    return {"messages": out, "tools": tools}


def _answer(message: Message, open_calls: list[tuple[int, str | None, str]]) -> tuple[int, Message]:
    """The place of the call that `message` answers (of its id, else the next of its name, or the next); it, named."""
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
    """`after`, which may repeat `before` or its end, as one conversation with it; answers just follow."""
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
    raise BadRow("prompts_differ", "a column and the turns that repeat it say different things")


def words(message: Message) -> tuple[str, str | None, Any]:
    """What two statements of one turn are compared by."""
    content = message["content"]
    return message["role"], content.strip() if isinstance(content, str) else None, message.get("tool_calls")


def read(text: str, reason: str = "not_json") -> Any:
    """The value that `text` writes in JSON or in Python's notation. `BadRow` of this reason where it is neither."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        wrong = BadRow(reason, str(error) if isinstance(error, ValueError) else "nested too deeply")
        if not text.lstrip().startswith(("{", "[")) or isinstance(error, RecursionError):
            raise wrong from None
    try:
        return ast.literal_eval(JSON_WORD.sub(lambda word: PYTHON.get(word[0], word[0]), text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise wrong from None


def calls_in(text: str) -> list[Message]:
    """The calls, as yet unchecked, that `text` writes: one object or a list of them."""
    value = read(text, "tool_call_not_json")
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadRow("tool_call_not_json", "a call is not an object")
    return calls


def schemas(value: Any) -> list[Message]:
    """Tools on offer as {"type": "function", "function": {...}}, from a list of them, one, or the text of either."""
    tools, out = _read_all(value) if isinstance(value, str) else value, []
    for tool in tools if isinstance(tools, list) else [tools]:
        function = (tool.get("function") or tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not is_text(function.get("name")) or not is_json(function):
            raise BadRow("tools_not_json", "a tool is not an object with a name and values that JSON keeps")
        if function is tool:
            function = {key: item for key, item in tool.items() if key != "type"}
        out.append({"type": "function", "function": function if isinstance(value, str) else _without_nulls(function)})
    return out


def _read_all(text: str) -> Any:
    """The value of `text`, or the list of them where several objects follow one another."""
    values, at = [], GAP.match(text).end()
    try:
        while at < len(text):
            value, at = DECODER.raw_decode(text, at)
            values.append(value)
            at = GAP.match(text, at).end()
    except (ValueError, RecursionError):
        return read(text, "tools_not_json")
    return values[0] if len(values) == 1 else values


def _without_nulls(schema: Any) -> Any:
    """`schema` without null values; those of `default` and `const` stay where the schema allows null."""
    if isinstance(schema, list):
        return [_without_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {"default", "const"} if _allows_null(schema) else set()
    return {key: _without_nulls(value) for key, value in schema.items() if value is not None or key in kept}


def _stated(value: Any, schema: Any) -> Any:
    """`value`, arguments or a part of them, without the nulls that their `schema` does not declare: Arrow's."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [_stated(one, schema.get("items")) for one in value]
    if not isinstance(value, dict):
        return value
    declared = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
    of = {key: declared.get(key, schema.get("additionalProperties")) for key in value}
    return {key: _stated(one, of[key]) for key, one in value.items() if one is not None or _allows_null(of[key])}


def _allows_null(schema: Any) -> bool:
    """Whether a schema declares that it takes null, as JSON Schema or OpenAPI (`nullable`) say it."""
    if not isinstance(schema, dict):
        return False
    lists = {key: schema[key] for key in ("type", "enum", "anyOf", "oneOf") if isinstance(schema.get(key), list)}
    declared = schema.get("nullable") is True or None in lists.get("enum", [])
    declared = declared or "null" in [schema.get("type"), *lists.get("type", [])]
    return declared or any(map(_allows_null, [*lists.get("anyOf", []), *lists.get("oneOf", [])]))


def structured(messages: list[Message], tools: list[Message]) -> tuple[list[Message], list[Message]]:
    """`messages` with their calls and responses out of the text, and the tools that they or `tools` declare."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if isinstance(system, str) and "<tools>" in system:
        own, declared = _own_system(system)
        tools = tools or declared
        if own != system and tools:
            messages = ([{**messages[0], "content": own}] if own else []) + messages[1:]
    if not tools:
        return messages, tools
    out: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"] if isinstance(message["content"], str) else ""
        if role == "assistant" and "<tool_call>" in content:
            blocks = list(CALL.finditer(content))
            first = blocks[0].start()
            if CALL.sub("", content[first:]).strip():
                raise BadRow("text_after_tool_call", "a call ends the turn: its response comes next")
            calls = [call for block in blocks for call in calls_in(block[1] or block[2] or "")]
            out.append({**message, "content": content[:first], "tool_calls": calls})
        elif role == "tool" and "<tool_response>" in content:
            if RESPONSE.sub("", content).strip():
                raise BadRow("tool_response_not_json", "there is text outside <tool_response>")
            out += map(_response, RESPONSE.findall(content))
        else:
            out.append(message)
    return out, tools


def _own_system(system: str) -> tuple[str, list[Message]]:
    """What is left of a system message without the standard's prompt, and the schemas that it declares."""
    block, standard = SCHEMAS.search(system), STANDARD.search(system)
    if not block and not standard:
        return system, []
    try:
        declared = schemas(block[1]) if block else []
    except BadRow:
        if standard:
            raise
        return system, []  # prose with a tag in it
    around = (system[: block.start()], system[block.end() :]) if block else (system,)
    own = "\n\n".join(part for text in around if (part := PROMPT.sub("", text).strip()))
    if standard and (strange := LEFT_OVER.search(own)):
        wrong = f"`{strange[0]}` is left of a function-calling prompt; see tool_prompt.yml"
        raise BadRow("tools_prompt_not_known", wrong)
    return own, declared


def _response(body: str) -> Message:
    """The tool message of a block, with its name where the block says one: {"name": ..., "content": ...}."""
    try:
        value = read(body)
    except BadRow:
        value = body.strip()  # plain text
    message: Message = {"role": "tool"}
    if isinstance(value, dict) and isinstance(value.get("name"), str) and "content" in value:
        message["name"], value = value["name"], value["content"]
    if not is_json(value):
        raise BadRow("tool_response_not_json", "a response is not JSON")
    return message | {"content": value if isinstance(value, str) else to_json(value)}
