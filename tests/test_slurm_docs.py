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
# What is there once a command has run
LATER = re.compile(r"1234$|logs/|outputs/|wheelhouse/|meta-llama/")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_what_its_program_takes(command, request):
    command = re.sub(r"^\(source launch/env.sh; until (.*?); do .*\)$", r"\1", command)
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
        words.pop(0)
    program, argv, options = re.sub(r"^\.venv(-eval)?/bin/", "", words[0]), [], words[1:]
    if program == "hermes3":
        parse_hermes3(words[1:])
        options = words[words.index("--") + 1 :] if "--" in words else []
        argv = ["sbatch"]
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.training_script == "axolotl.cli.train" and arguments.module
    elif program in OF_SLURM:
        argv = [program]
    elif program == "torchfrtrace":
        argv = [ROOT / ".venv/bin/torchfrtrace"]
    elif program in ("bash", "source"):
        assert words[1] in ("launch/install.sh", "wheelhouse/install.sh", ".venv/bin/activate")
    elif program == "python" and words[1] == "-m":
        assert find_spec(words[2])
    elif program == "python":
        argv, options = [sys.executable, ROOT / words[1]], words[2:]
    elif program == "wandb":
        from wandb.cli.cli import cli

        assert words[1] in cli.commands
    else:
        assert program in ("export", "cd", "tail", "less", "enroot", "docker", "hf"), f"no check for {command}"
    if argv and options:
        if argv[0] in OF_SLURM:
            said = request.getfixturevalue("slurm").run(*argv, "--help").stdout
        else:
            said = subprocess.run([*argv, "--help"], capture_output=True, text=True).stdout
        assert program != "scontrol" or words[1] in said
        for word in takewhile(lambda word: word.startswith("-"), options):  # then it is another program's, as of srun
            assert not word.startswith("--") or word.split("=")[0] in said, word
    files = [word for word in words[1:] if re.fullmatch(r"[\w.]+(/[\w.-]+)+|[\w-]+\.txt", word)]
    assert [word for word in files if not LATER.match(word) and not (ROOT / word).exists()] == []


def test_no_command_leaves_the_jobs_settings_in_the_users_shell():
    """HF_HUB_OFFLINE=1 of env.sh would make the next fetch fail, and reach the jobs that are submitted from there."""
    assert [line for line in COMMANDS if line.startswith("source launch/env.sh")] == []


def test_what_the_page_names_is_what_the_code_has():
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
    assert f"`HERMES3_PREFLIGHT_SECONDS` ({queue.SECONDS})" in PAGE
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
