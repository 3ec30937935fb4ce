"""Every command of the README: run here, run by the chain, or held to the parser of the program that it calls."""

import re
import shlex

import click
import pytest
import typer
from conftest import ROOT
from typer.testing import CliRunner

from hermes3.cli import app
from hermes3.plan.cost import batches
from hermes3.plan.plan import plan
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.paper import paper_of
from hermes3.recipe.read import read

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]


def parse_hermes3(words: list[str]) -> None:
    """Let the command line's own parser read a command, without running it; unknown verbs and options raise."""
    command, context, words = typer.main.get_command(app), None, list(words)
    while isinstance(command, click.Group):
        context = command.make_context(command.name, words, parent=context, resilient_parsing=False)
        _, command, words = command.resolve_command(context, context._protected_args + context.args)
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_what_its_program_takes(command, monkeypatch):
    words = shlex.split(command)
    program = words[0].split("/")[-1]
    if program == "hermes3":
        parse_hermes3(words[1:])
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.module and arguments.training_script == "axolotl.cli.train"
        assert (ROOT / arguments.training_script_args[0]).is_file()
    elif program == "axolotl":
        from axolotl.cli.main import cli

        assert words[1] in cli.commands and (ROOT / words[2]).is_file()
    elif program in ("bash", "uv", "srun"):
        assert all((ROOT / word).is_file() for word in words if word.endswith((".sh", ".txt")))
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program in ("export", "source", "hf", "ln", "vllm"), f"no check for {command}"


def test_the_tables_are_what_the_recipes_the_paper_and_plan_say():
    row = r"^\| `(recipes/\d\w+\.yml)` \| (\d+) H100 \| (\d+) .*? \| (\S+) \| (.*?) \|$"
    rows = re.findall(row, README, re.MULTILINE)
    assert len(rows) == 6
    for path, gpus, batch, rate, hours in rows:
        recipe, paper = read(ROOT / path), paper_of(ROOT / path)
        assert hardware_of(ROOT / path, recipe).gpus == int(gpus)
        assert batches(ROOT / path, recipe, int(gpus))[0] == int(batch)
        assert recipe["learning_rate"] == float(rate)
        if paper.gpu_hours:
            assert hours == f"{paper.gpu_hours / paper.gpus:.1f} ({paper.gpu_hours:,})"
    node, gpu = (plan(ROOT / f"recipes/{name}.yml") for name in ("8b_sft_1node", "8b_sft_lora_1gpu"))
    assert f"8B: {node.cost.hours:.1f} hours on 8 H100; with LoRA two days on one" in README
    assert round(gpu.cost.hours / 24) == 2
    assert f"${5 * round(node.cost.usd / 5)}; ${5 * round(gpu.cost.usd / 5)}" in README
    assert f"{round(node.checkpoints.storage / 1e9, -1):.0f} GB of disk" in README
    assert "1,033 per epoch, 4,133 in all" in CliRunner().invoke(app, ["plan", "recipes/8b_sft.yml"]).stdout


def test_every_file_that_the_docs_name_is_there():
    place = r"(?<![\w/-])(?:recipes|data_mixes|deepspeed_configs|eval|launch|docs|hermes3)/[\w./-]+\w"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {path for page in pages for path in re.findall(place, page.read_text())}
    assert len(named) > 10
    assert [path for path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []
