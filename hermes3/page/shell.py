"""Pages from templates: one look for the report and for a mix's card, one file each, nothing fetched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("page.css")


def render(template: Path, facts: dict[str, Any], charts: dict[str, str], filters: dict[str, Callable]) -> str:
    """`template` filled with `facts`, with `charts` (SVG by name), and with the style sheet as `style`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    drawn = {name: Markup(svg) for name, svg in charts.items()}
    style = Markup(STYLE.read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(facts | {"charts": drawn, "style": style})
