"""The epochs of a run and the one that was kept: what `hermes3 select` left in the run's folder."""

import json
from pathlib import Path
from typing import Any

from hermes3.report.results import scale_of


def read_selection(name: str, folder: Path) -> dict[str, Any] | None:
    """`folder`/select.json as a table: epochs, a row a group, the normalised means, the choice; None where none is.

    Raises ValueError naming the file when it is cut short.
    """
    path = folder / "select.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {"name": group, "values": list(scores.values()), "scale": scale_of(group)}
            for group, scores in record["scores"].items()
        ]
        return {
            "run": name,
            "suite": record["suite"],
            "epochs": [int(epoch) for epoch in record["totals"]],
            "rows": rows,
            "totals": list(record["totals"].values()),
            "chosen": record["epoch"],
            "notes": record["notes"],
        }
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{path}: no whole record of `hermes3 select`; run it again") from None
