"""The verbs `hermes3 report` and `hermes3 runs`."""

# ruff: noqa: B006 (Typer copies defaults)
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hermes3.evaluate.cli import folders_by_name
from hermes3.files import ROOT, UserError, write_text


def report(
    out: Annotated[Path, typer.Option(help="folder to write: index.html, report.json, summary.txt")],
    mix: Annotated[list[Path], typer.Option(help="mix folder")] = [],
    run: Annotated[list[str], typer.Option(help="NAME=FOLDER of a training run")] = [],
    scores: Annotated[list[str], typer.Option(help="STAGE=FOLDER of lm-eval results, in order; again: a seed")] = [],
    commands: Annotated[Path | None, typer.Option(exists=True, help="folder of the stages' commands")] = None,
    size: Annotated[Literal["8b", "70b", "405b"] | None, typer.Option(help="the paper's, if no recipe says it")] = None,
) -> None:
    """Write one page that says whether it reproduced. Scores with intervals, against the paper and stage by stage.

    Example: hermes3 report --out outputs/tiny/two_stages --scores base=outputs/tiny/eval/base
    --scores SFT+DPO=outputs/tiny/eval/dpo
    """
    from hermes3.report.build import write_report

    stamps = [path for path in sorted(commands.glob("[0-9]*")) if path.suffix != ".new"] if commands else []
    texts = [path.read_text(encoding="utf-8").strip() for path in stamps]
    runs, stages = folders_by_name(run, option="--run"), folders_by_name(scores, option="--scores")
    if any(len(folders) > 1 for folders in runs.values()):
        raise UserError("--run: a name is given twice; give each run one of its own")
    write_report(out, mix, {name: folders[0] for name, folders in runs.items()}, stages, texts, size)
    print((out / "summary.txt").read_text(encoding="utf-8"))


def runs(
    add: Annotated[str | None, typer.Option(help="name of a record to write first, as runs/NAME.yml")] = None,
    report: Annotated[Path | None, typer.Option(help="report.json that --add reads")] = None,
    run: Annotated[str, typer.Option(help="training in that report")] = "SFT",
    stage: Annotated[str | None, typer.Option(help="whose scores; RUN by default")] = None,
    by: Annotated[str, typer.Option(help="who trained it")] = "",
    title: Annotated[str | None, typer.Option(help="the record's title; NAME by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the records as JSON")] = False,
) -> None:
    """Write RUNS.md, the table of all recorded runs. With --add, record one of your own first, as runs/NAME.yml.

    Example: hermes3 runs --json
    """
    from hermes3.report import ledger

    if add:
        if not (report and by):
            raise UserError("--add needs --report FILE and --by NAME: what was trained, and by whom")
        print(ledger.add(add, ledger.record(report, run, stage or run, by, title or add)))
    records = ledger.load()
    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in records.items()}, indent=1))
    else:
        write_text(ROOT / "RUNS.md", ledger.page(records))
        print(f"{ROOT / 'RUNS.md'}: {len(records)} runs")
