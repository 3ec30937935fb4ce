"""What the numbers say, in sentences: did it reproduce, what made the difference."""

from itertools import pairwise
from math import log
from statistics import median
from typing import Any

from hermes3.page.text import interval, join, percent, signed
from hermes3.report import names
from hermes3.report.stages import ALIGNMENT

LN2 = log(2)
FLOOR = 0.5  # of the paper's rows: fewer give no answer
# NeMo-RL's recipe test holds ln 2 to 1e-4; log-probabilities in bf16 lose a digit of that.
FIRST_LOSS_TOLERANCE = 1e-3
Row = dict[str, Any]


def verdict(report: dict[str, Any]) -> list[str]:
    """The sentences over `report` (`build.write_report`): the answer first, or last where no paper is compared."""
    scores, paper = report["scores"], report["paper"]
    answer = reproduced(paper)
    main = [row for row in scores["rows"] if row["suite"] != ALIGNMENT]
    sentences = [means(scores["means"])]
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
    over all rows is; yes where the mean difference is equivalent within the suite's margin; and open in between.
    """
    if "rows" not in paper:
        return f"Not compared with the paper: {paper['reason']}."
    column, words = next(iter(paper["columns"].items()))
    rows = [(row, row["against"][column]) for row in paper["rows"]]
    compared = [(row, pair) for row, pair in rows if "p" in pair]
    gaps = [(pair["mark"], f"{row['name']} ({signed(pair['difference'], row['scale'])})") for row, pair in compared]
    worse, better = ([gap for mark, gap in gaps if mark == wanted] for wanted in ("worse", "better"))
    mean, margin, stage = paper["mean"], f"±{100 * paper['margin']:g} points", paper["stage"]
    answer = f"{len(compared)} of the {len(rows)} rows of the paper's table were compared: "
    if len(compared) < FLOOR * len(rows):
        answer += f"too few to say whether {stage} reproduced {words}."
        answer += f" On them, it is lower on {join(worse)}." if worse else ""
    elif worse:
        answer += f"it did not reproduce in full. {stage} is lower than {words} on {join(worse)}."
    elif mean is not None and mean["high"] < 0:
        answer += f"it did not reproduce in full. {stage} is lower than {words} over all rows together."
    elif mean is not None and mean["equal"]:
        answer += f"it reproduced. The mean of {stage} lies within {margin} of {words}, and no row is clearly lower."
    else:
        answer += f"it stays open whether {stage} reproduced {words}. No row is clearly lower, but the mean difference"
        answer += f" may lie beyond {margin}."
    answer += f" It is higher on {join(better)}." if better else ""
    if mean is not None:
        equal = sum(pair["equal"] for row, pair in compared if row["scale"] == 100)
        seen = median(100 * pair["detectable"] for row, pair in compared if row["scale"] == 100)
        answer += (
            f" The mean difference is {signed(mean['value'])} points ({interval(mean)}). By itself, {equal} of the"
        )
        answer += (
            f" rows is shown to lie within {margin}; a row's questions can show a gap of {seen:.1f} points (median)."
        )
    return f"{answer} {not_comparable(rows)}".strip()


def not_comparable(rows: list[tuple[Row, Row]]) -> str:
    """`Not comparable: GPQA and MuSR (not measured).`, rows by their reason."""
    reasons: dict[str, list[str]] = {}
    for row, pair in rows:
        if pair["mark"] == "not comparable":
            reasons.setdefault(pair["reason"], []).append(row.get("name") or row["task_label"])
    listed = "; ".join(f"{join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not comparable: {listed}." if listed else ""


def means(table: dict[str, Any]) -> str:
    """The mean of each stage, and what was left out of it."""
    left_out = "; ".join(f"{task['task']}: {task['reason']}" for task in table["left_out"])
    aside = f" Left out of the mean: {left_out}." if left_out else ""
    aside += f" Asked of only a part of the questions: {join(table['part'])}." if table["part"] else ""
    if not table["stages"]:
        return f"No mean is given: no task was measured alike at every stage.{aside}"
    tasks = len(table["tasks"])
    values = ", ".join(f"{name} {percent(m['value'])} ({interval(m)})" for name, m in table["stages"].items())
    return f"Mean over {tasks} {'score' if tasks == 1 else 'scores'}: {values}.{aside}"


def step(rows: list[Row], place: int, before: str, after: str) -> str:
    """What changed from the stage at `place` to the next, by the paired tests on the same documents."""
    pairs = [(row, row["comparisons"][place]) for row in rows]
    clauses = []
    for words, one in names("changes").items():
        changes = [(row["task_label"], signed(p["change"], row["scale"])) for row, p in pairs if _is(p, **one)]
        listed = [name if "left" in words else f"{name} ({change})" for name, change in changes]
        clauses += [words.format(join(listed))] if listed else []
    sentence = f"Against {before}, {after} {'; it '.join(clauses)}." if clauses else ""
    apart = not_comparable(pairs)
    return f"{sentence} {apart.replace('Not comparable', f'Not comparable between {before} and {after}')}".strip()


def _is(pair: Row, mark: str, up: bool | None = None) -> bool:
    """Whether the pair has this mark, and its score went up, or down; better and worse do not say which."""
    return pair["mark"] == mark and (up is None or (pair["change"] > 0) == up)


def alignment(rows: list[Row], stages: list[str]) -> list[str]:
    """What changed in neutral alignment from a stage that was measured to the next that was, or which one was."""
    measured = [stage for stage in stages if any(row["scores"].get(stage) for row in rows)]
    steps = [step(rows, place, *pair) for place, pair in enumerate(pairwise(stages)) if {*pair} <= {*measured}]
    if steps or not measured:
        return [f"Neutral alignment: {sentence[0].lower()}{sentence[1:]}" for sentence in steps if sentence]
    samples = max(score["n"] for row in rows for score in row["scores"].values() if score)
    return [f"Neutral alignment was measured on {join(measured)} alone, with at most {samples} samples per task."]


def first_loss(run: dict[str, Any]) -> str:
    """Whether preference training began with its own reference: then the loss is ln 2."""
    loss, at = run["first_loss"], run["first_step"]
    fact = f"{run['name']}'s first loss, at step {at}, is {loss:.4f}; ln 2 is {LN2:.4f}"
    if abs(loss - LN2) <= FIRST_LOSS_TOLERANCE:
        return f"{fact}: the policy starts as its own reference, as it must."
    if at > 1:
        return f"{fact}; the entry averages {at} steps, so the start itself was not logged."
    fact += f": {abs(loss - LN2):.4f} apart. Dropout and NEFTune noise move the policy a little before the first update"
    return f"{fact}; a wide gap means that the reference is another model."


def summary(report: dict[str, Any]) -> str:
    """The answer, if there is a paper to compare with, and the mean score of each stage, for the terminal."""
    answer = report["verdict"][0] + "\n" if "rows" in report["paper"] else ""
    table = report["scores"]["means"]
    width = max(map(len, table["stages"]), default=0)
    lines = [f"{name:<{width}}  {percent(one['value'])} ({interval(one)})" for name, one in table["stages"].items()]
    tasks = f"Mean of {', '.join(table['tasks'])}, with 95 % intervals:"
    head = answer + (tasks if lines else "No task was measured at every stage.")
    return "\n".join([head, *lines]).replace("\u00a0", " ").replace("\u2009", "") + "\n"
