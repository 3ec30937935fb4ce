"""What the numbers say, in sentences: did it reproduce, and what made the difference."""

from itertools import pairwise
from statistics import median
from typing import Any

from hermes3.page.text import ALIGNMENT, interval, join, p_value, percent, signed
from hermes3.report.curves import LN2

# NeMo-RL's recipe test holds ln 2 to 1e-4; log-probabilities in bf16 lose a digit of that.
FIRST_LOSS_TOLERANCE = 1e-3
UNCLEAR = "no clear difference"
PREFERENCE = "preference"  # in the name of a task that measures what DPO trains


def verdict(report: dict[str, Any]) -> list[str]:
    """The sentences over `report` (`build.collect`): the answer first, or last where no paper is compared."""
    scores, runs = report["scores"], report["runs"]
    answer = reproduced(report["paper"])
    compared = "rows" in report["paper"]
    sentences = [answer, against_others(report["paper"])] if compared else []
    sentences.append(means(scores))
    main = [row for row in scores["rows"] if row["suite"] != ALIGNMENT]
    sentences += [step(main, scores["stages"], place) for place in range(len(scores["stages"]) - 1)]
    sentences += alignment(scores["alignment"], scores["stages"])
    sentences += [preference(row) for row in scores["rows"] if PREFERENCE in row["task"]]
    sentences += [seeds(table) for table in report["seeds"]]
    sentences += [selection(table) for table in report["selections"]]
    sentences += [cost(row) for row in report["costs"]]
    sentences += [first_loss(run) for run in runs if run["kind"] == "preference"]
    sentences += [
        f"{run['name']} logged {run['not_finite']} losses that are not finite: do not use this run."
        for run in runs
        if run["not_finite"]
    ]
    sentences += [] if compared else [answer]
    return [sentence for sentence in sentences if sentence]


def reproduced(paper: dict[str, Any]) -> str:
    """The answer, from the table against the paper's first column.

    Not in full where a row is worse after Holm's correction, or where no row is but their mean difference lies below 0.
    """
    if "rows" not in paper:
        return f"Not compared with the paper: {paper['reason']}."
    column, words = next(iter(paper["columns"].items()))
    rows = [(row, row["against"][column]) for row in paper["rows"]]
    compared = [(row, pair) for row, pair in rows if "p" in pair]
    apart = not_comparable(rows)
    if not compared:
        return f"Did it reproduce? It cannot be said: none of the table's rows ({len(rows)}) can be compared. {apart}"
    worse = [(row, pair) for row, pair in compared if pair["mark"] == "worse"]
    better = [(row, pair) for row, pair in compared if pair["mark"] == "better"]
    mean = paper["mean"]
    drifts = not worse and mean is not None and mean["high"] < 0
    count = f"{len(compared)} row{'s' if len(compared) > 1 else ''}"
    of = count if len(compared) == len(rows) else f"{count} compared (of {len(rows)})"
    than = f"{paper['stage']} is worse than {words} as published"
    if worse:
        answer = f"It did not reproduce in full: {than} on {len(worse)} of {of}: {_gaps(worse)}."
    elif drifts:
        answer = f"It did not reproduce in full: {than} on none of {of}, but over all of them together."
    else:
        far = "It reproduced" if len(compared) == len(rows) else "It reproduced as far as it was measured"
        answer = f"{far}: {than} on none of {of}."
    if better:
        answer += f" It is better on {_gaps(better)}."
    if mean is not None:
        answer += f" The mean difference is {signed(mean['value'])} points ({interval(mean)})."
        halves = [50 * (pair["high"] - pair["low"]) for row, pair in compared if row["scale"] == 100]
        answer += f" A single row's interval is ±{median(halves):.1f} points in the median: smaller gaps go unseen."
    return f"{answer} {apart}".strip()


def against_others(paper: dict[str, Any]) -> str:
    """One sentence a further column, as Llama 3.1 Instruct's."""
    sentences = []
    for column, words in list(paper.get("columns", {}).items())[1:]:
        pairs = [(row, row["against"][column]) for row in paper["rows"] if "p" in row["against"][column]]
        if pairs:
            marks = [pair["mark"] for _, pair in pairs]
            counts = [f"{mark} on {marks.count(mark)}" for mark in ("better", "same", "worse") if mark in marks]
            sentences.append(f"Against {words} as published, {paper['stage']} is {join(counts)} of {len(pairs)} rows.")
    return " ".join(sentences)


