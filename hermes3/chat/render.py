"""From conversations to token ids and loss labels.

Special tokens (`<|im_start|>`, `<|im_end|>`) separate the turns, so the ids of a conversation are the concatenation of
the ids of its turns, and every turn of many conversations goes through the tokenizer in one batch. Loss is borne by
what the assistant says, its tool calls and the closing `<|im_end|>`; everything else is masked. (The paper trains on
responses and tool calls; whether the closing token bears loss it does not say: without it a model never stops.)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hermes3.chat.encode import Encoder
from hermes3.chat.prompts import DEFAULT_SYSTEM, holds_json, to_json, tools_system
from hermes3.files import UserError
from hermes3.messages import Message

IGNORE = -100  # label of a token that bears no loss (PyTorch's cross entropy)
Conversation = tuple[list[Message], list[Message] | None]  # messages, tools


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


class Batch(NamedTuple):
    """Conversations one after another: conversation i is `offsets[i]` to `offsets[i + 1]`."""

    input_ids: np.ndarray  # int32[n_tokens]
    loss: np.ndarray  # bool[n_tokens], whether the token bears loss
    offsets: np.ndarray  # int64[n_conversations + 1]


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
    content = text if text[:1] in ("{", "[") and holds_json(text) else to_json(message["content"])
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
    """Renders conversations with the Hermes tokenizer of a folder (`hermes3 tokenizer build`). It can be pickled."""

    def __init__(self, folder: Path):
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"no {folder}/tokenizer.json; make it with `hermes3 tokenizer build`")
        self.encode = Encoder.load(folder)
        ids = self.encode.ids
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if missing := [t for t in ("<|im_start|>", "<|im_end|>", config["bos_token"]) if t not in ids]:
            raise UserError(f"{folder}: no token {missing[0]}; make the folder with `hermes3 tokenizer build`")
        self.bos, self.start, self.end = ids[config["bos_token"]], ids["<|im_start|>"], ids["<|im_end|>"]
        self.newline = self.encode(["\n"])[0]
        self.header_len = len(self.encode(["assistant\n"])[0])

    def render(self, conversations: list[Conversation]) -> list[Tokens]:
        """Ids and labels of each (messages, tools)."""
        batch = self.batch(conversations)
        labels = np.where(batch.loss, batch.input_ids, IGNORE).astype(np.int32)
        bounds = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
        return [Tokens(batch.input_ids[a:b], labels[a:b]) for a, b in bounds]

    def batch(self, conversations: list[Conversation]) -> Batch:
        """Ids of all (messages, tools): BOS, then for each turn its start, header and text, end and line break."""
        every = [list(turns(messages, tools)) for messages, tools in conversations]
        n_turns = np.fromiter(map(len, every), np.int64, len(every))
        trained = np.array([turn.trained for one in every for turn in one], bool)
        ids, lengths = self.encode([f"{turn.role}\n{turn.text}" for one in every for turn in one])

        size = 2 + lengths + len(self.newline)  # of a turn
        n_bos = np.repeat(np.arange(1, len(every) + 1), n_turns)  # those up to the turn
        start = np.cumsum(size) - size + n_bos
        end = start + 1 + lengths
        offsets = np.append(0, np.cumsum(size))[np.append(0, np.cumsum(n_turns))] + np.arange(len(every) + 1)

        input_ids, loss = np.full(offsets[-1], self.bos, np.int32), np.zeros(offsets[-1], bool)
        within = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # place of an id in its turn
        body = np.repeat(start + 1, lengths) + within
        input_ids[body], input_ids[start], input_ids[end] = ids, self.start, self.end
        for place, token in enumerate(self.newline, 1):
            input_ids[end + place] = token
        loss[body] = np.repeat(trained, lengths) & (within >= self.header_len)
        loss[end] = trained
        return Batch(input_ids, loss, offsets)
