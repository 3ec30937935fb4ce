"""Reports of `hermes3 check` for people: a line a recipe, the conformance table, and who reads each key."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from hermes3.recipe import check
from hermes3.recipe.check import Report
from hermes3.recipe.conform import DIFFERENT, SAME, UNSTATED

COLOURS = {SAME: "green", DIFFERENT: "yellow", UNSTATED: "dim"}
NARROW = 120  # columns; below, a column of reasons is eight wide
CHECKED = (
    "Checked: Axolotl's schema and validators for the declared hardware; unknown, deprecated and unread keys; the\n"
    "paper's values and global batch; DeepSpeed's schema; files, prepared data, checkpoints and plugins that it needs."
)


def line(report: Report) -> str:
    """`ok   recipes/8b_sft.yml: 16 keys as in the paper, ...`."""
    counts = Counter(row.status for row in report.rows)
    batch = next((f"; {row.recipe}" for row in report.rows if row.key == "global batch"), "")
    paper = f"{counts[SAME]} as in the paper, {counts[DIFFERENT]} different, {counts[UNSTATED]} unstated{batch}"
    seen = sum(reader.seen for reader in report.readers)
    n_errors = len(report.errors)
    state = f"BAD  {report.path}: {n_errors} error{'s' * (n_errors != 1)}" if n_errors else f"ok   {report.path}"
    parts = [paper if report.rows else "claims nothing of the paper" if report.compared else "not looked at further"]
    if report.readers:
        parts.append(f"{seen} keys read in the trial, {sum(bool(r.line) for r in report.readers) - seen} in the source")
    return f"{state}: {'; '.join(parts)}"


def notes(reports: list[Report]) -> list[str]:
    """Each note once: `note recipes/8b_sft.yml (and 9 more): base_model: ...`."""
    found = check.notes(reports).items()
    return [f"note {paths[0]}{f' (and {len(paths) - 1} more)' * (len(paths) > 1)}: {text}" for text, paths in found]


def conformance(report: Report, width: int) -> RenderableType:
    """The table; on a screen of fewer than 120 columns each reason stands on a line of its own, under its key."""
    cells = [
        (row.key, _text(row.paper), _text(row.recipe), f"[{COLOURS[row.status]}]{row.status}[/]", _plain(row.reason))
        for row in report.rows
    ]
    title = f"{report.path} and the paper"
    if width < NARROW:
        longest, parts = max(len(row.key) for row in report.rows), []
        for *values, reason in [("[bold]key[/]", "[bold]paper[/]", "[bold]recipe[/]", "", ""), *cells]:
            line = Table.grid(padding=(0, 1), expand=True)
            line.add_column(width=longest)
            line.add_column(ratio=1, overflow="fold")
            line.add_column(ratio=1, overflow="fold")
            line.add_column(width=len(DIFFERENT))
            line.add_row(*values)
            parts += [line, Padding(reason, (0, 0, 0, 2), style="dim")] if reason else [line]
        return Group(f"[italic]{title}[/]", *parts)
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("key", "paper", "recipe", "", "reason"):
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    for values in cells:
        table.add_row(*values)
    return table


def reads(report: Report) -> Table:
    table = Table(title=f"{report.path}: the first line that reads each key", title_justify="left", header_style="bold")
    for name in ("key", "read by", "known from"):
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    for reader in report.readers:
        where = "trial" if reader.seen else "source" if reader.line else ""
        table.add_row(reader.key, reader.line or "[red]nothing[/]", where)
    return table


def _text(value: object) -> str:
    return "-" if value is None else _plain(str(value).lower() if isinstance(value, bool) else str(value))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
