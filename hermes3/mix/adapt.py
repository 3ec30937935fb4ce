"""From the shapes that data comes in to conversations (`hermes3.messages`), one function per shape.

Each raises `BadRow`, and nothing else, for a row that is not of its shape or is no conversation. Turns come in OpenAI's
form (`role`, `content`) or in ShareGPT's (`from`, `value`).
"""

import re
from bisect import bisect
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from hermes3.chat.prompts import rag_system, rag_user
from hermes3.files import UserError
from hermes3.messages import BadRow, Message, check, clean
from hermes3.mix import read
from hermes3.mix.tool_text import calls_in, schemas, structured

Example = dict[str, Any]  # a row of a source, before or after its adapter

# Reasons that say: these rows are not what their source declares. Others (role_order, empty_turn, undeclared_tool, ...)
# concern what a readable row says
SHAPE = {
    *("not_json", "wrong_shape", "unknown_role", "content_not_text"),
    *("tools_not_json", "tool_call_not_json", "tool_response_unnamed"),
}
ROLE_OF = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bing", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "observation", "function_response", "function"], "tool"),
}


def messages(row: Example) -> Example:
    """`messages` of {role, content} as OpenAI has them, ours among them; an optional `tools` column."""
    return conversation(_messages_of(_field(row, list, "messages")), _tools_of(row))


def sharegpt(row: Example) -> Example:
    """`conversations` of {from, value}; `system` and `tools` columns; calls as turns of their own or as Hermes text."""
    turns = _messages_of(_field(row, list, "conversations", "conversation", "messages"))
    return conversation(_with_system(row, turns), _tools_of(row))


def instruction(row: Example) -> Example:
    """Alpaca and GPTeacher: `instruction`, optional `input`, `output` or `response`; an optional system column."""
    question = _instruction_of(row)
    return _single_turn(row, question, row["response"] if "response" in row else _field(row, str, "output", "response"))


def question_answer(row: Example) -> Example:
    """`question`, and `answer` or `response` (OpenOrca); an optional system column."""
    return _single_turn(row, _field(row, str, "question"), _field(row, str, "answer", "response"))


def prompt_completion(row: Example) -> Example:
    """TRL's `prompt` and `completion`, each text or messages. As in TRL, the prompt bears no loss."""
    prompt, completion = (_side(row, key, role) for key, role in (("prompt", "user"), ("completion", "assistant")))
    masked = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    return conversation(_with_system(row, [*masked, *completion]), _tools_of(row))


def preference(row: Example) -> Example:
    """{"messages", "tools", "chosen", "rejected"} of a row with `chosen` and `rejected`.

    An answer is text, one message, or a list: the turns that follow the prompt, or a whole conversation that repeats it
    (ultrafeedback_binarized). The prompt is `conversations` or `messages`, `prompt` (text or messages), `question`, or
    `instruction` with its `input`; `system` and `tools` columns count.
    """
    if not isinstance(row, dict):
        raise BadRow("wrong_shape", f"a row is {type(row).__name__}, not an object")
    tools = _tools_of(row)
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


# --- answers from documents with citations, in the paper's form (Hermes 3 report, arXiv 2408.11857, Figure 8)

NUMBERED = r"\bDocument:\s*([0-9]{1,4})\s+Title:"
DOCUMENT = re.compile(rf"{NUMBERED}(.*?)\bText:(.*?)(?={NUMBERED}|\Z)", re.DOTALL)
OPEN = re.compile(r"<co:\s*([0-9]{1,4}(?:\s*,\s*[0-9]{1,4})*)\s*>")
CLOSE = re.compile(r"</co(?::[^<>]*)?>")
CITED = re.compile(r"^[ \t]*Cited Documents:[ \t]*(.*)$", re.MULTILINE)
# for rows whose `answer_mode` lets the answer go beyond the documents
MIXED = "Answer from the documents and from what you know. Put each fact from a document inside <co: doc_id></co> tags."


def glaive_rag(row: Example) -> Example:
    """glaiveai/RAG-v1: `documents`, `question`, `answer`, optional `system_prompt` and `answer_mode`.

    Documents are numbered from 0, and citations with them. The system message is the row's own, followed by our request
    to cite where it makes none. Citations become `<co:2>...</co>`; the answer ends with the line `Cited Documents: 2`.
    """
    question, answer = _field(row, str, "question"), _field(row, str, "answer")
    documents = _documents(row.get("documents"))
    system = _field(row, str, "system_prompt") if row.get("system_prompt") else ""
    if "<co" not in system:
        request = MIXED if row.get("answer_mode") == "Mixed" else rag_system()
        system = f"{system}\n\n{request}" if system else request
    user = rag_user(question, [(title, text) for _, title, text in documents])
    answer = _cited(answer, [number for number, _, _ in documents])
    return conversation([_turn("system", system), _turn("user", user), _turn("assistant", answer)], [])


def _documents(documents: Any) -> list[tuple[int, str, str]]:
    """(number, title, text) of each, from their joint text or from a list of {title, text}."""
    if isinstance(documents, str):
        parsed = [(int(match[1]), match[2].strip(), match[3].strip()) for match in DOCUMENT.finditer(documents)]
        if DOCUMENT.sub("", documents).strip():
            raise BadRow("wrong_shape", "documents: there is text outside `Document:0 Title: ... Text: ...`")
    elif isinstance(documents, list):
        parsed = [(i, _field(one, str, "title"), _field(one, str, "text")) for i, one in enumerate(documents)]
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


