"""What a build left out, looked at by eye: a sample of each stage, both texts side by side, each marked right or wrong.
The marks are kept in audit.json of the mix; the share that was right, with its interval, is on the card."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hermes3.files import read_json, rewrite
from hermes3.messages import BadRow, Message
from hermes3.mix import card, lock, manifest
from hermes3.mix.adapt import ADAPTERS, Row
from hermes3.mix.read import chunks, parse
from hermes3.mix.shard import id_of
from hermes3.mix.spec import Source, Spec
from hermes3.stats import wilson

STAGES = ("filter", "dedup", "decontaminate")  # those that judge what a row says
SEED = 42
FILE = "audit.json"
Marks = dict[str, dict[str, bool]]  # stage: {SOURCE/ID: whether it was right to leave the row out}
Place = tuple[str, str]  # source, id


def sample(mix: Path, n: int) -> Iterator[tuple[dict[str, str], Place, Place | None]]:
    """`n` rejects of each stage, drawn by a fixed seed: the record, its row, and the row that it repeats, if any."""
    rejects = pq.read_table(mix / "rejects").to_pylist()
    for stage in STAGES:
        of_stage = [one for one in rejects if one["stage"] == stage]
        for one in random.Random(SEED).sample(of_stage, min(n, len(of_stage))):
            repeats = None
            if stage == "dedup":  # `of ID in SOURCE, asked 0.93`
                other, _, source = one["detail"].removeprefix("of ").rpartition(" in ")
                repeats = source.partition(",")[0], other
            yield one, (one["source"], one["id"]), repeats


def texts(mix: Path, places: set[Place], data_root: Path) -> dict[Place, str]:
    """What the rows at `places` say, read again from the sources; those that are not there any more are left out."""
    record = manifest.read(mix)
    by_place = {}
    for _, source in Spec.model_validate(record["spec"]).sources():
        if wanted := {row for name, row in places if name == source.name}:
            files = lock.files_of(source, data_root, record["lock"], mix / "manifest.json")
            by_place |= {(source.name, row): text for row, text in _read(source, files, wanted)}
    return by_place


def _read(source: Source, files: list[Any], wanted: set[str]) -> Iterator[tuple[str, str]]:
    for chunk in chunks(source.name, files):
        for number, line in enumerate(chunk.lines, chunk.first):
            with suppress(BadRow):
                raw = parse(line)
                if (row := id_of(raw, f"{chunk.file}:{number}")) in wanted:
                    yield row, as_text(ADAPTERS[source.adapter](Row(raw, source.columns)))


def as_text(row: dict[str, Any]) -> str:
    """A row for people: each message after its role, with its calls as JSON; both answers of a pair."""

    def lines(label: str, message: Message) -> str:
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
        return "\n".join([f"[{label}] {message['content']}", *calls])

    sides = [lines(name, row[name]) for name in ("chosen", "rejected") if name in row]
    return "\n".join([*(lines(message["role"], message) for message in row["messages"]), *sides])


def audit(mix: Path, n: int, data_root: Path, ask: Callable[[str, str, str, str], str]) -> list[dict[str, Any]]:
    """Ask of each sampled removal that has no mark yet; write marks and card; how many of each stage were right.
    `ask(title, why, text, other)` returns r (right to leave it out), w (wrong), s (skip) or q (quit)."""
    record, marks = manifest.read(mix), read_json(mix / FILE) if (mix / FILE).is_file() else {}
    new = [one for one in sample(mix, n) if "/".join(one[1]) not in marks.get(one[0]["stage"], {})]
    shown = texts(mix, {place for _, *both in new for place in both if place}, data_root)
    for number, (reject, row, repeats) in enumerate(new, 1):
        lost = f"(no such row below {data_root} any more)"
        title = f"{number} of {len(new)}: {reject['stage']}, {reject['reason']}"
        other = shown.get(repeats, lost) if repeats else ""
        answer = ask(title, reject["detail"], shown.get(row, lost), other)
        if answer == "q":
            break
        if answer in ("r", "w"):
            marks.setdefault(reject["stage"], {})["/".join(row)] = answer == "r"
    rewrite(mix, {FILE: json.dumps(marks, indent=1, ensure_ascii=False) + "\n"})
    rewrite(mix, card.pages(mix, record, precision(marks)))
    return precision(marks)


def precision(marks: Marks) -> list[dict[str, Any]]:
    """Of each stage: removals that were marked, those that were right, and the 95 % interval of the share (Wilson)."""
    rows = []
    for stage, of in marks.items():
        low, high = wilson(sum(of.values()), len(of))
        rows.append({"stage": stage, "marked": len(of), "right": sum(of.values()), "low": low, "high": high})
    return rows
