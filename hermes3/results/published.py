"""`eval/published/*.yml`: the paper's tables as data, with their settings and what is wrong in them."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hermes3.files import ROOT, UserError, read_model

PUBLISHED = ROOT / "eval/published"


class PublishedRow(BaseModel):
    """One row. `values`: a score per column; `scale`: what they are out of, 100 for percent, 1 for MT-Bench's points.

    `shots`: None where the paper does not say; `tasks`: printed rows of which `values` is the mean; `unlike`: why no
    measurement of ours can be compared with it.
    """

    model_config = ConfigDict(extra="forbid")

    setting: str
    shots: int | None = None
    scale: float = 100
    values: list[float]
    tasks: dict[str, list[float]] = {}
    note: str = ""
    unlike: str | None = None


class Misprint(BaseModel):
    """A printed number (`column` of `row`) that other printed numbers contradict, and what they give instead."""

    model_config = ConfigDict(extra="forbid")

    row: str
    column: str
    printed: float
    instead: float
    why: str


class Table(BaseModel):
    """A table. `columns`: key -> words; `total`, `kept`: the last row of Table 2, and the epoch that the paper kept."""

    model_config = ConfigDict(extra="forbid")

    title: str
    columns: dict[str, str] = Field(min_length=1)
    rows: dict[str, PublishedRow] = Field(min_length=1)
    total: list[float] | None = None
    kept: str | None = None
    misprints: list[Misprint] = []

    @model_validator(mode="after")
    def whole(self) -> "Table":
        rows = {name: row.values for name, row in self.rows.items()} | ({"total": self.total} if self.total else {})
        for row in self.rows.values():
            rows |= row.tasks
        for name, values in rows.items():
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
