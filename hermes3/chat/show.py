"""A conversation as a model sees it: special tokens visible, what bears loss marked."""

import html
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from hermes3.chat.render import IGNORE, Tokens

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerFast

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --trained: #d7f0dc; --special: #8a5a00 }}
@media (prefers-color-scheme: dark) {{ :root {{ --trained: #17402a; --special: #e0b25c }} }}
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace }}
mark {{ background: var(--trained); color: inherit }}
b {{ color: var(--special); font-weight: 600 }}
</style>
<h1>{title}</h1>
<p>{n_tokens:,} tokens, <mark>{n_loss:,} of them bear loss</mark>; <b>special tokens</b> and tags are single ids.</p>
<pre>{body}</pre>
</html>
"""


class Span(NamedTuple):
    text: str
    trained: bool
    special: bool  # one id: a special token, or a tag such as <tool_call>


def spans(tokens: Tokens, tokenizer: "PreTrainedTokenizerFast") -> list[Span]:
    """The text of `tokens` in runs that are alike; a character split over tokens is never torn apart."""
    added = tokenizer.added_tokens_decoder
    marked = [
        (int(i), label != IGNORE, int(i) in added) for i, label in zip(tokens.input_ids, tokens.labels, strict=True)
    ]
    return [
        Span(tokenizer.decode([i for i, _, _ in run], clean_up_tokenization_spaces=False), trained, special)
        for (trained, special), run in ((key, list(group)) for key, group in groupby(marked, key=lambda t: t[1:]))
    ]


def as_text(tokens: Tokens, tokenizer: "PreTrainedTokenizerFast") -> "Text":
    """For the terminal: green bears loss, bold is a single id."""
    from rich.text import Text

    text = Text()
    for span in spans(tokens, tokenizer):
        style = ("green" if span.trained else "dim") + (" bold" if span.special else "")
        text.append(span.text, style)
    return text


def as_html(tokens: Tokens, tokenizer: "PreTrainedTokenizerFast", title: str) -> str:
    """One self-contained page."""
    body = ""
    for span in spans(tokens, tokenizer):
        piece = html.escape(span.text)
        piece = f"<b>{piece}</b>" if span.special else piece
        body += f"<mark>{piece}</mark>" if span.trained else piece
    return PAGE.format(title=html.escape(title), n_tokens=len(tokens.input_ids), n_loss=tokens.n_loss, body=body)
