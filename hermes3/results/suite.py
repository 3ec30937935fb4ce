"""`eval/suites/*.yml`: which tasks make up which score, and how they are run."""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from hermes3.files import ROOT, UserError, read_model

SUITES = ROOT / "eval/suites"


class Protocol(NamedTuple):
    """How questions are put."""

    shots: int  # examples before each
    chat_template: bool  # through the model's own, or as plain text
    fewshot_as_turns: bool  # or all examples in one turn

    def __str__(self) -> str:
        if not self.chat_template:
            return f"{self.shots}-shot, without the chat template"
        turns = ", examples as turns" if self.fewshot_as_turns else ", examples in one turn"
        return f"{self.shots}-shot, with the chat template{turns if self.shots else ''}"

    @classmethod
    def of(cls, shots: int, chat_template: bool, fewshot_as_turns: bool) -> "Protocol":
        """The protocol, where turns mean nothing without a template and are no question without examples."""
        return cls(shots, chat_template, chat_template and (fewshot_as_turns or not shots))

    @property
    def folder(self) -> str:
        """Where results go, below the folder of a suite's results."""
        form = "" if self.fewshot_as_turns else "_one_turn" if self.chat_template else "_plain"
        return f"{self.shots}_shot{form}"


class GroupSpec(BaseModel, extra="forbid"):
    """One score of a table: the mean over its tasks, as a suite declares it."""

    # lm-eval's name of a task or group -> metric, or METRIC,FILTER of several filters; of several metrics the mean
    tasks: dict[str, str | list[str]] = Field(min_length=1)
    num_fewshot: int = Field(ge=0)
    chat_template: bool = True  # whether prompts go through the model's own
    fewshot_as_turns: bool = True  # then each example is a turn
    aggregation: Literal["mean", "weighted"] = "mean"  # every task counts alike, or every question
    by: Literal["lm_eval", "mt_bench"] = "lm_eval"
    selects: bool = True  # whether it counts when an epoch is chosen

    def metrics(self, task: str) -> list[str]:
        named = self.tasks[task]
        return [named] if isinstance(named, str) else named

    @property
    def protocol(self) -> Protocol:
        return Protocol.of(self.num_fewshot, self.chat_template, self.fewshot_as_turns)


class Suite(BaseModel, extra="forbid"):
    """A suite: groups, and how lm-eval asks them."""

    name: str
    groups: dict[str, GroupSpec] = Field(min_length=1)
    batch_size: int | Literal["auto"]
    max_length: int  # tokens of prompt and answer
    device: str
    dtype: str
    seed: int  # of sampling, and of tasks that shuffle choices
    fewshot_seed: int = 1234  # of the draw of examples, lm-eval's own by default
    margin: float = Field(default=2, gt=0)  # points within which a difference from a published score counts as none
    limit: int | None = Field(default=None, ge=1)  # questions per task, for a first look
    include_path: Path = ROOT / "eval/tasks"  # tasks beside lm-eval's own
    needs: list[str] = []  # modules that its tasks import and lm-eval does not bring

    def by_protocol(self, part: int = 1, parts: int = 1) -> dict[Protocol, list[str]]:
        """Protocol -> the tasks that one call of lm_eval asks by it, in the suite's order; fewest examples first.
        Of several parts, numbered from 1, every `parts`-th task."""
        tasks: dict[Protocol, dict[str, None]] = {}
        for group in self.groups.values():
            if group.by == "lm_eval":
                tasks.setdefault(group.protocol, {}).update(dict.fromkeys(group.tasks))
        # How many questions a task has is known only when it is loaded. In this order the large tasks of `paper` come
        # last, and spread: the largest of 4 parts has 1.14 times its fair share of questions, of 2 it has 1.07, of 3
        # 1.49; of 8 parts none has two of BBH, MATH, MMLU, MMLU-PRO and HellaSwag.
        calls = [(protocol, task) for protocol in sorted(tasks) for task in tasks[protocol]][part - 1 :: parts]
        return {protocol: [task for one, task in calls if one == protocol] for protocol, _ in calls}


def file_of(named: str | Path) -> Path:
    """The file of a suite that is given by its name in eval/suites, or as a file."""
    return Path(named) if Path(named).suffix in (".yml", ".yaml") else SUITES / f"{named}.yml"


def load(named: str | Path | None) -> Suite:
    """A suite by its name in eval/suites or by its file.
    None is an error: no verb chooses for its user, as scores by another suite look the same."""
    if named is None:
        there = ", ".join(sorted(path.stem for path in SUITES.glob("*.yml")))
        raise UserError(f"--suite is missing; give a name in eval/suites ({there}), or a file")
    return read_model(file_of(named), Suite, SUITES)
