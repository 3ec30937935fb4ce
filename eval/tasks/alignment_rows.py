"""Rows of the alignment tasks: the items of `alignment/*.yml` as whole conversations, with what each is checked by.

Every item is written by this project. Messages of the Hermes forms (tools, JSON mode, citations) are built by
`hermes3.chat.prompts`, so they are what a model was trained on.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from hermes3.chat.prompts import json_system, rag_system, rag_user

DATA = Path(__file__).with_name("alignment")
# the paper's Figure 8 ends so; its system message is not printed whole
CITED_LINE = "End with the line `Cited Documents:` and the numbers of the documents cited, separated by commas."
Item = dict[str, Any]


def load(kind: str, system: str | None = None, **_) -> dict[str, Dataset]:
    """Rows of `alignment/<kind>.yml` as JSON text (see `chat_task.load`); `system` replaces every system message."""
    items = yaml.safe_load((DATA / f"{kind}.yml").read_text(encoding="utf-8"))
    rows = [row for item in items for row in ROWS.get(kind, told)(item)]
    for i, row in enumerate(rows):
        row["id"] = f"{kind}-{i:03d}"
        if system is not None:
            row["messages"] = [_said("system", system), *row["messages"]]
    return {"test": Dataset.from_list([{"row": json.dumps(row, ensure_ascii=False)} for row in rows])}


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def told(item: Item | str) -> Iterator[Item]:
    """A user's text alone, or `user`, an optional `system`, earlier `turns` (user and assistant), and the checks."""
    item = {"user": item} if isinstance(item, str) else dict(item)
    messages = [_said("system", item.pop("system"))] if "system" in item else []
    for i, text in enumerate(item.pop("turns", [])):
        messages.append(_said("assistant" if i % 2 else "user", text))
    yield {"messages": [*messages, _said("user", item.pop("user"))], **item}


def tool_calls(item: Item) -> Iterator[Item]:
    """`tools` (name -> description, parameters), and `requests`: [text, {name: its arguments}, ...] over them.

    Arguments are those that the text leaves no doubt of: `values` of the row, one for each of `names`.
    """
    tools = [
        {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}
        for name, (text, parameters) in item["tools"].items()
    ]
    for text, *calls in item["requests"]:
        names, values = [name for call in calls for name in call], [value for call in calls for value in call.values()]
        yield {"messages": [_said("user", text)], "tools": tools, "names": names, "values": values}


def json_mode(item: Item) -> Iterator[Item]:
    """`schema`, and `texts`: [text, the fields whose value it leaves no doubt of]."""
    for text, fields in item["texts"]:
        messages = [_said("system", json_system(item["schema"])), _said("user", text)]
        yield {"messages": messages, "schema": item["schema"], "fields": fields}


def citations(item: Item) -> Iterator[Item]:
    """`documents`: [title, text], and `questions`: [question, the document that answers, ways to tell the fact]."""
    documents = [tuple(document) for document in item["documents"]]
    for question, number, *facts in item["questions"]:
        messages = [_said("system", f"{rag_system()} {CITED_LINE}"), _said("user", rag_user(question, documents))]
        yield {"messages": messages, "documents": len(documents), "document": number, "facts": facts}


def scratchpad(item: Item) -> Iterator[Item]:
    """`system`, the `tags` it asks for in order (`A/B`: B inside A; `only`: no more), and `users`: the questions."""
    checks = {key: item[key] for key in ("tags", "only") if key in item}
    for text in item["users"]:
        yield {"messages": [_said("system", item["system"]), _said("user", text)], **checks}


ROWS = {"tool_calls": tool_calls, "json_mode": json_mode, "citations": citations, "scratchpad": scratchpad}
