"""The `hermes3` command: one verb per stage. Verbs import what they need when they run, so that `--help` is quick."""

# ruff: noqa: B006 (Typer copies defaults)
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from hermes3 import __version__
from hermes3.chat import talk, tokenizer
from hermes3.evaluate import cli as evaluate_cli
from hermes3.files import ROOT, UserError, commit, write_text
from hermes3.mix import cli as mix_cli
from hermes3.quantize import quantize
from hermes3.slurm import cli as slurm_cli
from hermes3.train.checkpoints import consolidate, resize

CHECKED = (
    "Checked: Axolotl's and DeepSpeed's schemas for the declared hardware; unknown, deprecated and unread keys;\n"
    "files, prepared data and checkpoints; the paper's values and batch where a recipe says `reproduces`."
)
# Typer 0.25 lists arguments by the help that it sets; click 8.5 then sets None, and would print a list of its own
typer.core.TyperArgument.help = property(lambda self: self.text, lambda self, text: vars(self).setdefault("text", text))
click.Command.format_arguments = lambda *_: None
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes 0.3 s to import and to lay out a help
    context_settings={"max_content_width": 120},
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make the Hermes tokenizer.")
tokenizer_app.command("build")(tokenizer.build)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(mix_cli.app, name="mix")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="print it and end")] = False) -> None:
    """Reproduce the Hermes 3 models, or train a Llama 3.1 on your own data: from a data mix to a report.

    A recipe in recipes/ is one Axolotl file. Use the verbs in this order: `tokenizer build`, `mix build`, `check`,
    `plan`; `launch` on Slurm, or `accelerate launch -m axolotl.cli.train RECIPE`; `eval`, `select`, `report`. On a
    laptop, `make demo` runs them all on a small model.
    """
    if version:
        print(f"hermes3 {__version__}, commit {commit(ROOT, 12) or 'unknown'}")
        raise typer.Exit


