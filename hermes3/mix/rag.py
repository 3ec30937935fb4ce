"""Answers from documents with citations, in the paper's form (Hermes 3 report, arXiv 2408.11857, Figure 8)."""

import re
from typing import Any

from hermes3.chat.prompts import rag_system, rag_user
from hermes3.messages import BadRow
from hermes3.mix.turns import Row, conversation, field, said

NUMBERED = r"\bDocument:\s*([0-9]{1,4})\s+Title:"
DOCUMENT = re.compile(rf"{NUMBERED}(.*?)\bText:(.*?)(?={NUMBERED}|\Z)", re.DOTALL)
OPEN = re.compile(r"<co:\s*([0-9]{1,4}(?:\s*,\s*[0-9]{1,4})*)\s*>")
CLOSE = re.compile(r"</co(?::[^<>]*)?>")
CITED = re.compile(r"^[ \t]*Cited Documents:[ \t]*(.*)$", re.MULTILINE)
# for rows whose `answer_mode` lets the answer go beyond the documents
MIXED = "Answer from the documents and from what you know. Put each fact from a document inside <co: doc_id></co> tags."


def glaive_rag(row: Row) -> Row:
    """glaiveai/RAG-v1: `documents`, `question`, `answer`, optional `system_prompt` and `answer_mode`.

    Documents are numbered from 0, and citations with them. The system message is the row's own, followed by our request
    to cite where it makes none. Citations become `<co:2>...</co>`; the answer ends with the line `Cited Documents: 2`.
    """
    question, answer = field(row, str, "question"), field(row, str, "answer")
    documents = _documents(row.get("documents"))
    own = field(row, str, "system_prompt") if row.get("system_prompt") else ""
    if "<co" not in own:
        request = MIXED if row.get("answer_mode") == "Mixed" else rag_system()
        own = f"{own}\n\n{request}" if own else request
    user = rag_user(question, [(title, text) for _, title, text in documents])
    cited = _cited(answer, [number for number, _, _ in documents])
    return conversation([said("system", own), said("user", user), said("assistant", cited)], [])


def _documents(documents: Any) -> list[tuple[int, str, str]]:
    """(number, title, text) of each, from their joint text or from a list of {title, text}."""
    if isinstance(documents, str):
        found = [(int(match[1]), match[2].strip(), match[3].strip()) for match in DOCUMENT.finditer(documents)]
        if DOCUMENT.sub("", documents).strip():
            raise BadRow("wrong_shape", "documents: there is text outside `Document:0 Title: ... Text: ...`")
    elif isinstance(documents, list):
        found = [(i, field(one, str, "title"), field(one, str, "text")) for i, one in enumerate(documents)]
    else:
        raise BadRow("wrong_shape", f"documents are {type(documents).__name__}, neither text nor a list")
    if not found or len({number for number, _, _ in found}) < len(found):
        raise BadRow("wrong_shape", "documents: there are none, or two have one number")
    return found


def _cited(answer: str, numbers: list[int]) -> str:
    """`answer` with its citations in the paper's form; `numbers` are those of the documents, in their order."""
    place = {number: i for i, number in enumerate(numbers)}

    def renumber(text: str) -> list[int]:
        cited = [int(number) for number in re.findall("[0-9]{1,4}", text)]
        if absent := [number for number in cited if number not in place]:
            raise BadRow("citation_without_document", f"document {absent[0]} is not there")
        return [place[number] for number in cited]

    listed = [i for line in CITED.findall(answer) for i in renumber(line)]
    answer = CITED.sub("", answer).strip()
    if len(OPEN.findall(answer)) != len(CLOSE.findall(answer)):
        raise BadRow("citation_not_closed", "<co: N> and </co> do not pair")
    cited = [i for numbers in OPEN.findall(answer) for i in renumber(numbers)] or listed
    answer = OPEN.sub(lambda match: f"<co:{','.join(map(str, renumber(match[1])))}>", answer)
    last = f"\nCited Documents: {', '.join(map(str, sorted(set(cited))))}" if cited else ""
    return CLOSE.sub("</co>", answer) + last
