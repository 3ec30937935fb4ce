"""From conversations to token ids and loss labels.

Special tokens separate the turns, so the ids of a conversation are those of its turns, and many turns go through the
tokenizer in one batch. Loss is borne by what the assistant says, its tool calls and the closing `<|im_end|>`, of which
the paper says nothing: without it a model never stops.
"""

from collections import namedtuple
from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hermes3.chat.encode import Encoder
from hermes3.chat.prompts import DEFAULT_SYSTEM, holds_json, to_json, tools_system
from hermes3.files import UserError, read_json
from hermes3.messages import Message

IGNORE = -100  # label of a token that bears no loss (PyTorch's cross entropy)
Conversation = tuple[list[Message], list[Message] | None]  # messages, tools
Turn = namedtuple("Turn", "role text trained")
# conversations one after another: ids, int32[n_tokens]; whether each bears loss, bool[n_tokens]; and where they begin,
# and the last one ends, int64[n_conversations + 1]
Batch = namedtuple("Batch", "input_ids loss offsets")


class Tokens(NamedTuple):
    input_ids: np.ndarray  # int32[n_tokens]
    labels: np.ndarray  # int32[n_tokens], -100 where no loss is borne

    @property
    def n_completion(self) -> int:
        """Tokens of the last message, its `<|im_end|>` included: what DPO compares."""
        return len(self.labels) - 2 - int(np.flatnonzero(self.labels[:-1] == IGNORE)[-1])


def assistant_text(message: Message) -> str:
    """What an assistant message says: its content, then its tool calls."""
    calls = [call["function"] for call in message.get("tool_calls", [])]
    texts = [_block("tool_call", call["name"], "arguments", to_json(call["arguments"])) for call in calls]
    return "\n".join([message["content"]] * bool(message["content"]) + texts)


def _response_text(message: Message) -> str:
    text = message["content"].strip()
    is_json = text[:1] in ("{", "[") and holds_json(text)
    return _block("tool_response", message["name"], "content", text if is_json else to_json(message["content"]))


def _block(tag: str, name: str, key: str, value: str) -> str:
    return f'<{tag}>\n{{"name": {to_json(name)}, "{key}": {value}}}\n</{tag}>'


def turns(messages: list[Message], tools: list[Message] | None = None) -> Iterator[Turn]:
    """The turns that the template writes: the system message first, tool messages in a row joined into one turn."""
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    plain = DEFAULT_SYSTEM if own is None else own
    yield Turn("system", tools_system(tools, own) if tools else plain, False)
    for role, group in groupby(messages if own is None else messages[1:], key=itemgetter("role")):
        if role == "tool":
            yield Turn("tool", "\n".join(map(_response_text, group)), False)
        elif role == "assistant":
            yield from (Turn(role, assistant_text(message), message.get("train", True)) for message in group)
        else:
            yield from (Turn("user", message["content"], False) for message in group)


def prompt_text(messages: list[Message], tools: list[Message] | None = None) -> str:
    """The prompt without BOS, ready for the assistant to speak: for a tokenizer that adds BOS by itself."""
    body = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns(messages, tools))
    return body + "<|im_start|>assistant\n"


class Renderer:
    """Renders conversations with the Hermes tokenizer of a folder (`hermes3 tokenizer build`). It can be pickled."""

    def __init__(self, folder: Path):
        self.encode = Encoder(folder)
        bos, ids = read_json(folder / "tokenizer_config.json", "bos_token")["bos_token"], self.encode.ids
        if missing := {bos, "<|im_start|>", "<|im_end|>"} - ids.keys():
            raise UserError(f"{folder}: no token {min(missing)}; make the folder with `hermes3 tokenizer build`")
        self.bos, self.start, self.end = ids[bos], ids["<|im_start|>"], ids["<|im_end|>"]
        self.newline = self.encode(["\n"])[0]
        self.header_len = len(self.encode(["assistant\n"])[0])

    def render(self, conversations: list[Conversation]) -> list[Tokens]:
        """Ids and labels of each (messages, tools)."""
        batch = self.batch([list(turns(messages, tools)) for messages, tools in conversations])
        labels = np.where(batch.loss, batch.input_ids, IGNORE).astype(np.int32)
        return [Tokens(batch.input_ids[a:b], labels[a:b]) for a, b in pairwise(batch.offsets)]

    def batch(self, every: list[list[Turn]]) -> Batch:
        """Ids of all conversations: BOS, then for each turn its start, header and text, end and line break."""
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
        input_ids[end[:, None] + 1 + np.arange(len(self.newline))] = self.newline
        loss[body] = np.repeat(trained, lengths) & (within >= self.header_len)
        loss[end] = trained
        return Batch(input_ids, loss, offsets)


def as_text(tokens: Tokens, tokenizer: Any) -> Any:
    """rich's text of `tokens` with transformers' `tokenizer`. Green bears loss, bold is a single id, as <tool_call>."""
    from rich.text import Text

    marked = zip(tokens.input_ids.tolist(), (tokens.labels != IGNORE).tolist(), strict=True)
    text, added = Text(), tokenizer.added_tokens_decoder
    # runs that are alike are decoded together: no character that is split over tokens is torn apart
    for (trained, single), run in groupby(marked, key=lambda token: (token[1], token[0] in added)):
        style = ("green" if trained else "dim") + (" bold" if single else "")
        text.append(tokenizer.decode([i for i, _ in run], clean_up_tokenization_spaces=False), style)
    n_loss = (tokens.labels != IGNORE).sum()
    return text.append(f"\n{len(tokens.labels):,} tokens, {n_loss:,} of them bear loss")
