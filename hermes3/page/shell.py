"""Pages of one look, one file each, nothing fetched: from a template, or from a card's Markdown."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURE = re.compile(r"<p>figure:(\w+)\n(.*?)</p>", re.DOTALL)


def render(template: Path, facts: dict[str, Any], charts: dict[str, str], filters: dict[str, Callable]) -> str:
    """`template` filled with `facts`, with `charts` (SVG by name), and with the style sheet as `style`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=template.name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    drawn = {name: Markup(svg) for name, svg in charts.items()}
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(facts | {"charts": drawn, "style": style})


def as_page(markdown: str, title: str, charts: dict[str, str]) -> str:
    """One HTML file of `markdown`, tables included; markup within the text is shown, not obeyed.

    A paragraph `figure:NAME`, line break, caption becomes the chart NAME of `charts` (SVG text) with its caption.
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace('style="text-align:right"', 'class="n"').replace("<table>", '<div class="scroll">\n<table>')

    def figure(match: re.Match[str]) -> str:
        name, caption = match.groups()
        drawn = f'<div class="scroll" role="img" aria-label="{caption}">{charts[name]}</div>'
        return f"<figure>\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>"

    body = FIGURE.sub(figure, body.replace("</table>", "</table>\n</div>"))
    return render(HERE / "shell.html.jinja", {"title": title, "body": Markup(body)}, {}, {})


def table_row(cells: list[object]) -> str:
    """A row of a Markdown table, its cells shown as they are written: no markup, no second line."""
    # a _ between letters is no emphasis, and source names are full of them
    plain = (re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(cell).split())) for cell in cells)
    return "| " + " | ".join(plain) + " |"
