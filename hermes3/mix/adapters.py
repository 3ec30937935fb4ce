"""From the shapes that data comes in to conversations (`hermes3.messages`), one function a shape.

Each raises `BadRow`, and nothing else, for a row that is not of its shape or is no conversation.
"""

from collections.abc import Callable
from typing import Any

from hermes3.messages import Message
from hermes3.mix import turns
from hermes3.mix.preference import preference
from hermes3.mix.rag import glaive_rag
from hermes3.mix.turns import Row, asked, field, messages_of, said, tools_of, with_system

# reasons that say: these rows are not what their source declares. Others (role_order, empty_turn, undeclared_tool, ...)
# judge what a readable row says
SHAPE: frozenset[str] = frozenset(
    {
        "not_json",
        "wrong_shape",
        "unknown_role",
        "content_not_text",
        "tools_not_json",
        "tool_call_not_json",
        "tool_response_unnamed",
    }
)


def conversation(row: Row) -> Row:
    """`messages` of {role, content} as OpenAI has them, ours among them; an optional `tools` column."""
    return turns.conversation(messages_of(field(row, list, "messages")), tools_of(row))


def sharegpt(row: Row) -> Row:
    """`conversations` of {from, value}; `system` and `tools` columns; calls as turns of their own or as Hermes text."""
    messages = messages_of(field(row, list, "conversations", "conversation", "messages"))
    return turns.conversation(with_system(row, messages), tools_of(row))


def instruction(row: Row) -> Row:
    """Alpaca and GPTeacher: `instruction`, optional `input`, `output` or `response`; an optional system column."""
    return _single(row, asked(row), row["response"] if "response" in row else field(row, str, "output", "response"))


def question_answer(row: Row) -> Row:
    """`question`, and `answer` or `response` (OpenOrca); an optional system column."""
    return _single(row, field(row, str, "question"), field(row, str, "answer", "response"))


def prompt_completion(row: Row) -> Row:
    """TRL's `prompt` and `completion`, each text or messages. As in TRL, what stands in the prompt bears no loss."""
    prompt, completion = (_messages(row, key, role) for key, role in (("prompt", "user"), ("completion", "assistant")))
    masked = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    return turns.conversation(with_system(row, [*masked, *completion]), tools_of(row))


ADAPTERS: dict[str, Callable[[Row], Row]] = {
    "messages": conversation,
    "sharegpt": sharegpt,
    "instruction": instruction,
    "question_answer": question_answer,
    "prompt_completion": prompt_completion,
    "glaive_rag": glaive_rag,
    "preference": preference,
}


def _single(row: Row, question: str, answer: Any) -> Row:
    return turns.conversation(with_system(row, [said("user", question), said("assistant", answer)]), [])


def _messages(row: Row, key: str, role: str) -> list[Message]:
    """The turns of a column that holds a list of them, or the text of one."""
    if isinstance(row, dict) and isinstance(row.get(key), list):
        return messages_of(row[key])
    return [said(role, field(row, str, key))]
