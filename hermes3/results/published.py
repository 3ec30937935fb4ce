"""`eval/published/*.yml`: the paper's tables as data, with their settings and what is wrong in them."""

from collections import namedtuple
from dataclasses import replace

from pydantic import BaseModel, model_validator

from hermes3.files import ROOT, UserError, read_model
from hermes3.results.score import Group

PUBLISHED = ROOT / "eval/published"
# a printed number (`column` of `row`) that other printed numbers contradict, what they give instead, and why
Misprint = namedtuple("Misprint", "row column printed instead why")


class PublishedRow(BaseModel, extra="forbid"):
    setting: str
    shots: int | None = None  # None where the paper does not say
    scale: float = 100  # what values are out of: 100 for percent, 1 for MT-Bench's points
    values: list[float]  # a score per column
    tasks: dict[str, list[float]] = {}  # printed rows of which `values` is the mean
    note: str = ""
    unlike: str | None = None  # why no measurement of ours can be compared with it
    unweighted: list[str] = []  # columns whose score is the plain mean of the subtasks

    def as_printed(self, group: Group, column: str) -> Group:
        """Our group, weighted as the paper's score of this column is."""
        return replace(group, by_question=False) if column in self.unweighted else group


class Table(BaseModel, extra="forbid"):
    """A table. `columns`: key -> words; `total`, `kept`: the last row of Table 2, and the epoch that the paper kept."""

    title: str
    columns: dict[str, str]
    rows: dict[str, PublishedRow]
    total: list[float] = []
    kept: str | None = None
    misprints: list[Misprint] = []

    @model_validator(mode="after")
    def a_value_per_column(self) -> "Table":
        for name, row in self.rows.items():
            for values in (row.values, *row.tasks.values()):
                if len(values) != len(self.columns):
                    raise UserError(f"rows.{name} has {len(values)} values for {len(self.columns)} columns")
        return self

    def values(self, column: str) -> dict[str, float]:
        """The printed scores of a column: row -> score."""
        place = list(self.columns).index(column)
        return {name: row.values[place] for name, row in self.rows.items()}


def load(name: str) -> Table:
    """Table `name` (`table2`, `table4`, `table5`) of eval/published. `UserError` names the file and the key."""
    return read_model(PUBLISHED / f"{name}.yml", Table, PUBLISHED)
