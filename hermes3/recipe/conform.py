"""Conformance with the paper: each key's value beside the paper's, and whether its comment tells the truth about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes3.recipe.finding import Finding
from hermes3.recipe.hardware import Hardware
from hermes3.recipe.marks import NONE, Mark, left_out, marks_of
from hermes3.recipe.paper import Paper, paper_of, rows

SAME, DIFFERENT, UNSTATED = "same", "different", "unstated"
# A recipe's own names: no choice that needs a reason
NAMES = ("output_dir",)
# Keys that make a stated one mean something else
OVERRIDES = {
    "max_steps": "num_epochs",
    "cosine_min_lr_ratio": "lr_scheduler",
    "cosine_constant_lr_ratio": "lr_scheduler",
}
NOT_STATED = object()
BATCH = ("micro_batch_size", "gradient_accumulation_steps", "hardware")
# Two keys that ask for one thing, so that one comment does for both
FSDP = ("fsdp_version", "fsdp_config")


@dataclass(frozen=True)
class Row:
    """A line of the conformance table. `status`: same, different or unstated; `reason`: the recipe's comment."""

    key: str
    paper: Any
    recipe: Any
    status: str
    reason: str


def table(path: Path, recipe: dict[str, Any], hardware: Hardware) -> tuple[list[Row], list[Finding]]:
    """The table of the recipe at `path`, and what is wrong in it. Both are empty if it claims nothing of the paper.

    Such is a recipe of one's own whose name has no row in `paper.yml`, and no comment of which says "paper". The tiny
    recipes have no row either, but comments that do; they are held to the 8B's where they claim the paper's value.
    """
    marks, row = marks_of(path), paper_of(path)
    if row is None and all(mark.whose != "paper" for mark in marks.values()):
        return [], []
    paper = row or rows()["8b_dpo" if recipe.get("rl") else "8b_sft"]
    lines, wrong = [], []
    for key, value in recipe.items():
        mark = marks.get(key, NONE)
        if key == "fsdp_config" and mark.whose is None:
            mark = marks.get("fsdp_version", NONE)
        parts = {name: part for name, part in marks.items() if name.startswith(f"{key}.")}
        line, found = _line(key, value, mark, parts, paper, hardware, stated_of(key, mark, path, paper))
        lines.append(line)
        wrong += found
    for key in [key for key, value in paper.values.items() if value is not None and key not in recipe] if row else []:
        mark = left_out(path, key)
        lines.append(Row(key, paper.values[key], None, DIFFERENT, mark.reason))
        if mark.whose is None:
            wrong.append(
                Finding(
                    key,
                    f"missing; the paper states {paper.values[key]}",
                    f'set it, or say in a comment "# ours: {key} is left out, because ..."',
                )
            )
    if row and row.global_batch:
        line, found = _batch(recipe, hardware, row, marks)
        lines.append(line)
        wrong += found
    return lines, wrong


def stated_of(key: str, mark: Mark | None, path: Path, paper: Paper) -> Any:
    """The paper's value of `key`, `NOT_STATED` if it has none, None for a key that it does without.

    For DPO, "paper, SFT" in the comment refers to the row of SFT.
    """
    if key in paper.values:
        return paper.values[key]
    if mark and mark.whose == "paper" and mark.reason.startswith("SFT"):
        size = path.stem.partition("_")[0]
        return rows().get(f"{size}_sft", rows()["8b_sft"]).values.get(key, NOT_STATED)
    return NOT_STATED


