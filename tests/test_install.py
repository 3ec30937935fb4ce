"""Which Python the two commands take, and what they install, with stand-ins for interpreters and for uv."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def fake(path: Path, text: str) -> str:
    """A program that does `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def python(path: Path, minor: int) -> str:
    """A stand-in for Python 3.`minor`, which answers the two questions that launch/python.sh asks."""
    fits = 0 if minor in (12, 13) else 1
    return fake(path, f'case "$2" in *version_info*) exit {fits} ;; *) echo {path} ;; esac')


def chosen(folder: Path, **variables: str) -> tuple[int, str, str]:
    """Exit code, the interpreter that is taken, and what is said about it."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), **variables}
    ran = subprocess.run(["bash", "launch/python.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    return ran.returncode, ran.stdout.strip(), ran.stderr


def test_a_fitting_python_is_found_and_a_named_one_is_taken_or_refused(tmp_path):
    old = python(tmp_path / "python3", 11)
    fake(tmp_path / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")  # a shim, switched off
    pyenv = python(tmp_path / ".pyenv/versions/3.13.0/bin/python", 13)
    _, taken, words = chosen(tmp_path)
    assert taken == pyenv and f"Python: {pyenv}" in words
    first = python(tmp_path / "python3.12", 12)
    assert (chosen(tmp_path)[1], chosen(tmp_path, PYTHON=pyenv)[1]) == (first, pyenv)
    code, taken, words = chosen(tmp_path, PYTHON=old)
    assert (code, taken) == (1, "") and f"PYTHON={old} is not Python 3.12 or 3.13" in words


def test_without_any_uv_brings_one_or_a_line_says_what_to_install(tmp_path):
    for name in ("python3", "python3.12", "python3.13"):
        python(tmp_path / name, 11)
    code, _, words = chosen(tmp_path)
    assert code == 1 and "Install one" in words.splitlines()[-1]
    spare, brought = python(tmp_path / "spare", 12), tmp_path / "uv-python"
    fake(tmp_path / "uv", f"[[ $2 == install ]] && mv {spare} {brought}; [[ -e {brought} ]] && echo {brought}")
    assert chosen(tmp_path)[0] == 0 and brought.exists()


@pytest.mark.parametrize("index", ["", "https://example.invalid/whl/cpu"])
def test_torch_comes_from_the_index_that_is_named(tmp_path, index):
    log = tmp_path / "log"
    fake(tmp_path / "uv", f'echo "$@" >>{log}; for one in "$@"; do [[ $one != *.txt ]] || cat "$one" >>{log}; done')
    make = f'mkdir -p "$3/bin"; cp {tmp_path}/uv "$3/bin/uv"; ln -sf /bin/true "$3/bin/pip"'
    answers = f"*version_info*) ;; *executable*) echo {tmp_path}/python ;; venv) {make} ;;"
    fake(tmp_path / "python", f'case "$2" in {answers} esac')
    environment = os.environ | {"PYTHON": str(tmp_path / "python"), "TORCH_INDEX": index}
    command = ["bash", "launch/install.sh", os.path.relpath(tmp_path / "new", ROOT), "requirements.txt"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    text = log.read_text()
    torch = re.search(r"^torch==[\d.]+", (ROOT / "requirements.txt").read_text(), re.M)[0]
    assert ("nvidia-cublas" in text) == (not index)
    assert (f"pip install --default-index {index} --no-deps {torch}" in text) == bool(index)
    assert "nvidia-ml-py" in text  # Python alone; wandb and Axolotl import it
    assert text.splitlines()[-1] == "pip install --no-deps -e ."


@pytest.mark.parametrize("name", ["requirements", "requirements-eval", "requirements-quantize"])
def test_the_lock_has_every_hand_kept_name_within_its_range(name):
    def read(ending: str) -> list[Requirement]:
        lines = (ROOT / f"{name}.{ending}").read_text().splitlines()
        return [Requirement(line.split("  #")[0]) for line in lines if line and not line.startswith("#")]

    locked = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in read("txt")}
    for wanted in read("in"):
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), wanted
