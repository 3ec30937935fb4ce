"""The verb `hermes3 report`."""

# ruff: noqa: B006 (Typer copies defaults)
from pathlib import Path
from typing import Annotated, Literal

import typer

from hermes3.evaluate.cli import name_and_folder
from hermes3.files import UserError


def report(
    out: Annotated[Path, typer.Option(help="folder to write: index.html, report.json, summary.txt")],
    mix: Annotated[list[Path], typer.Option(help="mix folder")] = [],
    run: Annotated[list[str], typer.Option(help="NAME=FOLDER of a training run")] = [],
    scores: Annotated[
        list[str], typer.Option(help="STAGE=FOLDER of lm-eval results, first to last; again: a seed")
    ] = [],
    commands: Annotated[
        Path | None, typer.Option(exists=True, help="folder of stages' stamps, each its command")
    ] = None,
    size: Annotated[Literal["8b", "70b", "405b"] | None, typer.Option(help="the paper's, if no recipe says it")] = None,
) -> None:
    """Write one page that says whether it reproduced. Scores with intervals, against the paper and stage by stage.

    Example: hermes3 report --out outputs/tiny/two_stages --scores base=outputs/tiny/eval/base
    --scores SFT+DPO=outputs/tiny/eval/dpo
    """
    from hermes3.report.build import write_report

    stamps = [path for path in sorted(commands.glob("[0-9]*")) if path.suffix != ".new"] if commands else []
    runs = [name_and_folder(pair, option="--run") for pair in run]
    if len(dict(runs)) < len(runs):
        raise UserError("--run: a name is given twice; give each run one of its own")
    stages: dict[str, list[Path]] = {}
    for name, folder in (name_and_folder(pair, option="--scores") for pair in scores):
        stages.setdefault(name, []).append(folder)
    write_report(out, mix, dict(runs), stages, [path.read_text(encoding="utf-8").strip() for path in stamps], size)
    print((out / "summary.txt").read_text(encoding="utf-8"))
