"""Building a mix: read, adapt, deduplicate, tokenise, fill the budgets, write.

Output folder (replaced whole, so that data which Axolotl prepared from an older mix inside it cannot survive):
    train/*.parquet     what trains: input_ids, attention_mask, labels; or prompt, chosen, rejected (preference)
    rows/*.parquet      the same rows in the same order, for people: id, source, category, messages, counts, hash
    rejects/*.parquet   every row that was left out: id, source, stage, reason, detail
    manifest.json       the spec, hashes of all that went in and came out, counts, versions
    card.md             the mix at a glance
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hermes3.chat.prompts import to_json
from hermes3.files import new_folder
from hermes3.messages import BadRow
from hermes3.mix import spec as specs
from hermes3.mix import write
from hermes3.mix.adapters import ADAPTERS, Row
from hermes3.mix.tokens import reject, tokenise


def build(path: Path, out: Path, data_root: Path = Path(), quiet: bool = False) -> dict[str, Any]:
    """Build the mix that `path` declares into the folder `out`; return its manifest. `ValueError` on bad input."""
    spec = specs.load(path)
    files = {source.name: data_root / source.path for _, source in spec.sources()}
    for source, file in files.items():
        if not file.is_file():
            raise ValueError(f"{path}: source {source}: no file {file}; mind --data-root (now {data_root.absolute()})")
    if not (spec.tokenizer / "tokenizer.json").is_file():
        raise ValueError(f"{path}: tokenizer: no {spec.tokenizer}/tokenizer.json; run `hermes3 tokenizer build` first")

    rejects: list[Row] = []
    counts: dict[str, int] = {}
    with Progress(disable=quiet) as progress:
        rows = []
        for category, source in progress.track(spec.sources(), description="read"):
            read = list(_read(files[source.name], category, source, rejects))
            counts[source.name] = len(read) + sum(r["source"] == source.name for r in rejects)
            rows += read
        rows = _deduplicate(rows, rejects)
        rows = tokenise(rows, spec, rejects, progress)
    rows, shortfalls = _fill_budgets(rows, spec, rejects)
    if not rows:
        raise ValueError(f"{path}: no row is left; see why: {_reasons(rejects)}")
    with new_folder(out) as tmp:
        return write.mix(tmp, spec, files, rows, rejects, counts, shortfalls)


def _read(file: Path, category: str, source: specs.Source, rejects: list[Row]) -> Iterator[Row]:
    adapt = ADAPTERS[source.adapter]
    for number, raw in _raw_rows(file):
        row_id = str(raw.get("id", "")) if isinstance(raw, dict) else ""
        origin = {"id": row_id or f"{source.name}-{number:07d}", "source": source.name}
        try:
            if isinstance(raw, json.JSONDecodeError):
                raise BadRow("not_json", f"{file.name}:{number}: {raw}")
            row = adapt(raw)
        except BadRow as bad:
            rejects.append(reject(origin, "adapt", bad.reason, bad.detail))
            continue
        yield {**row, **origin, "category": category, "hash": _hash(row)}


def _raw_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(line or index from 1, row) of a jsonl file or of a json file that holds a list."""
    if file.suffix == ".json":
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError(f"{file}: a .json source holds a list of rows")
        yield from enumerate(rows, 1)
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, error


def read_row(file: Path, number: int, adapter: str) -> Row:
    """The conversation in row `number` (from 1) of `file`. `ValueError` when there is no such file, row or adapter."""
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter {adapter}: not one of {', '.join(ADAPTERS)}")
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    raw = next((raw for at, raw in _raw_rows(file) if at == number), None)
    if raw is None:
        raise ValueError(f"{file}: no row {number}")
    if isinstance(raw, json.JSONDecodeError):
        raise ValueError(f"{file}:{number}: {raw}")
    return ADAPTERS[adapter](raw)


def _hash(row: Row) -> str:
    """Hash of what a row says, whatever its source."""
    said = {key: row.get(key) for key in ("messages", "tools", "chosen", "rejected")}
    return hashlib.sha256(to_json(said).encode()).hexdigest()


def _deduplicate(rows: list[Row], rejects: list[Row]) -> list[Row]:
    """Keep the first of rows that say the same."""
    first: dict[str, Row] = {}
    for row in rows:
        kept = first.setdefault(row["hash"], row)
        if kept is not row:
            rejects.append(reject(row, "dedup", "exact_duplicate", f"of {kept['id']} in {kept['source']}"))
    return list(first.values())


def _fill_budgets(rows: list[Row], spec: specs.Spec, rejects: list[Row]) -> tuple[list[Row], dict[str, str]]:
    """Rows in an order drawn by hash and seed, each category up to its budget, to within one conversation.

    The order depends on seed and content alone: not on the number of workers, nor on a library's random stream.
    """
    rows = sorted(rows, key=lambda row: hashlib.sha256(f"{spec.seed}:{row['hash']}".encode()).digest())
    used = dict.fromkeys(spec.categories, 0)
    kept = []
    for row in rows:
        budget = spec.categories[row["category"]].tokens
        if budget is not None and used[row["category"]] + row["n_tokens"] / 2 > budget:
            rejects.append(reject(row, "budget", "over_budget", f"{row['category']} has its {budget} tokens"))
            continue
        used[row["category"]] += row["n_tokens"]
        kept.append(row)
    longest = max((row["n_tokens"] for row in kept), default=0)
    shortfalls = {
        name: f"{used[name]:,} of {category.tokens:,} tokens available; add a source or lower the budget"
        for name, category in spec.categories.items()
        if category.tokens is not None and used[name] + longest < category.tokens
    }
    return kept, shortfalls


def _reasons(rejects: list[Row]) -> str:
    return ", ".join(sorted({f"{r['stage']}/{r['reason']}" for r in rejects})) or "the sources are empty"
