"""The command line: light to start, and clear about a user's error."""

import subprocess
import sys

import pytest

from hermes3.cli import main

HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib", "pyarrow", "axolotl")


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("hermes3.cli, hermes3.mix.spec, hermes3.mix.adapt, hermes3.report.build", HEAVY),
        ("hermes3.mix.build", ["torch"]),
    ],
)
def test_light_parts_import_nothing_heavy(modules, heavy):
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mix", "build", "none.yml", "--out", "x"], "none.yml: no such file"),
        (["eval", "recipes", "--out", "x"], "recipes: no config.json"),
        (["report", "--out", "x", "--run", "SFT"], "--run SFT: give it as NAME=FOLDER"),
        (["tokenizer", "build", "nowhere", "x"], "nowhere: no such folder"),
    ],
)
def test_a_users_error_is_one_line(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hermes3", *words])
    with pytest.raises(SystemExit, match=f"^hermes3: {message}"):  # Python prints the text on stderr and exits with 1
        main()
