"""Every command of the README: run here, run by the chain, or held to the parser of the program that it calls."""

import re
import shlex

import click
import pytest
import typer
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from hermes3.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]


def test_the_two_commands_come_first():
    assert COMMANDS[:2] == ["make demo", "make test"]
    targets = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", targets, re.MULTILINE) and re.search(r"^test:", targets, re.MULTILINE)


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
    program = words[0].removeprefix(".venv/bin/")
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
    elif program == "sbatch":  # taken by a real Slurm in test_launch.py
        assert all((ROOT / word).is_file() for word in words[1:])
    elif program in ("bash", "uv"):
        assert all((ROOT / word).is_file() for word in words if word.endswith((".sh", ".txt")))
    else:
        assert program in ("make", "export", "source"), f"no check for {command}"


def test_check_accepts_every_recipe_and_plan_comes_out_at_the_papers_steps():
    ran = CliRunner().invoke(app, ["check"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.count("ok ") == len(list((ROOT / "recipes").rglob("*.yml"))) >= 20
    assert "1,033 per epoch, 4,133 in all" in CliRunner().invoke(app, ["plan", "recipes/8b_sft.yml"]).stdout


def test_the_table_of_recipes_is_what_the_recipes_say():
    from hermes3.recipe.hardware import hardware_of
    from hermes3.recipe.paper import paper_of

    row = r"^\| `(recipes/\d\w+\.yml)` \| (\d+) H100 \| (\d+) .*? \| (\S+) \| (.*?) \|$"
    rows = re.findall(row, README, re.MULTILINE)
    assert len(rows) == 6
    for path, gpus, batch, rate, hours in rows:
        recipe, paper = yaml.safe_load((ROOT / path).read_text()), paper_of(ROOT / path)
        hardware = hardware_of(ROOT / path, recipe)
        assert hardware.gpus == int(gpus)
        assert recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"] * hardware.gpus == int(batch)
        assert recipe["learning_rate"] == float(rate)
        if paper.gpu_hours:
            assert hours == f"{paper.gpu_hours / paper.gpus:.1f} ({paper.gpu_hours:,})"


def test_every_file_that_the_docs_name_is_there():
    place = r"(?<![\w/-])(?:recipes|data_mixes|deepspeed_configs|eval|launch|docs|hermes3)/[\w./-]+\w"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {path for page in pages for path in re.findall(place, page.read_text())}
    assert len(named) > 10
    assert [path for path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []
