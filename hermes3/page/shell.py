"""Pages of one look, one file each, nothing fetched: from a template, or from a card's Markdown."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCROLL = '<div class="scroll" tabindex="0" role="group" aria-label="{}">'  # reached without a mouse
FIGURE = re.compile(r"<p>figure:(\w+)\n(.*?)</p>", re.DOTALL)


def environment(template: Path, filters: dict[str, Callable]) -> Any:
    """Jinja's environment for a template, which may extend those of this folder; HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True, "undefined": StrictUndefined}
    blocks["autoescape"] = template.name.endswith(".html.jinja")
    one = Environment(loader=FileSystemLoader([template.parent, HERE]), **blocks)
    one.filters |= filters
    return one


def render(template: Path, facts: dict[str, Any], charts: dict[str, str], filters: dict[str, Callable]) -> str:
    """`template` filled with `facts`, with `charts` (SVG by name), and with the page's `style` and `script`."""
    from markupsafe import Markup

    files = {"style": "page.css", "script": "page.js"}
    shared = {name: Markup((HERE / file).read_text(encoding="utf-8")) for name, file in files.items()}
    shared["charts"] = {name: Markup(svg) for name, svg in charts.items()}
    return environment(template, filters).get_template(template.name).render(facts | shared)


def as_page(markdown: str, title: str, charts: dict[str, str]) -> str:
    """One HTML file of `markdown`, whose own markup is shown, not obeyed.
    A paragraph `figure:NAME`, line break, caption becomes the chart NAME of `charts` (SVG text)."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    def figure(match: re.Match[str]) -> str:
        name, caption = match.groups()
        drawn = f'{SCROLL.format(caption)}<div role="img" aria-label="{caption}">{charts[name]}</div></div>'
        return f"<figure>\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>"

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace('style="text-align:right"', 'class="n"')
    body = body.replace("<table>", f"{SCROLL.format('table')}\n<table>").replace("</table>", "</table>\n</div>")
    return render(HERE / "shell.html.jinja", {"title": title, "body": Markup(FIGURE.sub(figure, body))}, {}, {})


def table_row(cells: list[object]) -> str:
    """A row of a Markdown table, its cells shown as they are written: no markup, no second line."""
    # a _ between letters is no emphasis, and source names are full of them
    plain = (re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(cell).split())) for cell in cells)
    return "| " + " | ".join(plain) + " |"