def init(
    name: Annotated[str, typer.Argument(help="name of the mix and the recipe, and of the folder to write")],
    base: Annotated[str, typer.Option(help="Llama 3.1 base model: folder or Hub id")],
    data: Annotated[Path, typer.Option(help="file of rows: jsonl, json or parquet")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, eight per node")] = 8,
    gpu: Annotated[str, typer.Option(help="h100-80gb, h200, a100-80gb, ...; cpu for a small base")] = "h100-80gb",
) -> None:
    """Write a mix spec and a recipe for your own data. Both pass `check`; edit them as you like.

    Example: hermes3 init mine --base meta-llama/Llama-3.1-8B --gpus 8 --data tickets.jsonl
    """
    from hermes3.plan.init import init

    spec, recipe, own = init(name, base, data, gpus, gpu)
    steps = [f"hermes3 tokenizer build {base} {own}"] * (str(own) != base)
    steps += [f"hermes3 mix build {spec} --out mixes/{name}", f"hermes3 check {recipe}", f"hermes3 plan {recipe}"]
    steps += [f"accelerate launch -m axolotl.cli.train {recipe}"]
    print(f"{spec}\n{recipe}\n\nRead both, then run:", *steps, sep="\n  ")


def render(
    file: Annotated[Path, typer.Argument(help="file of rows: jsonl, json or parquet")],
    tokenizer: Annotated[Path, typer.Option(help="folder with a Hermes tokenizer")],
    row: Annotated[int, typer.Option(min=1, help="which row, from 1")] = 1,
    adapter: Annotated[str, typer.Option(help="the shape of the rows, as in a mix spec")] = "messages",
) -> None:
    """Print a row as the model sees it. Green tokens bear loss; bold text is a single token.

    Example: hermes3 render outputs/tiny/data/train/tool_calls.jsonl --row 3 --tokenizer outputs/tiny/base
    """
    from rich.console import Console
    from transformers import AutoTokenizer

    from hermes3.chat.render import Renderer, as_text
    from hermes3.mix.adapt import read_example

    one = read_example(file, row, adapter)
    tokens = Renderer(tokenizer).render([(one["messages"], one["tools"])])[0]
    Console(soft_wrap=True).print(as_text(tokens, AutoTokenizer.from_pretrained(tokenizer)))


def card(
    model: Annotated[Path, typer.Argument(help="folder of a whole model")],
    report: Annotated[Path, typer.Option(help="report.json of `hermes3 report`")],
    stage: Annotated[str, typer.Option(help="which of the report's stages MODEL is")],
    recipe: Annotated[Path, typer.Option(help="the recipe that made it")],
    name: Annotated[str, typer.Option(help="its name on the Hub, OWNER/NAME")],
) -> None:
    """Write MODEL's Hugging Face card. Its data, its scores with intervals, its prompts.

    Example: hermes3 card outputs/tiny/dpo/merged --report outputs/tiny/report/report.json --stage SFT+DPO
    --recipe recipes/tiny_dpo.yml --name YOU/tiny
    """
    from hermes3.report.model_card import write_card

    write_card(model, report, stage, recipe, name)
    print(model / "README.md")


def check(
    recipes: Annotated[list[Path] | None, typer.Argument(help="recipes; all of recipes/ by default")] = None,
    against: Annotated[str | None, typer.Option(help="compare them with the paper's, e.g. 8b_sft")] = None,
    reads: Annotated[bool, typer.Option("--reads", help="which line of Axolotl reads each key")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Find what is wrong with recipes before a GPU is booked. Exit code 1 if there is an error.

    Example: hermes3 check recipes/8b_sft.yml
    """
    from hermes3.recipe import check as checks

    reports = checks.check_all(recipes or checks.default_recipes(), against)
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


def plan(
    recipe: Annotated[Path, typer.Argument(help="a recipe, recipes/*.yml")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs, eight per node; default: the recipe's")] = None,
    gpu: Annotated[str | None, typer.Option(help="h100-80gb, h200, a100-80gb, ...; default: the recipe's")] = None,
    mix: Annotated[Path | None, typer.Option(help="a built mix; default: the recipe's, if it is built")] = None,
    mfu: Annotated[float | None, typer.Option(min=0.01, max=1, help="share of the peak; the nearest measured")] = None,
    host_memory: Annotated[float | None, typer.Option(min=0.001, help="GB of host memory per node")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="USD per GPU-hour")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="GB/s that a node writes to storage")] = None,
    network: Annotated[float | None, typer.Option(min=0.001, help="Gb/s per node, all of its adapters")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Print what RECIPE takes: memory, nodes, hours, storage, cost. Needs no GPU.

    Example: hermes3 plan recipes/8b_sft.yml --gpus 8
    """
    from hermes3.plan import plan as plans

    bytes_per_second, host_bytes = (value * 1e9 if value else None for value in (bandwidth, host_memory))
    planned = plans.plan(recipe, gpus, gpu, mix, mfu, price, bytes_per_second, host_bytes, network=network)
    if as_json:
        print(json.dumps(planned.as_json()))
    else:
        plans.show(planned)


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
    runs = evaluate_cli.folders_by_name(run, option="--run")
    stages = evaluate_cli.folders_by_name(scores, option="--scores")
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


VERBS = [init, render, check, plan, slurm_cli.launch, evaluate_cli.evaluate, evaluate_cli.mt_bench]
VERBS += [evaluate_cli.select, report, runs, talk.chat, card, consolidate, resize, quantize]
for verb in VERBS:
    app.command("eval" if verb is evaluate_cli.evaluate else None)(verb)


def main() -> None:
    """Run a verb. Exit codes: 1 for a user's error, in one line on stderr; 2 for a wrong command line; 70 for a bug."""
    try:
        app()
    except UserError as error:
        sys.exit(f"hermes3: {error}")
    except OSError as error:  # what the machine refuses: a path, a full disk, the network
        where, remedy = "", "check the network, and your disk's room"
        if error.filename:
            where, remedy = f"{error.filename}: ", "is it a file, may you use it, has its disk room?"
        sys.exit(f"hermes3: {where}{' '.join((error.strerror or str(error)).split())}; {remedy}")
    except Exception:
        traceback.print_exc()
        print("hermes3: this is a bug in hermes3; please open an issue with the lines above", file=sys.stderr)
        sys.exit(70)


if __name__ == "__main__":
    main()
