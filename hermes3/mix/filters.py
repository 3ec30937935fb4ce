"""Filters on the quality of a conversation: which rows a model must not learn from, each with its reason. The Hermes 3
report (arXiv 2408.11857) names no rules; these are ours. Of a preference row they read the prompt and the chosen
answer: a rejected one may be bad. A filter returns what it objects to, with its place, or None."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hermes3.chat.prompts import parse_tool_calls, to_json
from hermes3.messages import ROLES, BadRow, Message
from hermes3.mix import turns
from hermes3.mix.adapt import Example
from hermes3.mix.refusals import HINTED, OPENING, is_refusal

# C0 but for tab and line ends, DEL, C1, lone surrogates, U+FFFD and the noncharacters of a swapped byte order
BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd-\uffff]")
# A fence of backticks has no further backtick on its line (CommonMark 0.31, section 4.5). It may open a list item.
FENCE = re.compile(r"^[ \t>]*(?:[-*+] |\d+[.)] )?(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE)
# What JSON must hold for a filter to object, for RE2; of `BROKEN` in UTF-8 or escapes
NEEDED = {
    "broken_text": r"\\[bfu]|\x7f|\xc2[\x80-\x9f]|\xed[\xa0-\xbf]|\xef\xbf[\xbd-\xbf]",
    "json_mode": "<schema>",
    "tool_call_text": "</?tool_call>",
}
CHOICE = 60  # characters: "Can't answer" is at times the right one of a quiz's choices
SCHEMA = re.compile(r"<schema>(.*?)</schema>", re.DOTALL)
TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
# by pattern, not by parsing: public data writes the block as JSON, as lines of JSON or as Python
NAME = re.compile(r"""["']name["']\s*:\s*["']([^"']+)["']""")


def apply(row: Example, skip: frozenset[str] = frozenset()) -> None:
    """Raise `BadRow(filter, detail)` at the first filter of `FILTERS`, in their order, that objects to `row`."""
    for name, objection in FILTERS.items():
        if name not in skip and (detail := objection(row)):
            raise BadRow(name, detail)


def cannot_object(rows: list[Example]) -> list[frozenset[str]]:
    """The filters that find nothing in each row (with its `json`), told from all rows at once."""
    written = pa.array([b"\n".join(row["json"].values()) for row in rows])
    openings = pa.array(["\n".join(text[:OPENING].lower() for _, text in _answers(row)) for row in rows])
    needed = {name: (written, pattern) for name, pattern in NEEDED.items()} | {"refusal": (openings, HINTED)}
    may = {name: pc.match_substring_regex(*one).to_pylist() for name, one in needed.items()}
    return [frozenset(name for name in may if not may[name][i]) for i in range(len(rows))]


def broken_text(row: Example) -> str | None:
    """Characters that no writer means: bytes decoded wrongly, control codes, halves of a surrogate pair."""
    texts = [(place, m["content"] + to_json(m.get("tool_calls"))) for place, m in _messages(row)]
    for place, text in [*texts, ("tools", to_json(row.get("tools")))]:
        if broken := BROKEN.search(text):
            return f"{place}: U+{ord(broken[0]):04X} at character {broken.start()}"
    return None


def refusal(row: Example) -> str | None:
    """An assistant message that refuses or preaches as an AI; not one of the choices that a prompt offers."""
    for place, text in _answers(row):
        if matched := is_refusal(text):
            prompts = (message["content"] for _, message in _messages(row, ("user", "system")))
            if len(text) > CHOICE or not any(text.strip() in prompt for prompt in prompts):
                return f"{place}: {matched}"
    return None


def unterminated_code(row: Example) -> str | None:
    """A fenced code block that is not closed: the answer was cut, or its format is wrong."""
    for place, text in _answers(row):
        opened = None
        for fence in FENCE.finditer(text) if "```" in text or "~~~" in text else ():
            if opened is None:
                opened = fence
            elif fence[1].startswith(opened[1]):  # of the same sign and at least as long
                opened = None
        if opened:
            line = text.count("\n", 0, opened.start()) + 1
            return f"{place}: the {opened[1]} of line {line} is never closed"
    return None


def json_mode(row: Example) -> str | None:
    """An answer that is no JSON, or does not fit the schema, where the system message is that of JSON mode."""
    from referencing.exceptions import Unresolvable

    system = "".join(message["content"] for _, message in _messages(row, ("system",)))
    if "<schema>" not in system or "json" not in system.lower():
        return None
    schema = SCHEMA.search(system)
    if not (validator := _validator(schema[1] if schema else "{}")):
        return "message 1: its schema cannot be read, or is none"
    for place, text in _answers(row):
        try:
            answer = json.loads(text, parse_constant=int)  # int refuses NaN
        except (ValueError, RecursionError) as error:
            return f"{place}: not JSON: {error}"
        with suppress(Unresolvable, RecursionError, ValueError, ArithmeticError):  # lost references, 1e400: all fits
            if error := next(validator.iter_errors(answer), None):
                return f"{place}: {error.json_path}: {error.message[:200]}"
    return None


def tool_call_text(row: Example) -> str | None:
    """A tool call written as text that is not closed, is not a call, or names a tool that is not on offer."""
    for place, text in _answers(row):
        if "<tool_call>" not in text and "</tool_call>" not in text:
            continue
        calls = None
        with suppress(ValueError, RecursionError):  # a number of more than 4,300 digits, a thousand brackets
            calls = parse_tool_calls(text)
        if calls is None:
            return f"{place}: a <tool_call> holds no JSON object with name and arguments"
        if not len(calls) == text.count("<tool_call>") == text.count("</tool_call>"):
            return f"{place}: <tool_call> and </tool_call> do not pair up"
        system = "".join(message["content"] for _, message in _messages(row, ("system",)))
        offered = {name for block in TOOLS.findall(system) for name in NAME.findall(block)}
        offered |= {tool["function"].get("name") for tool in row.get("tools") or []}
        if strange := [call["name"] for call in calls if call["name"] not in offered]:
            return f"{place}: {strange[0]} is not among the tools offered"
    return None


# broken_text first: it keeps lone surrogates, which no file takes, out of the details of the others
FILTERS = {f.__name__: f for f in (broken_text, refusal, unterminated_code, json_mode, tool_call_text)}


def _messages(row: Example, roles: tuple[str, ...] = ROLES) -> Iterator[tuple[str, Message]]:
    """(place, message) of the roles; of a preference row the prompt and the chosen answer."""
    for number, message in enumerate(row["messages"], 1):
        if message["role"] in roles:
            yield f"message {number}", message
    if "chosen" in row and "assistant" in roles:
        yield "chosen", row["chosen"]


def _answers(row: Example) -> Iterator[tuple[str, str]]:
    """(place, text) of the assistant messages that say something; calls alone have no text."""
    return ((place, m["content"]) for place, m in _messages(row, ("assistant",)) if m["content"])


@lru_cache(maxsize=256)  # a check against the metaschema takes milliseconds, and rows share schemas
def _validator(schema: str) -> Any:
    """The validator of `schema`, in JSON or Python's notation, that looks nothing up elsewhere; None if it is none."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        parsed = turns.read(schema.strip())
        kind = validator_for(parsed, default=Draft202012Validator)
        kind.check_schema(parsed)
    except (ValueError, SchemaError, RecursionError, TypeError, AttributeError):  # the latter: `$schema` is no text
        return None
    return kind(parsed, registry=Registry())
