"""`eval/suites/*.yml`: which tasks make up which score, and how they are run."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hermes3.files import ROOT, UserError, read_model

SUITES = ROOT / "eval/suites"


class Protocol(NamedTuple):
    """How questions are put: examples before each, through the model's chat template or as plain text, examples as
    turns of their own or all in one."""

    shots: int
    chat_template: bool
    fewshot_as_turns: bool

    def __str__(self) -> str:
        if not self.chat_template:
            return f"{self.shots}-shot, without the chat template"
        turns = "" if not self.shots else ", examples as turns" if self.fewshot_as_turns else ", examples in one turn"
        return f"{self.shots}-shot, with the chat template{turns}"

    @classmethod
    def of(cls, shots: int, chat_template: bool, fewshot_as_turns: bool) -> "Protocol":
        """The protocol, where turns mean nothing without a template and are no question without examples."""
        return cls(shots, chat_template, chat_template and (fewshot_as_turns or not shots))

    @property
    def folder(self) -> str:
        """Where results go, below the folder of a suite's results."""
        form = "" if self.fewshot_as_turns else "_one_turn" if self.chat_template else "_plain"
        return f"{self.shots}_shot{form}"


class GroupSpec(BaseModel):
    """One score of a table: the mean over its tasks, as a suite declares it.

    `tasks`: lm-eval's name of a task or group -> metric, as `acc_norm`, or `exact_match,strict-match` where a task has
    several filters; of several metrics the mean counts. `aggregation`: `mean` counts every task alike, `weighted` every
    question. `chat_template`: whether prompts go through the model's own, `fewshot_as_turns`: then each example is a
    turn. `by`: what runs it. `selects`: whether it counts when an epoch is chosen.
    """

    model_config = ConfigDict(extra="forbid")

    tasks: dict[str, str | list[str]] = Field(min_length=1)
    num_fewshot: int = Field(ge=0)
    chat_template: bool = True
    fewshot_as_turns: bool = True
    aggregation: Literal["mean", "weighted"] = "mean"
    by: Literal["lm_eval", "mt_bench"] = "lm_eval"
    selects: bool = True

    def metrics(self, task: str) -> list[str]:
        named = self.tasks[task]
        return [named] if isinstance(named, str) else named

    @property
    def protocol(self) -> Protocol:
        return Protocol.of(self.num_fewshot, self.chat_template, self.fewshot_as_turns)


class Suite(BaseModel):
    """A suite. `max_length`: tokens of prompt and answer; `limit`: questions per task, for a first look.

    `seed`: of sampling, and of tasks that shuffle choices; `fewshot_seed`: of the draw of examples, lm-eval's own by
    default. `margin`: points within which a difference from a published score counts as none. `include_path`: a folder
    of tasks beside lm-eval's own; `needs`: modules that its tasks import and lm-eval does not bring.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    groups: dict[str, GroupSpec] = Field(min_length=1)
    batch_size: int | Literal["auto"]
    max_length: int
    device: str
    dtype: str
    seed: int
    fewshot_seed: int = 1234
    margin: float = Field(default=2, gt=0)
    limit: int | None = Field(default=None, ge=1)
    include_path: Path = Path("eval/tasks")
    needs: list[str] = []

    @model_validator(mode="after")
    def one_protocol_per_task(self) -> "Suite":
        protocols: dict[str, Protocol] = {}
        for name, group in self.groups.items():
            for task in group.tasks:
                if (first := protocols.setdefault(task, group.protocol)) != group.protocol:
                    raise UserError(f"groups.{name}: {task} is asked {first} too; make it two suites")
        return self

    @property
    def tasks_folder(self) -> Path:
        """`include_path` as a suite names it, or by default the checkout's own, from whatever folder it is run."""
        own = ROOT / self.include_path
        elsewhere = self.include_path.resolve() != own.resolve()
        return own if elsewhere and "include_path" not in self.model_fields_set else self.include_path

    def by_protocol(self) -> dict[Protocol, list[str]]:
        """Protocol -> the tasks that one call of lm_eval asks by it, in the suite's order; fewest examples first."""
        tasks: dict[Protocol, list[str]] = {}
        for group in self.groups.values():
            if group.by == "lm_eval":
                of_protocol = tasks.setdefault(group.protocol, [])
                of_protocol += [task for task in group.tasks if task not in of_protocol]
        return dict(sorted(tasks.items()))


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
