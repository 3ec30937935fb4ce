"""What the numbers say, in sentences: did it reproduce, what made the difference. words.jinja has the longer ones."""

import re
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from hermes3.page.shell import environment
from hermes3.page.text import FILTERS, interval, join, percent, signed
from hermes3.report import names
from hermes3.report.stages import ALIGNMENT

SENTENCES = Path(__file__).with_name("words.jinja")
# NeMo-RL's recipe test holds ln 2 to 1e-4; log-probabilities in bf16 lose a digit of that.
LN2, FIRST_LOSS_TOLERANCE = log(2), 1e-3
OTHERWISE = "under another protocol"  # a mark: compared, and no part of the verdict
SMOKE = 10  # questions per task: fewer show that alignment tasks run, and no more
FLOOR = 0.5  # of the paper's rows: fewer give no answer
Row = dict[str, Any]


def say(macro: str, *facts: Any, **more: Any) -> str:
    """A sentence of words.jinja. Its line breaks become blanks."""
    template = environment(SENTENCES, FILTERS | {"listed": join}).get_template(SENTENCES.name)
    return re.sub(r"[ \n]+", " ", getattr(template.module, macro)(*facts, **more)).strip()


def verdict(report: dict[str, Any]) -> list[str]:
    """The sentences over `report` (`build.write_report`): the answer first, or last where no paper is compared."""
    scores, paper = report["scores"], report["paper"]
    answer = reproduced(paper)
    main = [row for row in scores["rows"] if row["suite"] != ALIGNMENT]
    sentences = [say("means", scores["means"])]
    sentences += [step(main, place, *pair) for place, pair in enumerate(pairwise(scores["stages"]))]
    sentences += alignment(scores["alignment"], scores["stages"])
    for run in report["runs"]:
        if run["kind"] == "preference" and run["first_loss"] is not None:
            sentences.append(first_loss(run))
        if run["not_finite"]:
            sentences.append(f"{run['name']} logged {run['not_finite']} losses that are not finite: do not use it.")
    sentences = [answer, *sentences] if "rows" in paper else [*sentences, answer]
    return [sentence for sentence in sentences if sentence]


def reproduced(paper: dict[str, Any]) -> str:
    """The answer, from the table against the paper's first column; how many rows were compared comes before it.

    Too few rows (`FLOOR`) give no answer. Else: not in full where a row is lower after Holm's correction, or the mean
    over all rows is, and not shown to lie within the suite's margin; yes where the mean difference is; else open.
    """
    if "rows" not in paper:
        return f"Not compared with the paper: {paper['reason']}."
    column, words = next(iter(paper["columns"].items()))
    rows = [(row, row["against"][column]) for row in paper["rows"]]
    compared = [(row, pair) for row, pair in rows if "p" in pair]
    facts: dict[str, Any] = {"n": len(compared), "few": len(compared) < FLOOR * len(rows)}
    for mark in ("worse", "better"):
        apart = [(row, pair) for row, pair in compared if pair["mark"] == mark and not pair["equal"]]
        facts[mark] = [f"{row['name']} ({signed(pair['difference'], row['scale'])})" for row, pair in apart]
    shares = [pair for row, pair in compared if row["scale"] == 100]
    facts |= {"equal": sum(pair["equal"] for pair in shares)}
    facts |= {"seen": median(100 * pair["detectable"] for pair in shares) if shares else None}
    return f"{say('reproduced', paper, words, **facts)} {not_comparable(rows)}".strip()


def not_comparable(rows: list[tuple[Row, Row]]) -> str:
    """`Not comparable: GPQA and MuSR (not measured).`, rows by their reason."""
    reasons: dict[str, list[str]] = {}
    for row, pair in rows:
        if pair["mark"] in ("not comparable", OTHERWISE):
            reason = pair["reason"] if pair["mark"] != OTHERWISE else f"{OTHERWISE}: {pair['reason']}"
            reasons.setdefault(reason, []).append(row.get("name") or row["task_label"])
    listed = "; ".join(f"{join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not comparable: {listed}." if listed else ""


def step(rows: list[Row], place: int, before: str, after: str) -> str:
    """What changed from the stage at `place` to the next, by the paired tests on the same documents."""
    pairs = [(row, row["comparisons"][place]) for row in rows]
    clauses = []
    for words, one in names("changes").items():
        alike = [(row, pair) for row, pair in pairs if pair["mark"] == one["mark"]]
        alike = [(row, pair) for row, pair in alike if "up" not in one or (pair["change"] > 0) == one["up"]]
        listed = [f"{row['task_label']} ({signed(pair['change'], row['scale'])})" for row, pair in alike]
        listed = [row["task_label"] for row, _ in alike] if "left" in words else listed
        clauses += [words.format(join(listed))] if listed else []
    sentence = f"Against {before}, {after} {'; it '.join(clauses)}." if clauses else ""
    apart = not_comparable(pairs)
    return f"{sentence} {apart.replace('Not comparable', f'Not comparable between {before} and {after}')}".strip()


def alignment(rows: list[Row], stages: list[str]) -> list[str]:
    """What changed in neutral alignment from a stage that was measured to the next that was, or which one was."""
    if samples := smoke(rows):
        return [f"Neutral alignment: a smoke run of {samples} questions per task, which says nothing of the model."]
    measured = [stage for stage in stages if any(row["scores"].get(stage) for row in rows)]
    steps = [step(rows, place, *pair) for place, pair in enumerate(pairwise(stages)) if {*pair} <= {*measured}]
    if steps or not measured:
        return [f"Neutral alignment: {sentence[0].lower()}{sentence[1:]}" for sentence in steps if sentence]
    samples = max(score["n"] for row in rows for score in row["scores"].values() if score)
    return [f"Neutral alignment was measured on {join(measured)} alone, with at most {samples} samples per task."]


def smoke(rows: list[Row]) -> int:
    """The most questions that a row was asked, if they are so few that they show no more than that the tasks run."""
    most = max((score["n"] for row in rows for score in row["scores"].values() if score), default=0)
    return most if most < SMOKE else 0


def first_loss(run: dict[str, Any]) -> str:
    """Whether preference training began with its own reference: then the loss is ln 2."""
    return say("first_loss", run, LN2, FIRST_LOSS_TOLERANCE)


def summary(report: dict[str, Any]) -> str:
    """The answer, if there is a paper to compare with, and the mean score of each stage, for the terminal."""
    answer = report["verdict"][0] + "\n" if "rows" in report["paper"] else ""
    table = report["scores"]["means"]
    width = max(map(len, table["stages"]), default=0)
    lines = [f"{name:<{width}}  {percent(one['value'])} ({interval(one)})" for name, one in table["stages"].items()]
    part = f" (only a part of the questions of {', '.join(table['part'])})" if table["part"] else ""
    tasks = f"Mean of {', '.join(table['tasks'])}{part}, with 95 % intervals:"
    head = answer + (tasks if lines else say("means", table))
    return "\n".join([head, *lines]).replace("\u00a0", " ").replace("\u2009", "") + "\n"
