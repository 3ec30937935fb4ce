"""The tokenising stage: what each row weighs in tokens as it will be trained, and whether it fits."""

from typing import TYPE_CHECKING

from rich.progress import Progress

from hermes3.messages import BadRow
from hermes3.mix.adapters import Row
from hermes3.mix.spec import Spec

if TYPE_CHECKING:
    from hermes3.chat.render import Renderer

BATCH = 1000  # rows a call of the tokenizer: enough to use every core, few enough to show progress


def reject(row: Row, stage: str, reason: str, detail: str) -> Row:
    """The record of a row that is left out."""
    return {"id": row["id"], "source": row["source"], "stage": stage, "reason": reason, "detail": detail}


def tokenise(rows: list[Row], spec: Spec, rejects: list[Row], progress: Progress) -> list[Row]:
    """The rows that fit, with `n_tokens`, `n_loss_tokens` and what is to be written of them."""
    from transformers import AutoTokenizer

    from hermes3.chat.render import Renderer

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    renderer = Renderer(tokenizer)
    kept = []
    task = progress.add_task("tokenise", total=len(rows))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        (_sft if spec.kind == "sft" else _preference)(batch, renderer)
        for row in batch:
            try:
                _check(row, spec, control)
            except BadRow as bad:
                rejects.append(reject(row, "tokenise", bad.reason, bad.detail))
            else:
                kept.append(row)
        progress.advance(task, len(batch))
    return kept


def _sft(batch: list[Row], renderer: "Renderer") -> None:
    tokens = renderer.render([(row["messages"], row["tools"]) for row in batch])
    for row, one in zip(batch, tokens, strict=True):
        n_tokens = len(one.input_ids)
        row.update(tokens=one, n_tokens=n_tokens, n_longest=n_tokens, n_loss_tokens=one.n_loss)


def _preference(batch: list[Row], renderer: "Renderer") -> None:
    """Text, for Axolotl's pass-through (its own chat strategy for DPO drops tool calls). TRL's tokenizer adds BOS."""
    from hermes3.chat.render import assistant_text, prompt_text

    sides = [([*row["messages"], row[side]], row["tools"]) for row in batch for side in ("chosen", "rejected")]
    tokens = renderer.render(sides)
    for row, *pair in zip(batch, tokens[::2], tokens[1::2], strict=True):
        lengths = [len(one.input_ids) for one in pair]
        answers = {side: assistant_text(row[side]) + "<|im_end|>" for side in ("chosen", "rejected")}
        row.update(text={"prompt": prompt_text(row["messages"], row["tools"]), **answers})
        row.update(n_tokens=sum(lengths), n_longest=max(lengths), n_loss_tokens=sum(one.n_completion for one in pair))


def _check(row: Row, spec: Spec, control: list[str]) -> None:
    if row["n_longest"] > spec.sequence_len:
        raise BadRow("over_sequence_len", f"{row['n_longest']} > {spec.sequence_len} tokens")
    if row["n_loss_tokens"] == 0:
        raise BadRow("no_loss_tokens", "nothing in it is trained")
    if spec.kind == "preference":
        # tokenised from text by TRL, a special token that a person typed would become one
        said = [message["content"] for message in [*row["messages"], row["chosen"], row["rejected"]]]
        if typed := [token for token in control if any(token in content for content in said)]:
            raise BadRow("control_token_in_text", typed[0])
