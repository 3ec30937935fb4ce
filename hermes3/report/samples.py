"""Reading lm-eval's `samples_<task>_<date>.jsonl`, a line at a time: one of MMLU-PRO holds ten prompts, 40 KB."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = float | list[float]


@dataclass
class Samples:
    """What the report needs of the samples of one task under one filter.

    `docs`: doc_id -> (hash of the document, hash of its prompt); `values`: metric -> doc_id -> value, a number or
    a list of 0 and 1 (IFEval's instructions).
    """

    docs: dict[int, tuple[str, str]] = field(default_factory=dict)
    values: dict[str, dict[int, Value]] = field(default_factory=dict)


def read_samples(path: Path) -> dict[str, Samples]:
    """Samples by filter: lm-eval logs every document once for each filter.

    Raises ValueError, naming file and line, when a line is no whole record or a document comes twice.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run lm-eval with --log_samples, which stage comparisons need")
    found: dict[str, Samples] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = _record(line)
                doc, samples = record["doc_id"], found.setdefault(record["filter"], Samples())
                hashes = (record["doc_hash"], record.get("prompt_hash", ""))
                values = {metric: record[metric] for metric in record["metrics"]}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}:{number}: no whole record; the file is cut short: evaluate again") from None
            if doc in samples.docs:
                raise ValueError(
                    f"{path}:{number}: document {doc} comes twice; two runs wrote one file: evaluate again elsewhere"
                )
            samples.docs[doc] = hashes
            for metric, value in values.items():
                if isinstance(value, bool | int | float) or (isinstance(value, list) and _flags(value)):
                    samples.values.setdefault(metric, {})[doc] = value
    return found


def _record(line: bytes) -> dict[str, Any]:
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # lm-eval writes NaN and Infinity, which JSON has not


def _flags(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, bool | int) for value in values)
