"""Running lm-eval: one plain `lm_eval` command, which a user may copy."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hermes3.model_folder import check_model

TASKS = Path("eval/tasks")


class Suite(BaseModel):
    """`eval/suites/*.yml`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tasks: list[str]
    num_fewshot: int
    batch_size: int
    max_length: int
    device: str
    dtype: str
    seed: int


def load(path: Path) -> Suite:
    """Read a suite; `ValueError` names the file and the key."""
    if not path.is_file():
        raise ValueError(f"no suite {path}; there are {', '.join(sorted(map(str, Path('eval/suites').glob('*.yml'))))}")
    try:
        return Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def command(model: Path, out: Path, suite: Suite) -> list[str]:
    """The `lm_eval` call that evaluates `model` on `suite`."""
    arguments = f"pretrained={model},dtype={suite.dtype},max_length={suite.max_length}"
    return [
        *("lm_eval", "run", "--model", "hf", "--model_args", arguments, "--device", suite.device),
        *("--include_path", str(TASKS), "--tasks", ",".join(suite.tasks), "--num_fewshot", str(suite.num_fewshot)),
        *("--apply_chat_template", "--batch_size", str(suite.batch_size), "--seed", str(suite.seed)),
        *("--output_path", str(out), "--log_samples"),
    ]


def run(model: Path, out: Path, suite_path: Path, dry_run: bool = False) -> None:
    """Print the command and run it. `ValueError` for a model that is not fit to evaluate or a run that failed."""
    check_model(model)
    argv = command(model, out, load(suite_path))
    print(shlex.join(argv), flush=True)
    if dry_run:
        return
    # lm_eval stands beside this Python, also where the environment is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(argv, env={**os.environ, "PATH": path, "TOKENIZERS_PARALLELISM": "false"}).returncode
    if code:
        raise ValueError(f"lm_eval ended with {code} on {model}; its own message is above")