def not_comparable(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """`Not comparable: GPQA and MuSR (not measured).`, rows by their reason."""
    reasons: dict[str, list[str]] = {}
    for row, pair in rows:
        if pair["mark"] == "not comparable":
            reasons.setdefault(pair["reason"], []).append(_name(row))
    shown = "; ".join(f"{join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not comparable: {shown}." if shown else ""


def _gaps(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    return join([f"{row['name']} ({signed(pair['difference'], row['scale'])})" for row, pair in pairs])


def means(scores: dict[str, Any]) -> str:
    """The mean of each stage, and what was left out of it."""
    found = scores["means"]
    left_out = "; ".join(f"{task['task']}: {task['reason']}" for task in found["left_out"])
    aside = f" Left out of the mean: {left_out}." if left_out else ""
    aside += f" Asked of only a part of the questions: {join(found['part'])}." if found["part"] else ""
    if not found["stages"]:
        return f"No mean is given: no task was measured alike at every stage.{aside}"
    tasks = len(found["tasks"])
    shown = ", ".join(f"{name} {percent(m['value'])} ({interval(m)})" for name, m in found["stages"].items())
    return f"Mean over {tasks} {'score' if tasks == 1 else 'scores'}: {shown}.{aside}"


def step(rows: list[dict[str, Any]], stages: list[str], place: int) -> str:
    """What changed from the stage at `place` to the next, by the paired tests on the same documents."""
    pairs = [(row, row["comparisons"][place]) for row in rows]
    before, after = stages[place : place + 2]
    groups = {
        "raised {}": [_changed(row, pair) for row, pair in pairs if pair["mark"] == "better"],
        "lowered {}": [_changed(row, pair) for row, pair in pairs if pair["mark"] == "worse"],
        "left {} without a clear difference": [_name(row) for row, pair in pairs if pair["mark"] == UNCLEAR],
        "changed {}, which was not tested": [
            _changed(row, pair) for row, pair in pairs if pair["mark"] == "not tested"
        ],
    }
    clauses = [words.format(join(rows)) for words, rows in groups.items() if rows]
    sentence = f"Against {before}, {after} {'; it '.join(clauses)}." if clauses else ""
    apart = not_comparable(pairs)
    return f"{sentence} {apart.replace('Not comparable', f'Not comparable between {before} and {after}')}".strip()


def alignment(rows: list[dict[str, Any]], stages: list[str]) -> list[str]:
    """What changed in neutral alignment from a stage that was measured to the next that was, or which one was."""
    measured = [stage for stage in stages if any(row["scores"].get(stage) for row in rows)]
    steps = [
        step(rows, stages, place)
        for place, (before, after) in enumerate(pairwise(stages))
        if before in measured and after in measured
    ]
    if steps or not measured:
        return [f"Neutral alignment: {found[0].lower()}{found[1:]}" for found in steps if found]
    samples = max(score["n"] for row in rows for score in row["scores"].values() if score)
    return [f"Neutral alignment was measured on {join(measured)} alone, by {samples} samples a task at the most."]


def _changed(row: dict[str, Any], pair: dict[str, Any]) -> str:
    return f"{_name(row)} ({signed(pair['change'], row['scale'])})"


def _name(row: dict[str, Any]) -> str:
    return row["name"] if "name" in row else row["task_label"]


def preference(row: dict[str, Any]) -> str:
    """How often the chosen answer is the likelier one, over the stages."""
    values = ", ".join(f"{name} {percent(score['value'])}" for name, score in row["scores"].items() if score)
    last = row["comparisons"][-1] if row["comparisons"] else None
    if last is None:
        return f"{row['task_label']}: {values}."
    if "p_holm" not in last:
        return f"{row['task_label']}: {values}; the last step is {last['mark']} ({last['reason']})."
    return (
        f"{row['task_label']}: {values}; {last['before']} to {last['after']} is {signed(last['change'])} points, "
        f"{last['mark']} ({p_value(last['p_holm'])} after Holm)."
    )


def seeds(table: dict[str, Any]) -> str:
    """How far apart the seeds of a stage lie: the median row, and the widest."""
    spread = [(row["deviation"], row) for row in table["rows"] if row["deviation"] is not None and row["scale"] == 100]
    if not spread:
        return f"The seeds of {table['stage']} cannot be compared: see their table."
    widest, row = max(spread, key=lambda pair: pair[0])
    middle = median(deviation for deviation, _ in spread)
    return (
        f"{len(table['folders'])} seeds of {table['stage']} deviate by {100 * middle:.1f} points in the median row, "
        f"most on {row['name']} ({100 * widest:.1f}); all comparisons are the first seed's."
    )


def selection(table: dict[str, Any]) -> str:
    """Which epoch was kept."""
    total = table["totals"][table["epochs"].index(table["chosen"])]
    mean = "" if total is None else f": its normalised mean over {len(table['rows'])} groups is {total:.2f} of 100"
    return f"Epoch {table['chosen']} of {len(table['epochs'])} of {table['run']} was kept{mean}."


def cost(row: dict[str, Any]) -> str:
    """GPU-hours of a run beside the paper's; nothing where either is unknown."""
    if row["measured"] is None or row["paper"] is None:
        return ""
    ratio = row["measured"] / row["paper"]
    return f"{row['run']} took {row['measured']:,.0f} GPU-hours, {ratio:.2f} times the paper's {row['paper']:,.0f}."


def first_loss(run: dict[str, Any]) -> str:
    """Whether preference training began with its own reference: then the loss is ln 2."""
    loss, at = run["first_loss"], run["first_step"]
    if loss is None:
        return ""
    found = f"{run['name']}'s first loss, at step {at}, is {loss:.4f}; ln 2 is {LN2:.4f}"
    if abs(loss - LN2) <= FIRST_LOSS_TOLERANCE:
        return f"{found}: the policy starts as its own reference, as it must."
    if at > 1:
        return f"{found}; the entry averages {at} steps, so the start itself was not logged."
    return (
        f"{found}: {abs(loss - LN2):.4f} apart. Dropout and NEFTune noise move the policy a little before the first "
        "update; a wide gap means that the reference is another model."
    )
