"""From conversations to token ids and loss labels.

Special tokens (`<|im_start|>`, `<|im_end|>`) separate the turns, so the ids of a conversation are the concatenation of
the ids of its turns, and every turn of many conversations goes through the tokenizer in one batch. Loss is borne by
what the assistant says, its tool calls and the closing `<|im_end|>`; everything else is masked. (The paper trains on
responses and tool calls; whether the closing token bears loss it does not say: without it a model never stops.)
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hermes3.chat.prompts import DEFAULT_SYSTEM, to_json, tools_system
from hermes3.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE = -100  # label of a token that bears no loss (PyTorch's cross entropy)


class Turn(NamedTuple):
    role: str
    text: str
    trained: bool


@dataclass(frozen=True)
class Tokens:
    """`input_ids`: int32[n_tokens]; `labels`: int32[n_tokens], -100 where no loss is borne."""

    input_ids: np.ndarray
    labels: np.ndarray

    @property
    def n_loss(self) -> int:
        # the first token of a sequence is never predicted
        return int((self.labels[1:] != IGNORE).sum())

    @property
    def n_completion(self) -> int:
        """Tokens of the last message, its `<|im_end|>` included: what DPO compares."""
        masked = np.flatnonzero(self.labels[:-1] == IGNORE)
        return len(self.labels) - 2 - int(masked[-1])


def assistant_text(message: Message) -> str:
    """What an assistant message says: its content, then its tool calls."""
    calls = [call["function"] for call in message.get("tool_calls", [])]
    blocks = [
        f'<tool_call>\n{{"name": {to_json(call["name"])}, "arguments": {to_json(call["arguments"])}}}\n</tool_call>'
        for call in calls
    ]
    return "\n".join(([message["content"]] if message["content"] else []) + blocks)


def _response_text(message: Message) -> str:
    text = message["content"].strip()
    is_json = (text[:1], text[-1:]) in (("{", "}"), ("[", "]"))
    content = text if is_json else json.dumps(message["content"], ensure_ascii=False)
    return f'<tool_response>\n{{"name": {to_json(message["name"])}, "content": {content}}}\n</tool_response>'


def turns(messages: list[Message], tools: list[Message] | None = None) -> Iterator[Turn]:
    """The turns that the template writes: the system message first, tool messages in a row joined into one turn."""
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    rest = messages if own is None else messages[1:]
    yield Turn("system", tools_system(tools, own) if tools else (DEFAULT_SYSTEM if own is None else own), False)
    responses: list[str] = []
    for message in rest:
        if message["role"] == "tool":
            responses.append(_response_text(message))
            continue
        if responses:
            yield Turn("tool", "\n".join(responses), False)
            responses = []
        if message["role"] == "assistant":
            yield Turn("assistant", assistant_text(message), message.get("train", True))
        else:
            yield Turn("user", message["content"], False)
    if responses:
        yield Turn("tool", "\n".join(responses), False)


def prompt_text(messages: list[Message], tools: list[Message] | None = None) -> str:
    """The prompt without BOS, ready for the assistant to speak: what a tokenizer that adds BOS by itself is given."""
    body = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns(messages, tools))
    return body + "<|im_start|>assistant\n"


class Renderer:
    """Renders conversations with a Hermes tokenizer (`hermes3 tokenizer build`)."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_added_vocab()]
        if missing:
            raise ValueError(f"{tokenizer.name_or_path}: no token {missing[0]}; make it with `hermes3 tokenizer build`")
        # a copy: transformers resets this flag of its own at each call. With it, text typed by a person never becomes
        # a control token; tags such as <tool_call> are ordinary added tokens and are still found
        self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self.backend.encode_special_tokens = True
        vocabulary = tokenizer.get_added_vocab()
        self.bos = tokenizer.bos_token_id
        self.start, self.end = vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]
        self.newline = self._encode(["\n"])[0]
        self.header_len = len(self._encode(["assistant\n"])[0])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def render(self, conversations: list[tuple[list[Message], list[Message] | None]]) -> list[Tokens]:
        """Ids and labels of each (messages, tools)."""
        all_turns = [list(turns(messages, tools)) for messages, tools in conversations]
        ids = iter(self._encode([f"{turn.role}\n{turn.text}" for one in all_turns for turn in one]))
        return [self._join([(turn, next(ids)) for turn in one]) for one in all_turns]

    def _join(self, pieces: list[tuple[Turn, list[int]]]) -> Tokens:
        input_ids, labels = [self.bos], [IGNORE]
        for turn, ids in pieces:
            masked = self.header_len if turn.trained else len(ids)
            input_ids += [self.start, *ids, self.end, *self.newline]
            labels += [IGNORE] * (1 + masked) + ids[masked:]
            labels += [self.end if turn.trained else IGNORE, *[IGNORE] * len(self.newline)]
        return Tokens(np.array(input_ids, np.int32), np.array(labels, np.int32))
