"""Several seeds of one stage: mean and standard deviation of each score, beside what sampling alone would give."""

from statistics import mean, stdev
from typing import Any

from hermes3.report.groups import Group, score_of, why_not
from hermes3.report.results import Stage, scale_of
from hermes3.stats import Z


def seed_table(name: str, seeds: list[Stage], groups: list[Group]) -> dict[str, Any]:
    """Rows of `groups` that the first seed measured. `deviation` is the sample standard deviation (n - 1).

    `sampling` is the standard error from the questions. Seeds answer the same questions, so it is no part of the
    deviation: it says how far the whole row may lie off. A seed that cannot be compared with the first one is left out
    of the row, and `left_out` says why.
    """
    rows = []
    for group in groups:
        first = score_of(seeds[0], group)
        if first is None:
            continue
        reasons = {stage.name: why_not(seeds[0], stage, group) for stage in seeds[1:]}
        kept = [stage for stage in seeds if not reasons.get(stage.name)]
        values = [score_of(stage, group).value for stage in kept]
        rows.append(
            {
                "name": group.name,
                "scale": scale_of(group.members[0][0]),
                "values": values,
                "mean": mean(values),
                "deviation": stdev(values) if len(values) > 1 else None,
                "sampling": None if first.low is None else (first.high - first.low) / 2 / Z,
                "left_out": [f"{stage}: {reason}" for stage, reason in reasons.items() if reason],
            }
        )
    return {"stage": name, "folders": [str(stage.folder) for stage in seeds], "rows": rows}
