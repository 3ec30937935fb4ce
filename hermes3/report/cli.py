"""The verb `hermes3 report`."""

from pathlib import Path
from typing import Annotated

import typer

from hermes3.evaluate.cli import name_and_folder
from hermes3.files import UserError


def report(
    out: Annotated[Path, typer.Option(help="folder to write: index.html, report.json, summary.txt")],
    mix: Annotated[list[Path], typer.Option(help="mix folder")] = [],  # noqa: B006 (Typer copies it)
    run: Annotated[list[str], typer.Option(help="NAME=FOLDER of a training run")] = [],  # noqa: B006
    scores: Annotated[
        list[str], typer.Option(help="NAME=FOLDER of lm-eval results, earlier stage first; a NAME again: another seed")
    ] = [],  # noqa: B006
    commands: Annotated[Path | None, typer.Option(help="folder of stage stamps, each holding its command")] = None,
    size: Annotated[
        str | None, typer.Option(help="8b, 70b or 405b: the paper's model to compare with; the recipes' by default")
    ] = None,
) -> None:
    """Write one page that says whether it reproduced. Scores with intervals, against the paper and stage by stage.

    Example: hermes3 report --out report --scores base=outputs/tiny/eval/base --scores SFT+DPO=outputs/tiny/eval/dpo
    """
    from hermes3.report.build import write_report

    stamps = sorted(commands.glob("[0-9]*")) if commands else []
    lines = [stamp.read_text(encoding="utf-8").strip() for stamp in stamps if stamp.suffix != ".new"]
    runs: dict[str, Path] = {}
    for name, folder in (name_and_folder(pair, option="--run") for pair in run):
        if name in runs:
            raise UserError(f"--run {name} is given twice; give each run once")
        runs[name] = folder
    stages: dict[str, list[Path]] = {}
    for name, folder in (name_and_folder(pair, option="--scores") for pair in scores):
        stages.setdefault(name, []).append(folder)
    write_report(out, mix, runs, stages, lines, size)
    print((out / "summary.txt").read_text(encoding="utf-8"))
