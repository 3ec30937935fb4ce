"""The `hermes3` command: one verb per stage. Verbs import what they need when they run, so that `--help` is quick."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import click
import typer

from hermes3 import __version__
from hermes3.chat import talk, tokenizer
from hermes3.evaluate import cli as evaluate_cli
from hermes3.files import UserError
from hermes3.git import commit
from hermes3.mix import cli as mix_cli
from hermes3.plan import cli as plan_cli
from hermes3.quantize import quantize
from hermes3.recipe import cli as recipe_cli
from hermes3.report import cli as report_cli
from hermes3.slurm import cli as slurm_cli
from hermes3.train.checkpoints import consolidate, resize

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
        print(f"hermes3 {__version__}, commit {commit(Path(__file__).parents[1], 12) or 'unknown'}")
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


VERBS = [init, render, recipe_cli.check, plan_cli.plan, slurm_cli.launch, evaluate_cli.evaluate, evaluate_cli.mt_bench]
VERBS += [evaluate_cli.select, report_cli.report, report_cli.runs, talk.chat, card, consolidate, resize, quantize]
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
