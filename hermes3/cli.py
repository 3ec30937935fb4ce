"""The `hermes3` command: one verb a stage. Verbs import what they need when they run, so that `--help` is quick."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hermes3.evaluate import cli as evaluate_cli
from hermes3.mix import cli as mix_cli
from hermes3.plan import cli as plan_cli
from hermes3.recipe import cli as recipe_cli
from hermes3.report import cli as report_cli
from hermes3.slurm import cli as slurm_cli

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)
chat_app = typer.Typer(no_args_is_help=True, help="Look at conversations as a model sees them.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make the Hermes tokenizer.")
mix_cli.app.command("pack")(recipe_cli.pack)
app.add_typer(mix_cli.app, name="mix")
app.command("check")(recipe_cli.check)
app.command("plan")(plan_cli.plan)
app.command("launch")(slurm_cli.launch)
app.command("eval")(evaluate_cli.evaluate)
app.command("mt-bench")(evaluate_cli.mt_bench)
app.command("select")(evaluate_cli.select)
app.command("report")(report_cli.report)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(chat_app, name="chat")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@tokenizer_app.command("build")
def tokenizer_build(
    base: Annotated[str, typer.Argument(help="Llama 3.1 base model: folder or Hub id")],
    out: Annotated[Path, typer.Argument(help="folder to write: the same model with the Hermes tokenizer")],
    as_json: Json = False,
) -> None:
    """Give BASE the Hermes tokenizer: reserved tokens are renamed, the vocabulary keeps its size."""
    from hermes3.chat import tokenizer

    ids = tokenizer.build(base, out)
    if as_json:
        print(json.dumps(ids))
    else:
        print(f"{out}: {len(ids)} reserved tokens renamed, <|im_end|> is {ids['<|im_end|>']}")


@chat_app.command("show")
def chat_show(
    file: Annotated[Path, typer.Argument(help="jsonl or json file of rows")],
    row: Annotated[int, typer.Option(help="which row, from 1")] = 1,
    adapter: Annotated[str, typer.Option(help="the rows' shape, as in a mix spec")] = "messages",
    tokenizer: Annotated[Path, typer.Option(help="folder with a Hermes tokenizer")] = Path("outputs/tiny/base"),
    html: Annotated[Path | None, typer.Option(help="write a page there instead")] = None,
) -> None:
    """Print a conversation with its special tokens; green bears loss, bold is a single id."""
    from transformers import AutoTokenizer

    from hermes3.chat import show
    from hermes3.chat.render import Renderer
    from hermes3.files import write_text
    from hermes3.mix.adapt import read_example

    one = read_example(file, row, adapter)
    tokens = Renderer(tokenizer).render([(one["messages"], one["tools"])])[0]
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if html:
        write_text(html, show.as_html(tokens, loaded, f"{file.name}, row {row}"))
        print(html)
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(show.as_text(tokens, loaded))


@app.command()
def consolidate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint-N of a run under ZeRO-3 or FSDP2")],
    out: Annotated[Path, typer.Argument(help="folder to write: the whole model in bf16")],
) -> None:
    """Join the parts that the ranks of a run saved into one model, to evaluate, merge or serve."""
    from hermes3.train import checkpoints

    print(f"{out}: {checkpoints.consolidate(checkpoint, out):,} bytes of weights")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="folder of a whole model")],
    out: Annotated[Path, typer.Argument(help="folder to write: the model with FP8 weights, for vLLM")],
) -> None:
    """Round the weights of MODEL to FP8, as the paper evaluated its 405B; needs requirements-quantize.txt."""
    from hermes3.quantize import quantize

    print(f"{out}: {quantize(model, out):,} bytes of weights")


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="folder of a whole model")],
    report: Annotated[Path, typer.Option(help="report.json of `hermes3 report`")],
    stage: Annotated[str, typer.Option(help="which of the report's stages MODEL is")],
    recipe: Annotated[Path, typer.Option(help="the recipe that made it")],
    name: Annotated[str, typer.Option(help="its name on the Hub, OWNER/NAME")],
    push: Annotated[bool, typer.Option("--push", help="upload the folder, to a private repository")] = False,
) -> None:
    """Write MODEL's Hugging Face card: what it is made of, its scores with intervals, its prompts."""
    from hermes3.report import model_card

    model_card.write_card(model, report, stage, recipe, name)
    print(model / "README.md")
    if push:
        print(model_card.push(model, name))


def main() -> None:
    """Run a verb; a user's error is one line on stderr and exit code 1."""
    try:
        app()
    except ValueError as error:
        sys.exit(f"hermes3: {error}")


if __name__ == "__main__":
    main()
