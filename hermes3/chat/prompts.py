"""The texts of the Hermes forms: system and user messages for tools, JSON mode and RAG; calls as a model writes them.
Models and servers match on these strings (Hermes Function Calling standard; Hermes 3 report, Figure 8)."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("hermes3.jinja")
# the template is where they are written: {%- set NAME = "TEXT" -%}
_TEXTS = re.findall(r'set \w+ = ("(?:[^"\\]|\\.)+") -', TEMPLATE.read_text(encoding="utf-8"))
DEFAULT_SYSTEM, TOOLS_INTRO, TOOLS_OUTRO = map(json.loads, _TEXTS)
# ours: asks for what the paper's Figure 9 shows, a <SCRATCHPAD> before the <SOLUTION>
SCRATCHPAD_SYSTEM = "Think in a scratchpad, then give the solution."
# a call that the model did not close still counts in vLLM's parser up to the end of the text
CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def to_json(value: Any) -> str:
    """JSON on one line, keys in the order given, non-ASCII text as it is (what `tojson` of the template writes)."""
    return json.dumps(value, ensure_ascii=False)


def holds_json(text: str) -> bool:
    """Whether `text` is JSON as every parser reads it; the template's macro of this name agrees."""
    with suppress(ValueError, RecursionError):
        json.loads(text, parse_int=str, parse_float=str, parse_constant=int)  # int refuses NaN
        return True
    return False


def tools_system(tools: list[dict[str, Any]], own: str | None = None) -> str:
    """System message that offers `tools` (OpenAI function schemas), followed by the conversation's `own` one."""
    text = TOOLS_INTRO + " ".join(to_json(tool) for tool in tools) + TOOLS_OUTRO
    return f"{text}\n\n{own}" if own else text


def json_system(schema: dict[str, Any]) -> str:
    """System message of JSON mode: the answer is one JSON object that fits `schema`."""
    intro = "You are a helpful assistant that answers in JSON. Here's the json schema you must adhere to:"
    return f"{intro}\n<schema>\n{to_json(schema)}\n</schema>"


def rag_system() -> str:
    """System message that asks for citations in the `<co: doc_id></co>` form."""
    return "Answer from the documents alone. Put each fact inside <co: doc_id></co> tags that name its document."


def rag_user(question: str, documents: list[tuple[str, str]]) -> str:
    """User message of a RAG turn: the question, then `documents` as (title, text), numbered from 0."""
    lines = [f"Document:{i} Title: {title} Text: {text}" for i, (title, text) in enumerate(documents)]
    return "\n".join([question, "CONTEXT:", *lines])


def parse_tool_calls(text: str) -> list[dict[str, Any]] | None:
    """`[{"name", "arguments"}]` of every call in `text`, in order; None if one of them is no such object.
    The grammar is that of vLLM's `hermes` parser."""
    try:
        loaded = [json.loads(match[1] or match[2]) for match in CALL.finditer(text)]
        calls = [{"name": call["name"], "arguments": call["arguments"]} for call in loaded]
    except (json.JSONDecodeError, TypeError, KeyError):
        return None
    valid = all(isinstance(call["name"], str) and isinstance(call["arguments"], dict) for call in calls)
    return calls if valid else None
