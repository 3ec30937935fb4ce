"""The `hermes3` command: one verb per stage. Verbs import what they need when they run, so that `--help` is quick."""

import errno
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from hermes3 import __version__
from hermes3.evaluate import cli as evaluate_cli
from hermes3.files import UserError
from hermes3.mix import cli as mix_cli
from hermes3.plan import cli as plan_cli
from hermes3.recipe import cli as recipe_cli
from hermes3.report import cli as report_cli
from hermes3.slurm import cli as slurm_cli

PURPOSE = """Reproduce the Hermes 3 models, or train a Llama 3.1 on your own data: from a data mix to a report.

A recipe in recipes/ is one Axolotl file. Use the verbs in this order: `tokenizer build`, `mix build`, `check`, `plan`;
`launch` on Slurm, or `accelerate launch -m axolotl.cli.train RECIPE`; `eval`, `select`, `report`. On a laptop, `make
demo` runs them all on a small model.
"""
REMEDIES = {  # of what the machine refuses
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file",
    errno.ENOSPC: "free some room, or name another disk",
    errno.EDQUOT: "free some room, or name another disk",
}


class Argument(typer.core.TyperArgument):
    """Typer 0.25 keeps an argument's help where click 8.5 clears it, and click would print a second list of them."""

    def __init__(self, *, help: str | None = None, **settings: Any):
        super().__init__(**settings)
        self.text = help or ""

    def get_help_record(self, ctx: typer.Context) -> tuple[str, str]:
        name, required = super().get_help_record(ctx)
        return name, f"{self.text}  {required}".strip()


typer.main.TyperArgument = Argument
app = typer.Typer(
    help=PURPOSE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes 0.3 s to import and to lay out a help
    context_settings={"max_content_width": 120},
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make the Hermes tokenizer.")
mix_cli.app.command("pack")(recipe_cli.pack)

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def _version(wanted: bool) -> None:
    if wanted:
        from hermes3.git import commit

        print(f"hermes3 {__version__}, commit {commit(Path(__file__).parents[1], 12) or 'unknown'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and end")
    ] = False,
) -> None: ...


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="name of the mix and the recipe, and of the folder to write")],
    base: Annotated[str, typer.Option(help="Llama 3.1 base model: folder or Hub id")],
    data: Annotated[Path, typer.Option(help="file of rows: jsonl, json or parquet")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, eight per node")] = 8,
    gpu: Annotated[str, typer.Option(help="h100-80gb, h200, a100-80gb, ...")] = "h100-80gb",
) -> None:
    """Write a mix spec and a recipe for your own data. Both pass `check`; edit them as you like.

    Example: hermes3 init mine --base meta-llama/Llama-3.1-8B --gpus 8 --data tickets.jsonl
    """
    from hermes3.plan.init import init

    spec, recipe, own = init(name, base, data, gpus, gpu)
    print(f"{spec}\n{recipe}\n\nRead both, then run:")
    if str(own) != base:
        print(f"  hermes3 tokenizer build {base} {own}")
    print(f"  hermes3 mix build {spec} --out mixes/{name}\n  hermes3 check {recipe}\n  hermes3 plan {recipe}")
    print(f"  accelerate launch -m axolotl.cli.train {recipe}")


@tokenizer_app.command("build")
def tokenizer_build(
    base: Annotated[str, typer.Argument(help="Llama 3.1 base model: folder or Hub id")],
    out: Annotated[Path, typer.Argument(help="folder to write: the same model with the Hermes tokenizer")],
    as_json: Json = False,
) -> None:
    """Give BASE the Hermes tokenizer. Reserved tokens get new names; the vocabulary keeps its size.

    Example: hermes3 tokenizer build meta-llama/Llama-3.1-8B outputs/8b/base
    """
    from hermes3.chat import tokenizer

    ids = tokenizer.build(base, out)
    if as_json:
        print(json.dumps(ids))
    else:
        print(f"{out}: {len(ids)} reserved tokens renamed, <|im_end|> is {ids['<|im_end|>']}")