ADAPTERS: dict[str, Callable[[Example], Example]] = {
    adapter.__name__: adapter
    for adapter in (messages, sharegpt, instruction, question_answer, prompt_completion, glaive_rag, preference)
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


# --- what the adapters share


def conversation(messages: list[Message], tools: list[Message]) -> Example:
    """{"messages", "tools"}, cleaned and checked. Responses are named by their calls, and stand in the calls' order."""
    messages, tools = structured(messages, tools)
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
        first, answered = len(out), []
        open_calls = [
            (place, message["tool_calls"][place].get("id"), call["function"]["name"])
            for place, call in enumerate(cleaned.get("tool_calls", []))
        ]
    check(out, tools)
    return {"messages": out, "tools": tools}


def _response(message: Message, open_calls: list[tuple[int, Any, str]]) -> tuple[int, Message]:
    """The place of the call that `message` answers, open no longer, and `message` with a name.

    It is the call of its `tool_call_id`, or else the next one of its name, or else the next one.
    """
    if not open_calls:
        raise BadRow("response_without_call", "a tool message answers no call")
    name, call_id = message.get("name"), message.get("tool_call_id")
    if isinstance(call_id, str):
        same = [call for call in open_calls if call[1] == call_id]
        if not same and not isinstance(name, str):
            raise BadRow("tool_response_unnamed", "no open call has its tool_call_id")
    else:
        same = [call for call in open_calls if call[2] == name]
    call = (same or open_calls)[0]
    open_calls.remove(call)
    return call[0], message if isinstance(name, str) else {**message, "name": call[2]}


def _field(row: Example, kind: type, *keys: str) -> Any:
    """The first of the columns `keys` that is a `kind`. `BadRow` where none is."""
    if not isinstance(row, dict):
        raise BadRow("wrong_shape", f"a row is {type(row).__name__}, not an object")
    for key in keys:
        if isinstance(row.get(key), kind):
            return row[key]
    columns = repr([key for key in row if isinstance(key, str)])[:200]
    raise BadRow("wrong_shape", f"no {' or '.join(keys)} of type {kind.__name__} among {columns}")


def _tools_of(row: Example) -> list[Message]:
    """The tools on offer, each as {"type": "function", "function": {...}}; they may come as JSON text."""
    tools = row.get("tools") or row.get("functions")
    return schemas(tools) if tools else []


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _instruction_of(row: Example) -> str:
    """Alpaca's `instruction` with its `input`, where it has one."""
    parts = [_field(row, str, "instruction"), _field(row, str, "input") if row.get("input") else ""]
    return "\n\n".join(part for part in parts if part)


def _with_system(row: Example, messages: list[Message]) -> list[Message]:
    """`messages` after the system message that stands in a column of its own."""
    if not row.get("system") and not row.get("system_prompt"):
        return messages
    system = _turn("system", _field(row, str, "system", "system_prompt"))
    return messages if messages[:1] == [system] else [system, *messages]


def _single_turn(row: Example, question: str, answer: Any) -> Example:
    return conversation(_with_system(row, [_turn("user", question), _turn("assistant", answer)]), [])


def _side(row: Example, key: str, role: str) -> list[Message]:
    """The turns of a column that holds a list of them, or the text of one."""
    if isinstance(row, dict) and isinstance(row.get(key), list):
        return _messages_of(row[key])
    return [_turn(role, _field(row, str, key))]


def _whole(row: Example, answer: Any) -> list[Message]:
    """The conversation that ends with `answer`, one side of a preference."""
    if isinstance(answer, dict):
        answer = [answer if "role" in answer or "from" in answer else {"role": "assistant", **answer}]
    if not isinstance(answer, list):
        return [*_prompt(row), _turn("assistant", answer)]
    turns = _messages_of(answer)
    whole = bool(turns) and turns[0]["role"] in ("system", "user")
    return _with_system(row, turns) if whole else [*_prompt(row), *turns]


def _prompt(row: Example) -> list[Message]:
    for key in ("conversations", "conversation", "messages", "prompt"):
        if isinstance(row.get(key), list):
            return _with_system(row, _messages_of(row[key]))
    question = _instruction_of(row) if "instruction" in row else _field(row, str, "prompt", "question")
    return _with_system(row, [_turn("user", question)])


def _messages_of(turns: list[Any]) -> list[Message]:
    """One message per turn, in our roles, its calls as they come; `conversation` checks them."""
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("wrong_shape", f"a turn is {type(turn).__name__}, not an object")
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    ours = ROLE_OF.get(role) if isinstance(role, str) else None
    if ours is None:
        shown = repr(role)[:40] if isinstance(role, str) else type(role).__name__
        raise BadRow("unknown_role", f"{shown} is none of {', '.join(ROLE_OF)}")
    message = _turn(ours, _joined(content) if isinstance(content, list) else content)
    if ours == "assistant":
        if role == "function_call":
            if not isinstance(content, str):
                raise BadRow("content_not_text", f"{role} value is {type(content).__name__}")
            message |= {"content": "", "tool_calls": calls_in(content)}
        elif calls := turn.get("tool_calls"):
            message["tool_calls"] = calls
        elif call := turn.get("function_call"):  # OpenAI's older form
            message["tool_calls"] = [call]
        if turn.get("train") is False or turn.get("weight") in (0, False):
            message["train"] = False
    elif ours == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if key in turn}
    return message


def _joined(parts: list[Any]) -> str:
    """The text of OpenAI's content parts."""
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise BadRow("content_not_text", "a content part is not of type text")
    return "\n".join(part["text"] for part in parts)
