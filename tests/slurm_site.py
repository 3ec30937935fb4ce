"""A copy of the repository in which a test may launch: links to what is read, recipes and logs of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERMES3 = (sys.executable, "-m", "hermes3.cli", "launch")


def make(folder: Path) -> Path:
    """The site at `folder`: scripts are the repository's, recipes and suites are copied; nothing else is there."""
    folder.mkdir()
    for name in ("launch", "deepspeed_configs", "data_mixes", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("recipes", "eval"):  # what a test edits, and what the stages' hashes are of
        shutil.copytree(ROOT / name, folder / name)
    for name in ("logs", "outputs", "mixes"):
        (folder / name).mkdir()
    return folder


def launch(lab, site: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """`hermes3 launch` as typed on the login node of `lab`; in JSON unless it fails."""
    return lab.run(*HERMES3, "--json", *arguments, cwd=site, **options)


def launch_alone(site: Path, *arguments: object) -> subprocess.CompletedProcess:
    """`hermes3 launch` on a machine without Slurm."""
    env = {**os.environ, "PATH": "/nowhere"}
    return subprocess.run([*HERMES3, *map(str, arguments)], cwd=site, env=env, text=True, capture_output=True)
