"""The verbs `hermes3 check` and `hermes3 mix pack`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def check(
    recipes: Annotated[list[Path] | None, typer.Argument(help="recipes; all of recipes/ by default")] = None,
    table: Annotated[bool, typer.Option("--table", help="every recipe's values beside the paper's")] = False,
    reads: Annotated[bool, typer.Option("--reads", help="which line of which package reads each key")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Hold recipes to Axolotl, to the paper and to their own promises, on any machine; 1 if there is an error."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # needs no GPU, and a process that has opened one cannot be forked
    from rich.console import Console

    from hermes3.recipe import check, show

    chosen = recipes or check.default_recipes()
    with Console(stderr=True).status("") as status:
        reports = check.check_all(chosen, status.update)
    if as_json:
        print(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # a file has no width of its own
        console, detailed = Console(width=wide), table or reads  # then a recipe's notes stand with its table
        for report in reports:
            print(show.line(report))
            if report.rows and not reads and (table or len(reports) == 1):
                console.print(show.conformance(report, console.width))
            if report.readers and reads:
                console.print(show.reads(report))
            for text in show.notes([report]) if detailed else []:
                print(text)
        for text in [] if detailed else show.notes(reports):
            print(text)
        print(show.CHECKED)
    for report in reports:
        for finding in report.errors:
            print(f"BAD  {report.path}: {finding}", file=sys.stderr)
    if any(report.errors for report in reports):
        raise typer.Exit(1)


def pack(
    mix: Annotated[Path, typer.Argument(help="folder of a built mix")],
    recipe: Annotated[Path, typer.Option(help="recipe whose settings pack it")],
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Run Axolotl's own packer over the mix: efficiency, and exact steps per epoch."""
    from dataclasses import asdict

    from hermes3.mix.pack import as_text, preview
    from hermes3.recipe.validate import validate

    packing = preview(mix, recipe, validate(recipe))
    print(json.dumps(asdict(packing)) if as_json else as_text(packing))
