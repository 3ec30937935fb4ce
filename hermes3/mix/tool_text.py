"""Tool calls, responses and schemas that stand as text, in the form of the Hermes Function Calling standard.

Data published for it (NousResearch/hermes-function-calling-v1) holds whole prompts: schemas within <tools> in the
system turn, <tool_call> blocks in what the assistant says, <tool_response> blocks in tool turns; some as JSON, some in
Python's notation ({'a': None}), some with `arguments` before `name`. Once structured, the template writes all of it in
one form. Where no tools are declared, such tags are text that people write about, and stay.
"""

import ast
import json
import re
from typing import Any

from hermes3.chat.prompts import CALL, to_json
from hermes3.messages import BadRow, Message, is_json, is_text
from hermes3.mix import rules

DECODER = json.JSONDecoder(strict=False)  # the released template leaves raw line breaks in descriptions
SCHEMAS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
RESPONSE = re.compile(r"<tool_response>(.*?)(?:</tool_response>|\Z)", re.DOTALL)
GAP = re.compile(r"[\s,]*")
STANDARD, LEFT_OVER, PROMPT = (
    re.compile(pattern.pattern.replace(" ?", r"\s*").replace(" ", r"\s+"), re.IGNORECASE)
    for name in ("standard", "left_over", "sentences")
    for pattern in [rules.load("tool_prompt")["patterns"][name]]
)


def read(text: str) -> Any:
    """The value that `text` writes in JSON or in Python's notation. `ValueError` where it is neither."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if not text.lstrip().startswith(("{", "[")):
            raise
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise error from None


def calls_in(text: str) -> list[Message]:
    """The calls, as yet unchecked, that `text` writes: one object or a list of them."""
    try:
        value = read(text)
    except ValueError as error:
        raise BadRow("tool_call_not_json", str(error)) from None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadRow("tool_call_not_json", "a call is not an object")
    return calls


def schemas(value: Any) -> list[Message]:
    """Tools on offer as {"type": "function", "function": {...}}, from a list of them, one, or the text of either.

    Of a list, nulls are left out that no schema can mean: Arrow writes one where a tool lacks a key of another's.
    """
    try:
        tools = _read_all(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRow("tools_not_json", str(error)) from None
    out = []
    for tool in tools if isinstance(tools, list) else [tools]:
        function = (tool.get("function") or tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not is_text(function.get("name")) or not is_json(function):
            raise BadRow("tools_not_json", "a tool is not an object with a name and values that JSON keeps")
        if function is tool:
            function = {key: item for key, item in tool.items() if key != "type"}
        out.append({"type": "function", "function": function if isinstance(value, str) else _without_nulls(function)})
    return out


def _without_nulls(schema: Any) -> Any:
    """`schema` without null values; those of `default` and `const` stay where the schema allows null."""
    if isinstance(schema, list):
        return [_without_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {"default", "const"} if _allows_null(schema) else set()
    return {key: _without_nulls(value) for key, value in schema.items() if value is not None or key in kept}


def stated(value: Any, schema: Any) -> Any:
    """`value`, arguments or a part of them, without the nulls that their `schema` does not allow.

    Arrow gives a struct every key of the whole column: a null stands where a call does not have the argument. One that
    is declared nullable, or of any type, stays.
    """
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [stated(one, schema.get("items")) for one in value]
    if not isinstance(value, dict):
        return value
    declared = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
    of = {key: declared.get(key, schema.get("additionalProperties", False)) for key in value}
    return {key: stated(one, of[key]) for key, one in value.items() if one is not None or _allows_null(of[key])}


def _allows_null(schema: Any) -> bool:
    """Whether a schema takes null, as JSON Schema or OpenAPI (`nullable`) say it."""
    if not isinstance(schema, dict):
        return schema is True
    kinds, choices, either = (schema.get(key) for key in ("type", "enum", "anyOf"))
    either = either or schema.get("oneOf")
    if isinstance(either, list):
        return any(map(_allows_null, either))
    says = [kinds if isinstance(kinds, list) else [kinds], choices if isinstance(choices, list) else []]
    of_any_type = kinds is None and not {"enum", "$ref", "properties", "items"} & schema.keys()
    return schema.get("nullable") is True or "null" in says[0] or None in says[1] or of_any_type


def structured(messages: list[Message], tools: list[Message]) -> tuple[list[Message], list[Message]]:
    """`messages` with their calls and responses out of the text, and the tools that they or `tools` declare.

    What the system message says beyond the standard's prompt stays. `BadRow` for a block that cannot be read.
    """
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if isinstance(system, str) and "<tools>" in system:
        own, declared = _own_system(system)
        if declared:
            tools = tools or declared
            messages = ([{**messages[0], "content": own}] if own else []) + messages[1:]
    if not tools:
        return messages, tools
    out: list[Message] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, str) and "<tool_call>" in content:
            out.append(_with_calls(message))
        elif message["role"] == "tool" and isinstance(content, str) and "<tool_response>" in content:
            out += _responses(content)
        else:
            out.append(message)
    return out, tools


def _own_system(system: str) -> tuple[str, list[Message]]:
    """What is left of a system message without the standard's prompt, and the schemas that it declares."""
    blocks = list(SCHEMAS.finditer(system))
    if not blocks:
        return system, []
    block = blocks[0]
    try:
        declared = schemas(block[1])
    except BadRow:
        if STANDARD.search(system):
            raise
        return system, []  # prose with a tag in it
    parts = [PROMPT.sub("", part).strip() for part in (system[: block.start()], system[block.end() :])]
    own = "\n\n".join(part for part in parts if part)
    if STANDARD.search(system) and (strange := LEFT_OVER.search(own)):
        raise BadRow(
            "tools_prompt_not_known", f"`{strange[0]}` is left of a function-calling prompt; see tool_prompt.yml"
        )
    return own, declared


def _with_calls(message: Message) -> Message:
    content = message["content"]
    blocks = list(CALL.finditer(content))
    if CALL.sub("", content[blocks[0].start() :]).strip():
        raise BadRow("text_after_tool_call", "a call ends the turn: its response comes next")
    calls = [call for block in blocks for call in calls_in(block[1] or block[2] or "")]
    return {**message, "content": content[: blocks[0].start()], "tool_calls": calls}


def _responses(content: str) -> list[Message]:
    """One tool message a block, with its name where the block says one: {"name": ..., "content": ...}."""
    if RESPONSE.sub("", content).strip():
        raise BadRow("tool_response_not_json", "there is text outside <tool_response>")
    out = []
    for body in RESPONSE.findall(content):
        message: Message = {"role": "tool", "content": body.strip()}
        try:
            value = read(body)
        except ValueError:
            value = message["content"]  # plain text
        if isinstance(value, dict) and isinstance(value.get("name"), str) and "content" in value:
            message["name"], value = value["name"], value["content"]
        if not is_json(value):
            raise BadRow("tool_response_not_json", "a response is not JSON")
        out.append({**message, "content": value if isinstance(value, str) else to_json(value)})
    return out


def _read_all(text: str) -> Any:
    """The value of `text`, or the list of them where several objects follow one another."""
    try:
        return read(text)
    except ValueError as error:
        values, at = [], GAP.match(text).end()
        while at < len(text):
            try:
                value, at = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                raise error from None
            values.append(value)
            at = GAP.match(text, at).end()
        return values