def _line(
    key: str, value: Any, mark: Mark, parts: dict[str, Mark], paper: Paper, hardware: Hardware, stated: Any
) -> tuple[Row, list[Finding]]:
    """The table's line for one key, and what is wrong with it. `parts`: the marks of the keys below it."""
    reason = mark.reason or "; ".join(dict.fromkeys(part.reason for part in parts.values() if part.reason))
    whose = mark.whose or next((part.whose for part in parts.values() if part.whose), None)
    bare = [name for name, part in (parts or {key: mark}).items() if part.whose is None] if mark.whose is None else []
    wrong = [
        Finding(
            name,
            "its line has no mark of whose value it is",
            'begin its comment with "paper, SFT:", "ours:" and the reason, or "experiment:"',
        )
        for name in bare
        if name not in NAMES
    ]
    words = paper.words.get("fsdp_config" if key in FSDP else key)
    if key == "hardware" and paper.gpus:
        value, stated = f"{hardware.gpus} {hardware.gpu}", f"{paper.gpus} GPUs"
        same = paper.gpus == hardware.gpus
        wrong += _untrue(key, value, stated, same, whose, reason)
        return Row(key, stated, value, SAME if same else DIFFERENT, reason), wrong
    if OVERRIDES.get(key) in paper.values:
        over = OVERRIDES[key]
        wrong += _untrue(key, value, f"{over}: {paper.values[over]}", False, whose, reason)
        return Row(key, f"{over}: {paper.values[over]}", value, DIFFERENT, reason), wrong
    if stated is not NOT_STATED:
        same = value == stated and _number(value) == _number(stated)
        if not (same and key in BATCH and paper.gpus != hardware.gpus):  # on other GPUs the paper's 1 is a choice
            wrong += _untrue(key, value, stated, same, whose, reason)
        return Row(key, stated, value, SAME if same else DIFFERENT, reason), wrong
    if key == "base_model":
        words = words or paper.base
    if words is None and "paper" in {whose, *(part.whose for part in parts.values())}:
        wrong.append(
            Finding(
                key,
                f"{_short(value)} is marked as the paper's, which does not state it",
                'mark it "ours:" with the reason, or add the value to hermes3/recipe/paper.yml',
            )
        )
    if words is not None:
        return Row(key, words, _short(value), SAME if whose == "paper" else DIFFERENT, reason), wrong
    return Row(key, None, _short(value), UNSTATED, reason), wrong


def _untrue(key: str, value: Any, stated: Any, same: bool, whose: str | None, reason: str) -> Iterator[Finding]:
    """What is wrong with the mark of a value that the paper states too."""
    set_it = "leave it out" if stated is None or key in OVERRIDES else f"set {stated}"
    if same and whose not in ("paper", None):
        yield Finding(key, f"marked {whose}, yet {value} is what the paper states", 'mark it "paper"')
    elif not same and whose == "paper":
        wrong, remedy = "is marked as the paper's, which states", 'or mark it "ours:" or "experiment:" with the reason'
        yield Finding(key, f"{value} {wrong} {_or_none(stated)}", f"{set_it}, {remedy}")
    elif not same and whose and not reason:
        wrong = f"{value} differs from the paper's {_or_none(stated)} without a reason"
        yield Finding(key, wrong, f"{set_it}, or say why behind the mark")


def _or_none(stated: Any) -> Any:
    return "none" if stated is None else stated


def _batch(
    recipe: dict[str, Any], hardware: Hardware, paper: Paper, marks: dict[str, Mark]
) -> tuple[Row, list[Finding]]:
    given = [recipe.get(key) for key in BATCH[:2]]
    micro, accumulation = (value if isinstance(value, int) else 1 for value in given)
    batch = micro * accumulation * hardware.gpus
    sum_ = f"{micro} x {accumulation} x {hardware.gpus} = {batch}"
    declared = [marks[key].reason for key in BATCH if marks.get(key, NONE).whose == "experiment"]
    wrong = []
    if batch != paper.global_batch and not declared:
        wrong.append(
            Finding(
                "gradient_accumulation_steps",
                f"the global batch, micro_batch_size x gradient_accumulation_steps x GPUs, is {sum_}, "
                f"and the paper's {paper.global_batch}",
                _remedy(micro, hardware.gpus, paper.global_batch),
            )
        )
    status = SAME if batch == paper.global_batch else DIFFERENT
    return Row("global batch", paper.global_batch, sum_, status, "; ".join(declared)), wrong


def _remedy(micro: int, gpus: int, batch: int) -> str:
    if batch % (micro * gpus) == 0:
        return f"set gradient_accumulation_steps: {batch // (micro * gpus)}"
    return f"choose hardware whose GPUs divide {batch}, or mark one of the three keys as an experiment"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(str(entry.get("path")) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value
