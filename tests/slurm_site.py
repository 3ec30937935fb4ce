"""A copy of the repository in which a test may launch: links to what is read, recipes and logs of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

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


def small_chain(site: Path, base: Path, samples: Path) -> None:
    """small.yml: the tiny recipes on two small mixes, one epoch, two questions per task."""
    (site / "outputs/tiny").mkdir()
    (site / "outputs/tiny/base").symlink_to(base)
    (site / "outputs/tiny/data").symlink_to(samples)
    of_kind = {"dpo": ("preference/train.jsonl", "preference", {"warmup_steps": 2})}
    of_kind["sft"] = "train/json_mode.jsonl", "messages", {"num_epochs": 1, "warmup_steps": 2, "logging_steps": 1}
    for kind, (file, rows, keys) in of_kind.items():
        spec = yaml.safe_load((ROOT / f"data_mixes/tiny_{kind}.yml").read_text())
        source = {"name": "one", "path": f"outputs/tiny/data/{file}", "adapter": rows, "licence": "our own"}
        spec["categories"] = {"steering_alignment": {"tokens": 8000, "sources": [source]}}
        (site / f"small_{kind}.yml").write_text(yaml.safe_dump(spec))
        recipe = site / f"recipes/tiny_{kind}.yml"
        text = recipe.read_text().replace(f"mixes/tiny_{kind}/", f"mixes/small_{kind}/")
        for key, value in keys.items():
            text, n = re.subn(rf"^{key}:.*$", f"{key}: {value}  # experiment: a test's", text, flags=re.MULTILINE)
            assert n == 1, key
        recipe.write_text(text)
    small = yaml.safe_load((ROOT / "launch/pipelines/tiny.yml").read_text())
    small |= {"mixes": {"sft": "small_sft.yml", "dpo": "small_dpo.yml"}, "base": False}
    small["evaluation"] |= {"options": ["--limit", "2"], "also": {}}
    (site / "small.yml").write_text(yaml.safe_dump(small))


def launch(lab, site: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """`hermes3 launch` as typed on the login node of `lab`; in JSON unless it fails."""
    return lab.run(*HERMES3, "--json", *arguments, cwd=site, **options)


def launch_alone(site: Path, *arguments: object) -> subprocess.CompletedProcess:
    """`hermes3 launch` on a machine without Slurm."""
    env = {**os.environ, "PATH": "/nowhere"}
    return subprocess.run([*HERMES3, *map(str, arguments)], cwd=site, env=env, text=True, capture_output=True)
