"""Preference pairs: a prompt that two answers share."""

from typing import Any

from hermes3.messages import BadRow, Message
from hermes3.mix.turns import Row, asked, conversation, field, messages_of, said, tools_of, with_system


def preference(row: Row) -> Row:
    """{"messages", "tools", "chosen", "rejected"} of a row with `chosen` and `rejected`.

    An answer is text, one message, or a list: the turns that follow the prompt, or a whole conversation that repeats it
    (ultrafeedback_binarized). The prompt is `conversations` or `messages`, `prompt` (text or messages), `question`, or
    `instruction` with its `input`; `system` and `tools` columns count.
    """
    if not isinstance(row, dict):
        raise BadRow("wrong_shape", f"a row is {type(row).__name__}, not an object")
    tools = tools_of(row)
    chosen, rejected = (conversation(_whole(row, row.get(side)), tools) for side in ("chosen", "rejected"))
    answers = {"chosen": chosen["messages"].pop(), "rejected": rejected["messages"].pop()}
    for side, answer in answers.items():
        if answer["role"] != "assistant":
            raise BadRow("wrong_shape", f"{side} ends with a {answer['role']} message, not with an answer")
        answer.pop("train", None)  # both sides are compared, whatever an SFT mix would mask
    if chosen != rejected:
        raise BadRow("prompts_differ", "chosen and rejected do not answer the same prompt")
    if answers["chosen"] == answers["rejected"]:
        raise BadRow("no_preference", "chosen and rejected are the same")
    return {**chosen, **answers}


def _whole(row: Row, answer: Any) -> list[Message]:
    """The conversation that ends with `answer`."""
    if isinstance(answer, dict):
        answer = [answer if "role" in answer or "from" in answer else {"role": "assistant", **answer}]
    if not isinstance(answer, list):
        return [*_prompt(row), said("assistant", answer)]
    turns = messages_of(answer)
    whole = bool(turns) and turns[0]["role"] in ("system", "user")
    return with_system(row, turns) if whole else [*_prompt(row), *turns]


def _prompt(row: Row) -> list[Message]:
    for key in ("conversations", "conversation", "messages", "prompt"):
        if isinstance(row.get(key), list):
            return with_system(row, messages_of(row[key]))
    question = asked(row) if "instruction" in row else field(row, str, "prompt", "question")
    return with_system(row, [said("user", question)])
