"""The command line: light to start, explained by `--help`, and clear about a user's error."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml
from lm_eval_files import write_scores
from test_readme import parse_hermes3
from typer.testing import CliRunner

from hermes3 import cli

HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib", "pyarrow", "axolotl", "rich")
WRONG = yaml.safe_load(Path(__file__).with_name("wrong_inputs.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("hermes3.cli", (*HEAVY, "pydantic", "yaml", "numpy", "jinja2")),  # `hermes3 --help` takes 0.3 s
        ("hermes3.mix.spec, hermes3.mix.adapt, hermes3.report.build, hermes3.train.checkpoints", HEAVY),
        ("hermes3.mix.build", ["torch"]),
        ("hermes3.recipe.check, hermes3.plan.plan as p, pathlib; p.plan(pathlib.Path('recipes/405b_sft.yml'))", HEAVY),
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
    purpose = text.split("\n\n")[1].strip()
    assert len(purpose.split(". ")[0]) <= 63 and purpose.endswith("."), "the list of verbs shows the first sentence"
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


def test_an_option_has_the_same_name_everywhere():
    options = [one for command in VERBS.values() for one in command.params if isinstance(one, click.Option)]
    spellings = {(option.name, option.opts[-1]) for option in options}
    assert len(spellings) == len(dict(spellings))


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
