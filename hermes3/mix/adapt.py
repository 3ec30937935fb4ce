"""From the shapes that data comes in to conversations (`hermes3.messages`), one function per shape. Each raises
`BadRow`, and nothing else, for a row that is not of its shape or is no conversation."""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from hermes3.chat.prompts import rag_system, rag_user
from hermes3.files import UserError
from hermes3.messages import BadRow, Message
from hermes3.mix import read, rules
from hermes3.mix.columns import Row, is_empty
from hermes3.mix.turns import conversation, joined, message_of, schemas, words

_RAG = rules.load("glaive_rag")
DOCUMENT, OPEN, CLOSE, CITED = _RAG["patterns"].values()
Example = dict[str, Any]  # a row of a source, before or after its adapter

SHAPE = frozenset(rules.load("turns")["not_of_shape"])


def messages(row: Row) -> Example:
    """Turns in `messages` or `conversations`, their calls as `tool_calls`, as turns or as Hermes text."""
    turns = _field(row, list, "messages", "conversations", "conversation")
    return _checked(row, [message_of(row, turn) for turn in turns])


def single_turn(asked: str, *answered: str) -> Callable[[Row], Example]:
    """Of rows with a question, optional `input` (Alpaca) or `context` (Dolly), and an answer, in the columns named."""
    return lambda row: _checked(row, [_asked(row, asked), _turn("assistant", _field(row, str, *answered))])


def prompt_completion(row: Row) -> Example:
    """TRL's `prompt` and `completion`, each text or messages. As in TRL, the prompt bears no loss."""
    prompt, completion = _turns(row, "prompt", "user"), _turns(row, "completion", "assistant")
    masked = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    return _checked(row, [*masked, *completion])


def preference(row: Row) -> Example:
    """{"messages", "tools", "chosen", "rejected"} of a row. An answer is text, a message, the turns after the prompt,
    or a conversation that repeats it. Statements of the prompt are compared, and joined if one continues another."""
    tools, sides = _tools_of(row), {side: _turns(row, side, "assistant") for side in ("chosen", "rejected")}
    prompt = _prompt(row, sides["chosen"])
    chosen, rejected = (conversation(joined(prompt, turns), tools) for turns in sides.values())
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


def glaive_rag(row: Row) -> Example:
    """glaiveai/RAG-v1: `documents`, `question`, `answer`, optional `system_prompt` and `answer_mode`. Documents and
    citations are numbered from 0. Our request to cite follows a system message that makes none."""
    question, answer = _field(row, str, "question"), _field(row, str, "answer")
    documents = _documents(row)
    system = "".join(message["content"] for message in _with_system(row, []))
    request = _RAG["mixed"] if row.take("answer_mode") == "Mixed" else rag_system()
    if "<co" not in system:
        system = f"{system}\n\n{request}" if system else request
    user = rag_user(question, [(title, text) for _, title, text in documents])
    answer = _cited(answer, [number for number, _, _ in documents])
    return conversation([_turn("system", system), _turn("user", user), _turn("assistant", answer)], [])


def _documents(row: Row) -> list[tuple[int, str, str]]:
    """(number, title, text) of each, from their joint text or from a list of {title, text}."""
    if isinstance(documents := row.take("documents"), str):
        parsed = [(int(match[1]), match[2].strip(), match[3].strip()) for match in DOCUMENT.finditer(documents)]
        if DOCUMENT.sub("", documents).strip():
            raise BadRow("wrong_shape", "documents: there is text outside `Document:0 Title: ... Text: ...`")
    else:
        parsed = []
        for number, one in enumerate(map(Row, _field(row, list, "documents"))):
            parsed.append((number, _field(one, str, "title"), _field(one, str, "text")))
            row.leave(one, one.read)
    if not parsed or len({number for number, _, _ in parsed}) < len(parsed):
        raise BadRow("wrong_shape", "documents: there are none, or two have one number")
    return parsed


def _cited(answer: str, numbers: list[int]) -> str:
    """`answer` with its citations in the paper's form; `numbers` are those of the documents, in their order."""

    def places(text: str) -> list[int]:
        cited = [int(number) for number in re.findall("[0-9]{1,4}", text)]
        if absent := [number for number in cited if number not in numbers]:
            raise BadRow("citation_without_document", f"there is no document {absent[0]}")
        return [numbers.index(number) for number in cited]

    listed = [place for line in CITED.findall(answer) for place in places(line)]
    answer = CITED.sub("", answer).strip()
    if len(OPEN.findall(answer)) != len(CLOSE.findall(answer)):
        raise BadRow("citation_not_closed", "<co: N> and </co> do not pair")
    cited = [place for numbers in OPEN.findall(answer) for place in places(numbers)] or listed
    answer = OPEN.sub(lambda match: f"<co:{','.join(map(str, places(match[1])))}>", answer)
    last = f"\nCited Documents: {', '.join(map(str, sorted(set(cited))))}" if cited else ""
    return CLOSE.sub("</co>", answer) + last


