"""docs/slurm.md: its commands are what their programs take, its names are in the code, its figures are the plan's."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import takewhile

import pytest
from conftest import ROOT
from test_cli import parse_hermes3

from hermes3.plan.plan import plan, size
from hermes3.recipe.read import read
from hermes3.slurm import allreduce, node_check, queue, start, verdict

PAGE = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]
OF_SLURM = ("sbatch", "srun", "scancel", "scontrol", "squeue")
OTHERS = ("accelerate", "bash", "source", "wandb", "export", "cd", "tail", "less", "enroot", "docker", "hf")
# What is there once a command has run
LATER = re.compile(r"1234$|logs/|outputs/|wheelhouse/|meta-llama/")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_what_its_program_takes(command, request):
    command = re.sub(r"^\(source launch/env.sh; until (.*?); do .*\)$", r"\1", command)
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z0-9_]+=.*", word)]
    program, help_of, options = re.sub(r"^\.venv(-eval)?/bin/", "", words[0]), [], words[1:]
    if program == "hermes3":
        parse_hermes3(words[1:])
        options = words[words.index("--") + 1 :] if "--" in words else []
        help_of = ["sbatch"]
    elif program in OF_SLURM:
        help_of = [program]
    elif program == "torchfrtrace":
        help_of = [ROOT / ".venv/bin/torchfrtrace"]
    elif program == "python" and words[1] == "-m":
        assert find_spec(words[2])
    elif program == "python":
        help_of, options = [sys.executable, ROOT / words[1]], words[2:]
    else:
        assert program in OTHERS, f"no check for {command}"
    if help_of and options:
        if help_of[0] in OF_SLURM:
            said = request.getfixturevalue("slurm").run(*help_of, "--help").stdout
        else:
            said = subprocess.run([*help_of, "--help"], capture_output=True, text=True).stdout
        assert program != "scontrol" or words[1] in said
        for word in takewhile(lambda word: word.startswith("-"), options):  # then it is another program's, as of srun
            assert not word.startswith("--") or word.split("=")[0] in said, word
    files = [word for word in words[1:] if re.fullmatch(r"[\w.]+(/[\w.-]+)+|[\w-]+\.txt", word)]
    assert [word for word in files if not LATER.match(word) and not (ROOT / word).exists()] == []


def test_what_the_page_names_is_what_the_code_has():
    # HF_HUB_OFFLINE=1 in the user's shell would make the next fetch fail, and reach the jobs submitted from there
    assert [line for line in COMMANDS if line.startswith("source launch/env.sh")] == []
    names = {"Features": "constraint", "ExcNodeList": "excluded nodes", "TimeLimit": "time", "QOS": "QOS"}
    said = PAGE.replace("\n", " ").partition("options other than ")[2].partition(" are lost")[0]
    assert {names.get(key, key.lower()) for key in start.KEPT} == set(re.split(", | and ", said))
    files = [path for folder in ("hermes3", "launch") for path in (ROOT / folder).rglob("*")]
    code = "".join(path.read_text("utf-8") for path in files if path.suffix in (".py", ".sh", ".sbatch"))
    named = set(re.findall(r"\b(?:HERMES3|TORCH|NCCL|HF)_\w+", PAGE))
    assert len(named) > 8 and [name for name in sorted(named) if name not in code] == []
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted([*node_check.CHECKS, "answer", "clock", "all-reduce"])


def test_the_defaults_and_figures_are_those_of_the_code():
    assert f"`HERMES3_PREFLIGHT_SECONDS` ({queue.LIMIT:g})" in PAGE
    assert f"`HERMES3_MIN_BUS_GBPS`: {allreduce.FLOOR:g} by default" in PAGE
    assert f"at most {verdict.MAX_CRASHES} times (`HERMES3_MAX_CRASHES`)" in PAGE
    notice = re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", (ROOT / "launch/train.sbatch").read_text(), re.MULTILINE)
    assert f"notice {notice[1]} s before" in PAGE
    for name, said in (("8b", "{minutes:.0f} minutes of the 8B"), ("405b", "{minutes:.0f} of the 405B")):
        path = ROOT / f"recipes/{name}_sft.yml"
        made = plan(path)
        minutes = read(path)["restart_steps"] * made.cost.step_seconds / 60
        assert said.format(minutes=minutes) in PAGE.replace("\n", " ")
        assert size(made.checkpoints.storage) in PAGE and size(made.checkpoints.state) in PAGE
    assert size(sum(made.own.host.values())) in PAGE  # the 405B's
