"""Which stage is to be compared with which of the paper's models, and the published rows for it."""

from pathlib import Path
from typing import Any

from hermes3.report.groups import Group
from hermes3.report.results import Stage, scale_of
from hermes3.report.versus import Published, versus

SIZES = ("8b", "70b", "405b")
NOTES = {"405b": "The paper measured both of its 405B models in FP8."}


def compare_with_paper(
    stages: list[Stage], groups: list[Group], size: str | None, recipes: dict[str, Path | None]
) -> dict[str, Any]:
    """`versus.versus` of Table 5 with `size`, or {"reason"} why there is nothing to compare with."""
    size = size or size_of(recipes)
    if size is None:
        return {"reason": "no run follows a recipe of the paper (give --size 8b, 70b or 405b)"}
    if size not in SIZES:
        raise ValueError(f"--size {size}: the paper has {', '.join(SIZES)}")
    stage = _counterpart(stages, size)
    rows, columns = published(size)
    return {"size": size, "note": NOTES.get(size, "")} | versus(stage, groups, rows, columns)


def _counterpart(stages: list[Stage], size: str) -> Stage:
    """The last stage; of a 70B or 405B the one named SFT, as the paper released these without DPO, the 8B with it."""
    before_dpo = [stage for stage in stages if stage.name.lower() == "sft"]
    return before_dpo[0] if size != "8b" and before_dpo else stages[-1]


def size_of(recipes: dict[str, Path | None]) -> str | None:
    """The size of the paper's model that all runs' recipes are for, by their files' names; None for any other."""
    sizes = {path.stem.partition("_")[0] for path in recipes.values() if path is not None}
    return sizes.pop() if len(sizes) == 1 and sizes <= set(SIZES) else None


def published(size: str) -> tuple[list[Published], dict[str, str]]:
    """Table 5's rows for `size`, the paper's own model first and Llama 3.1 Instruct second."""
    from hermes3.evaluate.published import load

    table = load("table5")
    columns = [f"hermes3_{size}", f"llama31_{size}"]
    places = {column: list(table.columns).index(column) for column in columns}
    doubted = [one for one in table.misprints if one.column == columns[0]]
    doubts = {one.row: f"{one.printed:.2f} is printed: {one.why}" for one in doubted}
    rows = [
        Published(
            name,
            row.setting,
            {column: row.values[place] for column, place in places.items()},
            scale=row.scale,
            shots=row.shots,
            note="; ".join(note for note in (row.note, doubts.get(name, "")) if note),
            unlike=row.unlike,
        )
        for name, row in table.rows.items()
    ]
    return rows, {column: table.columns[column] for column in columns}


def what_dpo_changed(scores: dict[str, Any], size: str | None) -> list[dict[str, Any]]:
    """Table 4 beside the step from the last stage but one to the last: rows with our paired change and the paper's.

    Empty for another size than 8b, the only one that Table 4 has, and for a single stage.
    """
    if size != "8b" or len(scores["stages"]) < 2:
        return []
    from hermes3.evaluate.published import load

    ours = {row["task_label"]: row for row in scores["rows"]}
    rows = []
    for name, row in load("table4").rows.items():
        before, after = (value / row.scale for value in row.values)
        pair = ours[name]["comparisons"][-1] if name in ours else {"mark": "not comparable", "reason": "not measured"}
        if reason := row.unlike or _unlike(ours.get(name)):
            pair = {"mark": "not comparable", "reason": reason}
        found = {"name": name, "setting": row.setting, "scale": row.scale, "published": after - before, "ours": pair}
        if pair.get("low") is not None:
            found["inside"] = pair["low"] <= after - before <= pair["high"]
        rows.append(found)
    return rows


def _unlike(row: dict[str, Any] | None) -> str | None:
    """Why a change of ours stands beside none of the paper's, though our stages compare among themselves."""
    if row is not None and row["part"]:
        return "only a part of the questions"
    if row is not None and scale_of(row["task_label"]) == 1:  # MT-Bench
        return "by another judge, or in another wording"
    return None