SHAPES: dict[str, Callable[[Row], Example]] = {
    "messages": messages,
    "instruction": single_turn("instruction", "response", "output"),
    "question_answer": single_turn("question", "answer", "response"),
    "prompt_completion": prompt_completion,
    "glaive_rag": glaive_rag,
    "preference": preference,
}
SHAPES |= {"sharegpt": messages, "alpaca": SHAPES["instruction"]}
ADAPTERS: dict[str, Callable[[Any], Example]] = {  # of rows that note what is read, and of plain ones
    name: lambda row, shape=shape: shape(row if isinstance(row, Row) else Row(row)) for name, shape in SHAPES.items()
}


def read_example(file: Path, number: int, adapter: str) -> Example:
    """The conversation in row `number` (from 1) of `file`. `UserError`: no such file, row or adapter, or a bad row."""
    if adapter not in ADAPTERS:
        raise UserError(f"adapter {adapter}: not one of {', '.join(ADAPTERS)}")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    lines = (line for chunk in read.chunks(file.name, [read.File(file.name, file)]) for line in chunk.lines)
    if (line := next(islice(lines, number - 1, None), None)) is None:
        raise UserError(f"{file}: no row {number}")
    try:
        return ADAPTERS[adapter](read.parse(line))
    except BadRow as bad:
        raise UserError(f"{file}: row {number}: {bad}") from None


def _field(row: Row, kind: type, *keys: str) -> Any:
    """The first of the columns `keys` that is a `kind`; only this one counts as read. `BadRow` where none is."""
    for key in keys:
        if isinstance(row.get(key), kind):
            return row.take(key)
    columns = repr([key for key in row if isinstance(key, str)])[:200]
    raise BadRow("wrong_shape", f"no {' or '.join(keys)} of type {kind.__name__} among {columns}")


def _stated(row: Row, *keys: str) -> str | None:
    """The first of the columns `keys` that says something."""
    return next((key for key in keys if row.get(key) and not is_empty(row[key])), None)


def _tools_of(row: Row) -> list[Message]:
    """The tools on offer, each as {"type": "function", "function": {...}}; they may come as JSON text."""
    key = "tools" if row.get("tools") else "functions"
    return schemas(row.take(key)) if row.get(key) else []


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _checked(row: Row, messages: list[Message]) -> Example:
    return conversation(_with_system(row, messages), _tools_of(row))


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """`messages` after the system message that stands in a column of its own."""
    key = _stated(row, "system", "system_prompt", "system_message")
    return joined([_turn("system", _field(row, str, key))], messages) if key else messages


def _asked(row: Row, key: str) -> Message:
    """The text of the column `key`, followed by `input` (Alpaca) or `context` (Dolly) where there is one."""
    keys = [key, _stated(row, "input", "context")]
    return _turn("user", "\n\n".join(text for key in keys if key and (text := _field(row, str, key))))


def _turns(row: Row, key: str, role: str) -> list[Message]:
    """The turns of a column that holds a list of them, one, or the text of one; `role` where it states none."""
    value = row.take(key)
    if isinstance(value, dict):
        value = [value if "role" in value or "from" in value else {"role": role, **value}]
    return [message_of(row, turn) for turn in value] if isinstance(value, list) else [_turn(role, value)]


def _prompt(row: Row, chosen: list[Message]) -> list[Message]:
    """All that the columns say before the answers, of which a column may repeat the chosen one."""
    prompt: list[Message] = []
    for key in ("conversations", "conversation", "messages", "prompt"):
        if isinstance(row.get(key), list):
            turns = _turns(row, key, "user")
            if turns and chosen and turns[-1]["role"] == "assistant" and words(turns[-1]) == words(chosen[-1]):
                turns.pop()
            prompt = joined(prompt, turns)
    for key in ("prompt", "question", "instruction"):
        if isinstance(row.get(key), str):
            goes_on = prompt and prompt[-1]["role"] == "assistant"
            prompt = [*prompt, _asked(row, key)] if goes_on else joined([_asked(row, key)], prompt)
    prompt = _with_system(row, prompt)
    if not prompt and chosen[:1] and chosen[0]["role"] == "assistant":
        _field(row, str, "prompt", "question", "instruction")  # raises: there is none
    return prompt
