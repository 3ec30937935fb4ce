"""A conversation as a model sees it: special tokens visible, what bears loss marked."""

from itertools import groupby
from typing import TYPE_CHECKING

from hermes3.chat.render import IGNORE, Tokens

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerFast


def as_text(tokens: Tokens, tokenizer: "PreTrainedTokenizerFast") -> "Text":
    """Green bears loss, bold is a single id: a special token, or a tag such as <tool_call>.

    Runs of tokens that are alike are decoded together, so a character that is split over tokens is never torn apart.
    """
    from rich.text import Text

    added = tokenizer.added_tokens_decoder
    marked = zip(tokens.input_ids.tolist(), (tokens.labels != IGNORE).tolist(), strict=True)
    text = Text()
    for (trained, single), run in groupby(marked, key=lambda token: (token[1], token[0] in added)):
        style = ("green" if trained else "dim") + (" bold" if single else "")
        text.append(tokenizer.decode([i for i, _ in run], clean_up_tokenization_spaces=False), style)
    return text


def as_html(tokens: Tokens, tokenizer: "PreTrainedTokenizerFast", title: str) -> str:
    """One self-contained page of `as_text`, drawn by rich."""
    import io
    from html import escape

    from rich.console import Console

    console = Console(record=True, file=io.StringIO())
    console.print(f"{title}: {len(tokens.input_ids):,} tokens, {tokens.n_loss:,} of them bear loss\n", style="bold")
    console.print(as_text(tokens, tokenizer), soft_wrap=True)
    page = console.export_html(inline_styles=True).replace('<pre style="', '<pre style="white-space:pre-wrap;', 1)
    return page.replace("<head>", f"<head>\n<title>{escape(title)}</title>", 1)
