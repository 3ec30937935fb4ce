"""`eval/suites/*.yml`: which tasks make up which score, and how they are run."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hermes3.files import ROOT, UserError, read_model

SUITES = ROOT / "eval/suites"


class GroupSpec(BaseModel):
    """One score of a table: the mean over its tasks, as a suite declares it.

    `tasks`: lm-eval's name of a task or group -> metric, as `acc_norm`, or `exact_match,strict-match` where a task has
    several filters; of several metrics the mean counts. `aggregation`: `mean` counts every task alike, `weighted` every
    question. `by`: what runs it. `selects`: whether it counts when an epoch is chosen.
    """

    model_config = ConfigDict(extra="forbid")

    tasks: dict[str, str | list[str]] = Field(min_length=1)
    num_fewshot: int = Field(ge=0)
    aggregation: Literal["mean", "weighted"] = "mean"
    by: Literal["lm_eval", "mt_bench"] = "lm_eval"
    selects: bool = True

    def metrics(self, task: str) -> list[str]:
        named = self.tasks[task]
        return [named] if isinstance(named, str) else named


class Suite(BaseModel):
    """A suite. `max_length`: tokens of prompt and answer; `limit`: questions per task, for a first look.

    `include_path`: a folder of tasks beside lm-eval's own; `needs`: modules that its tasks import and lm-eval does not
    bring.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    groups: dict[str, GroupSpec] = Field(min_length=1)
    batch_size: int | Literal["auto"]
    max_length: int
    device: str
    dtype: str
    seed: int
    limit: int | None = Field(default=None, ge=1)
    include_path: Path = Path("eval/tasks")
    needs: list[str] = []

    @model_validator(mode="after")
    def one_number_of_shots_per_task(self) -> "Suite":
        shots: dict[str, int] = {}
        for name, group in self.groups.items():
            for task in group.tasks:
                if shots.setdefault(task, group.num_fewshot) != group.num_fewshot:
                    raise UserError(f"groups.{name}: {task} has {shots[task]} shots too; make it two suites")
        return self

    def by_shots(self) -> dict[int, list[str]]:
        """num_fewshot -> the tasks that lm_eval runs with it, in the suite's order."""
        shots: dict[int, list[str]] = {}
        for group in self.groups.values():
            if group.by == "lm_eval":
                tasks = shots.setdefault(group.num_fewshot, [])
                tasks += [task for task in group.tasks if task not in tasks]
        return dict(sorted(shots.items()))


def file_of(named: str | Path) -> Path:
    """The file of a suite that is given by its name in eval/suites, or as a file."""
    return Path(named) if Path(named).suffix in (".yml", ".yaml") else SUITES / f"{named}.yml"


def load(named: str | Path) -> Suite:
    """Read a suite by its name in eval/suites or by its file. `UserError` names the file and the key."""
    return read_model(file_of(named), Suite, SUITES)


def require(name: str, modules: Iterable[str]) -> None:
    """`UserError` for the first of `modules`, which suite `name` needs, that is not installed here."""
    for module in modules:
        if not importlib.util.find_spec(module):
            raise UserError(f"{name}: no {module} here; install requirements-eval.txt, an environment of its own")
