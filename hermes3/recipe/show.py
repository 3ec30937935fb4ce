"""Reports of `hermes3 check` for people: a line a recipe, the conformance table, and who reads each key."""

from collections import Counter

from rich.table import Table

from hermes3.recipe.check import Report
from hermes3.recipe.conform import DIFFERENT, SAME, UNSTATED

COLOURS = {SAME: "green", DIFFERENT: "yellow", UNSTATED: "dim"}
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


def conformance(report: Report) -> Table:
    table = Table(title=f"{report.path} and the paper", title_justify="left", header_style="bold")
    for name in ("key", "paper", "recipe", "", "reason"):
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    for row in report.rows:
        status = f"[{COLOURS[row.status]}]{row.status}[/]"
        table.add_row(row.key, _text(row.paper), _text(row.recipe), status, _plain(row.reason))
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
