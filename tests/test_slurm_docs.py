"""docs/slurm.md: its commands are what their programs take, its names are in the code, its figures are the plan's."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT
from test_readme import parse_hermes3

PAGE = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]
PLACEHOLDERS = {
    "wheelhouse/install.sh",
    "1234",
    "logs/8b_sft-1234.log",
    "logs/1234/attempt_1",
    "logs/1234/attempt_1/rank_17.log",
}


def are_known(words: list[str], help_text: str) -> None:
    """Every option, up to the first word that is none, is one that the program's own help names."""
    for word in words:
        if not word.startswith("-"):
            return  # srun's: from here on it is another program's
        assert not word.startswith("--") or word.split("=")[0] in help_text, word


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_what_its_program_takes(command, request):
    command = re.sub(r"^\(source launch/env.sh; (.*)\)$", r"\1", command)
    words = shlex.split(command.removeprefix("until ").split("; do ")[0] if command.startswith("until") else command)
    while re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
        words.pop(0)
    program = re.sub(r"^\.venv(-eval)?/bin/", "", words[0])
    if program == "hermes3":
        parse_hermes3(words[1:])
        if "--" in words:
            are_known(words[words.index("--") + 1 :], request.getfixturevalue("slurm").run("sbatch", "--help").stdout)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.training_script == "axolotl.cli.train" and arguments.module
    elif program in ("sbatch", "srun", "scancel", "scontrol", "squeue"):
        said = request.getfixturevalue("slurm").run(program, "--help").stdout
        if program == "scontrol":
            assert words[1] in said
        are_known(words[1:], said)
    elif program == "torchfrtrace":
        said = subprocess.run([ROOT / ".venv/bin/torchfrtrace", "--help"], capture_output=True, text=True).stdout
        are_known(words[1:], said)
    elif program in ("bash", "source"):
        assert words[1] in ("launch/install.sh", "wheelhouse/install.sh", ".venv/bin/activate")
    elif program == "python" and words[1] == "-m":
        assert find_spec(words[2])
    elif program == "python":
        said = subprocess.run([sys.executable, ROOT / words[1], "--help"], capture_output=True, text=True).stdout
        are_known(words[2:], said)
    elif program == "hf":
        assert (ROOT / ".venv/bin/hf").is_file()
    elif program == "wandb":
        from wandb.cli.cli import cli

        assert words[1] in cli.commands
    else:
        assert program in ("export", "cd", "tail", "less", "enroot", "docker"), f"no check for {command}"
    files = [word for word in words[1:] if re.fullmatch(r"[\w.]+(/[\w.-]+)+|[\w-]+\.txt", word)]
    missing = [word for word in files if word not in PLACEHOLDERS and not word.startswith(("outputs/", "logs/here"))]
    assert [word for word in missing if not (ROOT / word).exists() and "meta-llama" not in word] == []


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("hf auth login", "hermes3 tokenizer build"),
        ("hermes3 mix lock data_mixes/hermes3_sft.yml", "sbatch launch/mix.sbatch data_mixes/hermes3_sft.yml"),
        ("bash launch/install.sh .venv-eval", "hermes3 launch --pipeline 8b"),
        (".venv-eval/bin/hermes3 eval --suite paper --fetch", "hermes3 launch --pipeline 8b"),
        ("hermes3 mix lock data_mixes/hermes3_dpo.yml", "hermes3 launch --pipeline 8b"),
    ],
)
def test_what_a_command_needs_comes_before_it(first, then):
    place = [next(n for n, command in enumerate(COMMANDS) if command.startswith(start)) for start in (first, then)]
    assert place == sorted(place)


def test_no_command_leaves_the_jobs_settings_in_the_users_shell():
    """HF_HUB_OFFLINE=1 of env.sh would make the next fetch fail, and reach the jobs that are submitted from there."""
    assert [line for line in COMMANDS if line.startswith("source launch/env.sh")] == []


def test_the_options_that_a_job_keeps_when_it_submits_itself_anew_are_said():
    from hermes3.slurm.start import KEPT

    names = {"Features": "constraint", "ExcNodeList": "excluded nodes", "TimeLimit": "time", "QOS": "QOS"}
    said = PAGE.replace("\n", " ").partition("options other than ")[2].partition(" are lost")[0]
    assert {names.get(key, key.lower()) for key in KEPT} == set(re.split(", | and ", said))


def test_every_variable_of_the_page_is_read_by_the_code():
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("hermes3", "launch")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".sbatch")
    )
    named = set(re.findall(r"\b(?:HERMES3|TORCH|NCCL|HF)_\w+", PAGE))
    assert len(named) > 8 and [name for name in sorted(named) if name not in code] == []


def test_the_table_of_the_preflight_has_every_check():
    from hermes3.slurm.node_check import CHECKS

    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted([*CHECKS, "answer", "clock", "all-reduce"])


def test_the_defaults_and_figures_are_those_of_the_code():
    from hermes3.plan.plan import plan, size
    from hermes3.recipe.read import read
    from hermes3.slurm import allreduce, queue, verdict

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
