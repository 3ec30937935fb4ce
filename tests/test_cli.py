"""The command line: light to start, and clear about a user's error."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib", "pyarrow", "axolotl")
HERMES3 = Path(sys.executable).with_name("hermes3")


@pytest.mark.parametrize(
    "module", ["hermes3.cli", "hermes3.mix.spec", "hermes3.mix.adapt", "hermes3.report.build", "hermes3.evaluate"]
)
def test_light_parts_import_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_mix_builder_imports_without_torch():
    code = "import sys, hermes3.mix.build; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mix", "build", "none.yml", "--out", "x"], "none.yml: no such file"),
        (["eval", "recipes", "--out", "x"], "recipes: no config.json"),
        (["report", "--out", "x", "--run", "SFT"], "--run SFT: give it as NAME=FOLDER"),
        (["tokenizer", "build", "nowhere", "x"], "nowhere: no such folder"),
    ],
)
def test_a_user_s_error_is_one_line_on_stderr(words, message):
    ran = subprocess.run([HERMES3, *words], capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"hermes3: {message}" in ran.stderr
    assert "Traceback" not in ran.stderr and ran.stdout == ""


def test_a_recipe_with_a_typo_fails_the_check(tmp_path):
    recipe = tmp_path / "tiny_sft.yml"
    recipe.write_text(Path("recipes/tiny_sft.yml").read_text().replace("\nsequence_len:", "\nsequence_lenght:"))
    ran = subprocess.run([HERMES3, "check", recipe], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "sequence_lenght" in ran.stderr and "sequence_len" in ran.stderr