app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(mix_cli.app, name="mix")


@app.command()
def render(
    file: Annotated[Path, typer.Argument(help="file of rows: jsonl, json or parquet")],
    tokenizer: Annotated[Path, typer.Option(help="folder with a Hermes tokenizer")],
    row: Annotated[int, typer.Option(min=1, help="which row, from 1")] = 1,
    adapter: Annotated[str, typer.Option(help="the shape of the rows, as in a mix spec")] = "messages",
    html: Annotated[Path | None, typer.Option(help="write a page to this file instead")] = None,
) -> None:
    """Print a row as the model sees it. Green tokens bear loss; bold text is a single token.

    Example: hermes3 render outputs/tiny/data/train/tool_calls.jsonl --row 3 --tokenizer outputs/tiny/base
    """
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


app.command("check")(recipe_cli.check)
app.command("plan")(plan_cli.plan)
app.command("launch")(slurm_cli.launch)
app.command("eval")(evaluate_cli.evaluate)
app.command("mt-bench")(evaluate_cli.mt_bench)
app.command("select")(evaluate_cli.select)
app.command("report")(report_cli.report)
app.command("runs")(report_cli.runs)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="folder of a whole model, or a Hub id")],
    compare: Annotated[
        list[str], typer.Option(help="another model that answers the same prompts; may be repeated")
    ] = [],  # noqa: B006 (Typer copies it)
    system: Annotated[str | None, typer.Option(help="system prompt; the template's by default")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file: a list of tool schemas to offer")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; the GPUs by default, if there are any")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer at most")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.8,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
) -> None:
    """Talk to MODEL in the terminal. Ctrl-D ends; Ctrl-C stops an answer; a tool's answer is typed by you.

    Example: hermes3 chat outputs/tiny/sft/best --compare outputs/tiny/base
    """
    from hermes3.chat import talk

    sampled = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    talk.talk([model, *compare], system, tools, device, seed, {"max_new_tokens": max_tokens, **sampled})


@app.command()
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


@app.command()
def consolidate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint-N of a run under ZeRO-3 or FSDP2")],
    out: Annotated[Path, typer.Argument(help="folder to write: the whole model in bf16")],
) -> None:
    """Join the parts that the ranks of a run saved into one model.

    Example: hermes3 consolidate outputs/405b/sft/checkpoint-1550 outputs/405b/sft/whole
    """
    from hermes3.train import checkpoints

    print(f"{out}: {checkpoints.consolidate(checkpoint, out):,} bytes of weights")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="folder of a whole model")],
    out: Annotated[Path, typer.Argument(help="folder to write: the model with FP8 weights, for vLLM")],
) -> None:
    """Round MODEL's weights to FP8, as the paper did for its 405B. Needs requirements-quantize.txt.

    Example: hermes3 quantize outputs/8b/dpo/merged outputs/8b/fp8
    """
    from hermes3.quantize import quantize

    print(f"{out}: {quantize(model, out):,} bytes of weights")


def main() -> None:
    """Run a verb. Exit codes: 1 for a user's error, in one line on stderr; 2 for a wrong command line; 70 for a bug."""
    try:
        app()
    except UserError as error:
        sys.exit(f"hermes3: {error}")
    except OSError as error:  # what the machine refuses: a path, a permission, a full disk, the network
        if str(error.filename).startswith(str(Path(__file__).parent)):
            _bug()
        reason = " ".join((error.strerror or str(error)).split())
        remedy = REMEDIES.get(
            error.errno, "check the path and its permissions" if error.filename else "check the network"
        )
        sys.exit(f"hermes3: {f'{error.filename}: ' if error.filename else ''}{reason}; {remedy}")
    except Exception:
        _bug()


def _bug() -> NoReturn:
    traceback.print_exc()
    print("hermes3: this is a bug in hermes3; please open an issue with the lines above", file=sys.stderr)
    sys.exit(70)


if __name__ == "__main__":
    main()
