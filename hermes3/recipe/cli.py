"""The verb `hermes3 check`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

CHECKED = (
    "Checked: Axolotl's and DeepSpeed's schemas for the declared hardware; unknown, deprecated and unread keys;\n"
    "files, prepared data and checkpoints; the paper's values and batch where a recipe says `reproduces`."
)


def check(
    recipes: Annotated[list[Path] | None, typer.Argument(help="recipes; all of recipes/ by default")] = None,
    against: Annotated[str | None, typer.Option(help="compare them with the paper's, e.g. 8b_sft")] = None,
    reads: Annotated[bool, typer.Option("--reads", help="which line of Axolotl reads each key")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Find what is wrong with recipes before a GPU is booked. Exit code 1 if there is an error.

    Example: hermes3 check recipes/8b_sft.yml
    """
    from hermes3.recipe import check

    reports = check.check_all(recipes or check.default_recipes(), against)
    errors = [f"BAD  {report.path}: {finding}" for report in reports for finding in report.errors]
    if as_json:
        print(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        for report in reports:
            print(report.line())
            for key, line in report.readers.items() if reads else []:
                print(f"     {key:<40} {line or 'nothing'}")
        notes: dict[str, list[Path]] = {}  # each once, with the recipes of which it is true
        for report in reports:
            for finding in (one for one in report.findings if one not in report.errors):
                notes.setdefault(str(finding), []).append(report.path)
        for text, paths in notes.items():
            print(f"note {paths[0]}{f' (and {len(paths) - 1} more)' * (len(paths) > 1)}: {text}")
        print(CHECKED)
    print(*errors, sep="\n", end="\n" if errors else "", file=sys.stderr)
    if errors:
        raise typer.Exit(1)
