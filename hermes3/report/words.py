"""What the numbers say, in sentences: did it reproduce, what made the difference. words.jinja has their words."""

import re
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from hermes3.page.shell import environment
from hermes3.page.text import FILTERS, join, signed
from hermes3.report.tables import ALIGNMENT, NAMES, OTHERWISE, Row

SENTENCES = Path(__file__).with_name("words.jinja")
SMOKE = 10  # questions per task: fewer show that alignment tasks run, and no more
FLOOR = 0.5  # of the paper's rows: fewer give no answer


def say(macro: str, *facts: Any, **more: Any) -> str:
    """A sentence of words.jinja. Its line breaks become blanks."""
    template = environment(SENTENCES, FILTERS | {"listed": join}).get_template(SENTENCES.name)
    return re.sub(r"[ \n]+", " ", getattr(template.module, macro)(*facts, **more)).strip()


def verdict(report: dict[str, Any]) -> list[str]:
    """The sentences over `report` (`build.write_report`): the answer first, or last where no paper is compared."""
    scores, paper = report["scores"], report["paper"]
    main = [row for row in scores["rows"] if row["suite"] != ALIGNMENT]
    sentences = [say("means", scores["means"])]
    sentences += [step(main, place) for place in range(len(scores["stages"]) - 1)]
    sentences += alignment(scores["alignment"], scores["stages"])
    for run in report["runs"]:
        sentences += [say("first_loss", run), say("not_finite", run)]
    sentences.insert(0 if "rows" in paper else len(sentences), reproduced(paper))
    return [sentence for sentence in sentences if sentence]


def reproduced(paper: dict[str, Any]) -> str:
    """The answer, from the table against the paper's first column; too few rows (`FLOOR`) give none."""
    if "rows" not in paper:
        return f"Not compared with the paper: {paper['reason']}."
    column, model = next(iter(paper["columns"].items()))
    rows = [(row, row["against"][column]) for row in paper["rows"]]
    compared = [(row, pair) for row, pair in rows if "p" in pair]
    facts: dict[str, Any] = {"n": len(compared), "few": len(compared) < FLOOR * len(rows)}
    for mark in ("worse", "better"):
        apart = [(row, pair) for row, pair in compared if pair["mark"] == mark and not pair["equal"]]
        facts[mark] = [f"{row['name']} ({signed(pair['difference'], row['scale'])})" for row, pair in apart]
    shares = [pair for row, pair in compared if row["scale"] == 100]
    seen = [100 * pair["detectable"] for pair in shares]
    facts |= {"equal": sum(pair["equal"] for pair in shares), "seen": median(seen or [0])}
    return f"{say('reproduced', paper, model, **facts)} {not_comparable(rows)}".strip()


def not_comparable(rows: list[tuple[Row, Row]], between: str = "") -> str:
    """`Not comparable: GPQA and MuSR (not measured).`, rows by their reason."""
    reasons: dict[str, list[str]] = {}
    for row, pair in rows:
        if pair["mark"] in ("not comparable", OTHERWISE):
            reasons.setdefault(pair["reason"], []).append(row.get("name") or row["task_label"])
    listed = "; ".join(f"{join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not comparable{between}: {listed}." if listed else ""


def step(rows: list[Row], place: int) -> str:
    """What changed from the stage at `place` to the next, by the paired tests on the same documents."""
    pairs = [(row, row["comparisons"][place]) for row in rows]
    clauses = []
    for words, one in NAMES["changes"].items():
        alike = [(row, pair) for row, pair in pairs if pair["mark"] == one["mark"]]
        alike = [(row, pair) for row, pair in alike if one.get("up") in (None, pair["change"] > 0)]
        listed = [f"{row['task_label']} ({signed(pair['change'], row['scale'])})" for row, pair in alike]
        listed = [row["task_label"] for row, _ in alike] if "left" in words else listed
        clauses += [words.format(join(listed))] if listed else []
    before, after = (pairs[0][1][side] if pairs else "" for side in ("before", "after"))
    sentence = f"Against {before}, {after} {'; it '.join(clauses)}." if clauses else ""
    return f"{sentence} {not_comparable(pairs, f' between {before} and {after}')}".strip()


def alignment(rows: list[Row], stages: list[str]) -> list[str]:
    """What changed in neutral alignment from a stage that was measured to the next that was, or which one was."""
    if samples := smoke(rows):
        return [f"Neutral alignment: a smoke run of {samples} questions per task, which says nothing of the model."]
    measured = [stage for stage in stages if any(row["scores"].get(stage) for row in rows)]
    steps = [step(rows, place) for place, pair in enumerate(pairwise(stages)) if {*pair} <= {*measured}]
    if steps or not measured:
        return [f"Neutral alignment: {sentence[0].lower()}{sentence[1:]}" for sentence in steps if sentence]
    return [f"Neutral alignment was measured on {join(measured)} alone."]


def smoke(rows: list[Row]) -> int:
    """The most questions that a row was asked, if they are so few that they show no more than that the tasks run."""
    most = max((score["n"] for row in rows for score in row["scores"].values() if score), default=0)
    return most if most < SMOKE else 0
