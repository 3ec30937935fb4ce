"""A page in the shell's style from a Markdown text, so that a card has one source."""

import html
import re

from hermes3.page.shell import STYLE

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}
td:not(.n) {{ overflow-wrap: break-word; }}
td:last-child:not(.n) {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""
FIGURE = re.compile(r"<p>figure:(\w+)\n(.*?)</p>", re.DOTALL)


def as_page(markdown: str, title: str, charts: dict[str, str]) -> str:
    """One HTML file of `markdown`, tables included; markup within the text is shown, not obeyed.

    A paragraph `figure:NAME`, line break, caption becomes the chart NAME of `charts` (SVG text) with its caption.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace('style="text-align:right"', 'class="n"')
    body = body.replace("<table>", '<div class="scroll">\n<table>').replace("</table>", "</table>\n</div>")

    def figure(match: re.Match[str]) -> str:
        name, caption = match.groups()
        drawn = f'<div class="scroll" role="img" aria-label="{caption}">{charts[name]}</div>'
        return f"<figure>\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>"

    body = FIGURE.sub(figure, body)
    return PAGE.format(title=html.escape(title), style=STYLE.read_text(encoding="utf-8"), body=body)


def table_row(cells: list[object]) -> str:
    """A row of a Markdown table, its cells shown as they are written: no markup, no second line."""
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(cell: object) -> str:
    # a _ between letters is no emphasis, and source names are full of them
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(cell).split()))
