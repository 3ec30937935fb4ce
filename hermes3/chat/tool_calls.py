"""Reading tool calls out of generated text, by the grammar of the Hermes standard (vLLM's `hermes` parser)."""

import json
import re
from typing import Any

# a call that the model did not close still counts in vLLM's parser up to the end of the text
CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def parse_tool_calls(text: str) -> list[dict[str, Any]] | None:
    """`[{"name", "arguments"}]` of every call in `text`, in order; None if one of them is not such an object."""
    calls = []
    for match in CALL.finditer(text):
        try:
            call = json.loads(match[1] or match[2])
        except (json.JSONDecodeError, TypeError):
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        if not isinstance(call.get("arguments"), dict):
            return None
        calls.append({"name": call["name"], "arguments": call["arguments"]})
    return calls
