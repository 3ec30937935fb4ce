"""The command line: light to start, explained by `--help` and the README, and clear about a user's error."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml
from conftest import ROOT
from lm_eval_files import write_scores
from typer.testing import CliRunner

from hermes3 import cli
from hermes3.plan.cost import batches
from hermes3.plan.plan import plan
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.paper import paper_of
from hermes3.recipe.read import read

HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib", "pyarrow", "axolotl", "rich")
NUMPY = ("torch", "axolotl", "transformers", "numpy")
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]
WRONG = yaml.safe_load((ROOT / "tests/wrong_inputs.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("hermes3.cli", (*HEAVY, "pydantic", "yaml", "numpy", "jinja2")),  # `hermes3 --help` takes 0.3 s
        ("hermes3.mix.spec, hermes3.mix.adapt, hermes3.report.build, hermes3.train.checkpoints", HEAVY),
        ("hermes3.mix.build", ["torch"]),
        ("hermes3.recipe.check, hermes3.plan.plan as p, pathlib; p.plan(pathlib.Path('recipes/405b_sft.yml'))", NUMPY),
    ],
)
def test_light_parts_import_nothing_heavy(modules, heavy):
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def verbs(group: click.Group, *names: str) -> dict[str, click.Command]:
    """{`mix build`: its command} of every verb."""
    if not isinstance(group, click.Group):
        return {" ".join(names): group}
    return {verb: found for name, one in group.commands.items() for verb, found in verbs(one, *names, name).items()}


def parse_hermes3(words: list[str]) -> None:
    """Let the command line's own parser read a command, without running it; unknown verbs and options raise."""
    command, context, words = typer.main.get_command(cli.app), None, list(words)
    while isinstance(command, click.Group):
        context = command.make_context(command.name, words, parent=context, resilient_parsing=False)
        _, command, words = command.resolve_command(context, context._protected_args + context.args)
    command.make_context(command.name, words, parent=context)


VERBS = verbs(typer.main.get_command(cli.app))
EXAMPLES = {name: shlex.split(command.help.split("Example: ")[1])[1:] for name, command in VERBS.items()}


def run(words: list[str], monkeypatch) -> int | str | None:
    """What `hermes3 WORDS` ends with: an exit code, or the text that Python prints on stderr before it exits with 1."""
    monkeypatch.setattr(sys, "argv", ["hermes3", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_explains_it(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    assert run([*name.split(), "--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    for param in VERBS[name].params:
        assert param.help and param.help in " ".join(text.split()), f"{param.name} is not explained"
    assert EXAMPLES[name][: len(name.split())] == name.split()
    parse_hermes3(EXAMPLES[name])


@pytest.mark.parametrize("name", ["check", "plan", "eval"])
def test_an_example_runs(name):
    ran = CliRunner().invoke(cli.app, EXAMPLES[name])
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize("name", ["mix verify", "render", "report"])
def test_an_example_runs_after_the_demo(name, chain):
    test_an_example_runs(name)


@pytest.fixture(scope="module")
def filled(base, tmp_path_factory):
    """Puts places for the marks of the cases, whose files are there."""
    places = {"{t}": str(tmp_path_factory.mktemp("wrong")), "{base}": str(base)}
    places["{scores}"] = str(write_scores(tmp_path_factory.mktemp("scores"), {"gsm8k": {"exact_match": 50}}))

    def fill(text: str) -> str:
        return re.sub(r"{t}|{base}|{scores}", lambda mark: places[mark[0]], text)

    for name, content in WRONG["files"].items():
        path = Path(places["{t}"], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else fill(content).encode())
    return fill


@pytest.mark.parametrize("case", WRONG["cases"], ids=lambda case: " ".join(case["words"]))
def test_a_wrong_input_is_one_line_with_a_remedy(case, filled, monkeypatch, capsys):
    end = run([filled(word) for word in case["words"]], monkeypatch)
    err = capsys.readouterr().err
    if "code" not in case and end != 1:  # one line, which Python prints before it exits with 1
        assert end.startswith("hermes3: ") and "\n" not in end
        err += end
    else:
        assert end == case.get("code", 1)
    assert "Traceback" not in err
    assert [text for text in case["says"] if filled(text) not in err] == []


def test_what_is_no_users_error_is_a_bug(monkeypatch, capsys):
    monkeypatch.setattr("hermes3.recipe.check.check_all", lambda *_: {}["key"])
    assert run(["check"], monkeypatch) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and err.rstrip().endswith("please open an issue with the lines above")


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


def test_every_file_that_the_docs_name_is_there():
    place = r"(?<![\w/-])(?:recipes|data_mixes|deepspeed_configs|eval|launch|docs|hermes3)/[\w./-]+\w"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {path for page in pages for path in re.findall(place, page.read_text())}
    assert len(named) > 10
    assert [path for path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []
