"""From the shapes that data comes in to conversations (`hermes3.messages`), one function per shape.

Each raises `BadRow`, and nothing else, for a row that is not of its shape or is no conversation. Turns come in OpenAI's
form (`role`, `content`) or in ShareGPT's (`from`, `value`).
"""

import re
from bisect import bisect
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hermes3.chat.prompts import rag_system, rag_user
from hermes3.files import UserError
from hermes3.messages import BadRow, Message, check, clean, is_text
from hermes3.mix import read
from hermes3.mix.columns import Row, is_empty
from hermes3.mix.tool_text import calls_in, schemas, stated, structured

Example = dict[str, Any]  # a row of a source, before or after its adapter

# Reasons that say: these rows are not what their source declares. Others (role_order, empty_turn, undeclared_tool, ...)
# concern what a readable row says
SHAPE = {
    *("not_json", "wrong_shape", "unknown_role", "content_not_text", "mark_not_understood", "tools_prompt_not_known"),
    *("tools_not_json", "tool_call_not_json", "tool_response_unnamed"),
}
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


def messages(row: Row) -> Example:
    """Turns in `messages` (OpenAI's form, ours among them) or in `conversations` (ShareGPT's).

    Optional columns: `tools` or `functions`; `system`. Calls come as `tool_calls`, as turns or as Hermes text.
    """
    turns = _field(row, list, "messages", "conversations", "conversation")
    return conversation(_with_system(row, [_message(row, turn) for turn in turns]), _tools_of(row))


def instruction(row: Row) -> Example:
    """Alpaca, GPTeacher, Dolly: `instruction`, optional `input` or `context`, `output` or `response`, and `system`."""
    return _single_turn(row, "instruction", "response", "output")


def question_answer(row: Row) -> Example:
    """`question`, optional `input` or `context`, `answer` or `response` (OpenOrca), optional `system`."""
    return _single_turn(row, "question", "answer", "response")


def prompt_completion(row: Row) -> Example:
    """TRL's `prompt` and `completion`, each text or messages. As in TRL, the prompt bears no loss."""
    prompt, completion = _turns(row, "prompt", "user"), _turns(row, "completion", "assistant")
    masked = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    return conversation(_with_system(row, [*masked, *completion]), _tools_of(row))


def preference(row: Row) -> Example:
    """{"messages", "tools", "chosen", "rejected"} of a row with `chosen` and `rejected`.

    An answer is text, one message, or a list: the turns that follow the prompt, or a whole conversation that repeats it
    (ultrafeedback_binarized). The prompt is `conversations` or `messages`, `prompt` (text or messages), `question` or
    `instruction`; `system` and `tools` columns count. Where the prompt is stated more than once, the statements are
    compared, and joined where one goes on from the other.
    """
    tools, sides = _tools_of(row), {side: _turns(row, side, "assistant") for side in ("chosen", "rejected")}
    prompt = _prompt(row, sides["chosen"])
    chosen, rejected = (conversation(_joined(prompt, turns), tools) for turns in sides.values())
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


# --- answers from documents with citations, in the paper's form (Hermes 3 report, arXiv 2408.11857, Figure 8)

NUMBERED = r"\bDocument:\s*([0-9]{1,4})\s+Title:"
DOCUMENT = re.compile(rf"{NUMBERED}(.*?)\bText:(.*?)(?={NUMBERED}|\Z)", re.DOTALL)
OPEN = re.compile(r"<co:\s*([0-9]{1,4}(?:\s*,\s*[0-9]{1,4})*)\s*>")
CLOSE = re.compile(r"</co(?::[^<>]*)?>")
CITED = re.compile(r"^[ \t]*Cited Documents:[ \t]*(.*)$", re.MULTILINE)
# for rows whose `answer_mode` lets the answer go beyond the documents
MIXED = "Answer from the documents and from what you know. Put each fact from a document inside <co: doc_id></co> tags."


def glaive_rag(row: Row) -> Example:
    """glaiveai/RAG-v1: `documents`, `question`, `answer`, optional `system_prompt` and `answer_mode`.

    Documents are numbered from 0, and citations with them. The system message is the row's own, followed by our request
    to cite where it makes none. Citations become `<co:2>...</co>`; the answer ends with the line `Cited Documents: 2`.
    """
    question, answer = _field(row, str, "question"), _field(row, str, "answer")
    documents = _documents(row)
    system = "".join(message["content"] for message in _with_system(row, []))
    request = MIXED if row.take("answer_mode") == "Mixed" else rag_system()
    if "<co" not in system:
        system = f"{system}\n\n{request}" if system else request
    user = rag_user(question, [(title, text) for _, title, text in documents])
    answer = _cited(answer, [number for number, _, _ in documents])
    return conversation([_turn("system", system), _turn("user", user), _turn("assistant", answer)], [])


def _documents(row: Row) -> list[tuple[int, str, str]]:
    """(number, title, text) of each, from their joint text or from a list of {title, text}."""
    documents = row.take("documents")
    if isinstance(documents, str):
        parsed = [(int(match[1]), match[2].strip(), match[3].strip()) for match in DOCUMENT.finditer(documents)]
        if DOCUMENT.sub("", documents).strip():
            raise BadRow("wrong_shape", "documents: there is text outside `Document:0 Title: ... Text: ...`")
    elif isinstance(documents, list):
        each = [Row(one) for one in documents]
        parsed = [(i, _field(one, str, "title"), _field(one, str, "text")) for i, one in enumerate(each)]
        for one in each:
            row.leave(one, frozenset({"title", "text"}))
    else:
        raise BadRow("wrong_shape", f"documents are {type(documents).__name__}, neither text nor a list")
    if not parsed or len({number for number, _, _ in parsed}) < len(parsed):
        raise BadRow("wrong_shape", "documents: there are none, or two have one number")
    return parsed


def _cited(answer: str, numbers: list[int]) -> str:
    """`answer` with its citations in the paper's form; `numbers` are those of the documents, in their order."""
    place = {number: i for i, number in enumerate(numbers)}

    def renumber(text: str) -> list[int]:
        cited = [int(number) for number in re.findall("[0-9]{1,4}", text)]
        if absent := [number for number in cited if number not in place]:
            raise BadRow("citation_without_document", f"there is no document {absent[0]}")
        return [place[number] for number in cited]

    listed = [i for line in CITED.findall(answer) for i in renumber(line)]
    answer = CITED.sub("", answer).strip()
    if len(OPEN.findall(answer)) != len(CLOSE.findall(answer)):
        raise BadRow("citation_not_closed", "<co: N> and </co> do not pair")
    cited = [i for numbers in OPEN.findall(answer) for i in renumber(numbers)] or listed
    answer = OPEN.sub(lambda match: f"<co:{','.join(map(str, renumber(match[1])))}>", answer)
    last = f"\nCited Documents: {', '.join(map(str, sorted(set(cited))))}" if cited else ""
    return CLOSE.sub("</co>", answer) + last


def _adapt(shape: Callable[[Row], Example], row: Any) -> Example:
    return shape(row if isinstance(row, Row) else Row(row))


ADAPTERS: dict[str, Callable[[Any], Example]] = {
    shape.__name__: partial(_adapt, shape)
    for shape in (messages, instruction, question_answer, prompt_completion, glaive_rag, preference)
}
ADAPTERS |= {"sharegpt": ADAPTERS["messages"], "alpaca": ADAPTERS["instruction"]}


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


# --- what the adapters share


def conversation(messages: list[Message], tools: list[Message]) -> Example:
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
        raise BadRow("tool_response_unnamed", f"no open call has its tool_call_id, {call_id[:40]}")
    call = (same_id or [call for call in open_calls if call[2] == name] or open_calls)[0]
    open_calls.remove(call)
    return call[0], message if isinstance(name, str) and not same_id else {**message, "name": call[2]}


def _id(value: Any) -> str | None:
    """The id of a call as text: 1, "1" and the 1.0 that a column with gaps makes of it are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**64) else None


def _field(row: Row, kind: type, *keys: str) -> Any:
    """The first of the columns `keys` that is a `kind`; only this one counts as read. `BadRow` where none is."""
    for key in keys:
        if isinstance(row.get(key), kind):
            return row.take(key)
    columns = repr([key for key in row if isinstance(key, str)])[:200]
    raise BadRow("wrong_shape", f"no {' or '.join(keys)} of type {kind.__name__} among {columns}")


def _tools_of(row: Row) -> list[Message]:
    """The tools on offer, each as {"type": "function", "function": {...}}; they may come as JSON text."""
    key = "tools" if row.get("tools") else "functions"
    return schemas(row.take(key)) if row.get(key) else []


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """`messages` after the system message that stands in a column of its own."""
    key = next((key for key in ("system", "system_prompt", "system_message") if not is_empty(row.get(key))), None)
    if key is None:
        return messages
    system = _turn("system", _field(row, str, key))
    if not messages or messages[0]["role"] != "system":
        return [system, *messages]
    if _words(messages[0]) != _words(system):
        raise BadRow("prompts_differ", f"the column {key} and the system turn say different things")
    return messages


def _asked(row: Row, key: str) -> str:
    """The text of the column `key`, followed by `input` (Alpaca) or `context` (Dolly) where there is one."""
    key_of_input = next((key for key in ("input", "context") if not is_empty(row.get(key))), None)
    parts = [_field(row, str, key), _field(row, str, key_of_input) if key_of_input else ""]
    return "\n\n".join(part for part in parts if part)


def _single_turn(row: Row, question: str, *answers: str) -> Example:
    turns = [_turn("user", _asked(row, question)), _turn("assistant", _field(row, str, *answers))]
    return conversation(_with_system(row, turns), _tools_of(row))


def _turns(row: Row, key: str, role: str) -> list[Message]:
    """The turns of a column that holds a list of them, one, or the text of one; `role` where it states none."""
    value = row.take(key)
    if isinstance(value, dict):
        value = [value if "role" in value or "from" in value else {"role": role, **value}]
    return [_message(row, turn) for turn in value] if isinstance(value, list) else [_turn(role, value)]


def _prompt(row: Row, chosen: list[Message]) -> list[Message]:
    """All that the columns say before the answers. A column that repeats the whole chosen conversation adds nothing."""
    prompt: list[Message] = []
    for key in ("conversations", "conversation", "messages", "prompt"):
        if isinstance(row.get(key), list) and (turns := _turns(row, key, "user")) != chosen:
            prompt = _joined(prompt, turns)
    for key in ("prompt", "question", "instruction"):
        if isinstance(row.get(key), str):
            question = [_turn("user", _asked(row, key))]
            goes_on = bool(prompt) and prompt[-1]["role"] == "assistant"
            prompt = [*prompt, *question] if goes_on else _joined(question, prompt)
    prompt = _with_system(row, prompt)
    if not prompt and chosen[:1] and chosen[0]["role"] == "assistant":
        _field(row, str, "prompt", "question", "instruction")  # raises: there is none
    return prompt


def _joined(before: list[Message], after: list[Message]) -> list[Message]:
    """`after`, which may repeat `before` or its end, as one conversation with it; answers just follow.

    `BadRow` where both hold a prompt, and one does not go on from the other.
    """
    if not before or not after or after[0]["role"] not in ("system", "user"):
        return [*before, *after]
    one, other = ([_words(message) for message in turns] for turns in (before, after))
    if any(other[at : at + len(one)] == one for at in range(len(other))):
        return after
    for n in range(min(len(one), len(other)), 0, -1):
        if one[-n:] == other[:n]:
            return [*before[:-n], *after]
    if [turn[0] for turn in one] == ["system"] and other[0][0] == "user":
        return [*before, *after]
    raise BadRow("prompts_differ", "the prompt's column and the turns that repeat the prompt say different things")


def _words(message: Message) -> tuple[str, str | None]:
    """What two statements of one turn are compared by."""
    content = message["content"]
    return message["role"], content.strip() if isinstance(content, str) else None


def _message(row: Row, turn: Any) -> Message:
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
    message = _turn(ours, _text_of(content) if isinstance(content, list) else content)
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
