"""`eval/published/*.yml`: the paper's tables as data, with their settings and what is wrong in them."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hermes3.evaluate.select import choose

PUBLISHED = Path("eval/published")


class Row(BaseModel):
    """One row. `values`: a score a column; `scale`: what they are out of, 100 for percent, 1 for MT-Bench's points.

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
    rows: dict[str, Row] = Field(min_length=1)
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
                raise ValueError(f"rows.{name} has {len(values)} values for {len(self.columns)} columns")
        for one in self.misprints:
            if one.row not in rows or one.column not in self.columns:
                raise ValueError(f"misprints: no {one.column} of {one.row}")
            if rows[one.row][list(self.columns).index(one.column)] != one.printed:
                raise ValueError(f"misprints: {one.row} of {one.column} is not {one.printed}")
        return self

    def values(self, column: str) -> dict[str, float]:
        """The printed scores of a column: row -> score."""
        place = list(self.columns).index(column)
        return {name: row.values[place] for name, row in self.rows.items()}


def load(name: str) -> Table:
    """Table `name` (`table2`, `table4`, `table5`) of eval/published. `ValueError` names the file and the key."""
    path = PUBLISHED / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.yml")))
        raise ValueError(f"no {path}; there are {known or f'none in {Path.cwd() / PUBLISHED}'}")
    try:
        return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def select_published(name: str) -> dict[str, Any]:
    """The paper's rule on its own printed scores, as `hermes3.evaluate.select.choose` gives it.

    `notes` says where the table contradicts itself. `ValueError` for a table that is not one of epochs.
    """
    table = load(name)
    if not (table.total and table.kept):
        raise ValueError(f"{name}: its columns are models, not the epochs of one run; table2 has epochs")
    scores = {name: dict(enumerate(row.values, 1)) for name, row in table.rows.items()}
    chosen = choose(scores)
    for (epoch, total), printed in zip(chosen["totals"].items(), table.total, strict=True):
        if abs(total - printed) >= 0.005:
            known = [one.why for one in table.misprints if one.row == "total" and one.printed == printed]
            why = known[0] if known else "within what rounding the printed scores can do"
            chosen["notes"].append(f"Epoch {epoch}: {printed:.2f} is printed, {total:.2f} recomputed: {why}.")
    for one in table.misprints:
        if one.row != "total":
            where = f"{one.row}, {table.columns[one.column]}"
            chosen["notes"].append(f"{where}: {one.printed:.2f} is printed, {one.instead:.2f} recomputed: {one.why}.")
    kept = table.columns[table.kept]
    same = kept == f"epoch {chosen['epoch']}"
    chosen["notes"].append(f"The paper kept {kept}{', as the rule does' if same else ', which the rule does not'}.")
    return {"scores": scores, **chosen}
