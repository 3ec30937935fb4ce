"""One chunk of a source through every stage that reads a row by itself: adapt, filter, tokenise, decontaminate.

The result is a shard: an Arrow file in the cache, named by a hash of all that shapes it (`Stages.key`), with the rows
that were left out in its metadata. A shard that is there is never made again, so a build that was killed goes on where
it was, and a build with another budget or seed begins with its last stage.
"""

import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from hermes3.chat.render import Renderer, assistant_text, prompt_text, turns
from hermes3.messages import BadRow
from hermes3.mix import dedup, filters
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.mix.classify import classify
from hermes3.mix.columns import Row
from hermes3.mix.decontaminate import Index
from hermes3.mix.read import Chunk, parse, selected
from hermes3.mix.rules import FOLDER as RULES
from hermes3.mix.spec import Source, Spec

BATCH = 500  # rows; about 1 MB of text, which the caches of a core hold
SIDES = ("chosen", "rejected")
SHARD_NAME = re.compile(r"\.?[0-9a-f]{32}\.arrow(?P<unfinished>\.hermes3-[0-9a-f]{8})?")
REJECTS = pa.schema([(key, pa.string()) for key in ("id", "source", "stage", "reason", "detail")])
# what is needed to choose among rows, without the rows themselves
SHORT = ("id", "source", "category", "n_tokens", "n_loss_tokens", "n_turns", "hash", "words", "signature")
# The code that decides a row's bytes, relative to hermes3/. A test compares it with what this module imports
SHAPED_BY = (
    *("messages.py", "chat/encode.py", "chat/prompts.py", "chat/render.py"),
    *(
        f"mix/{name}.py"
        for name in ("adapt", "classify", "columns", "decontaminate", "dedup", "filters", "ngrams", "read")
    ),
    *(f"mix/{name}.py" for name in ("refusals", "rules", "shard", "tool_text")),
)


def schema(spec: Spec) -> pa.Schema:
    """Columns of a shard."""
    text, count = pa.string(), pa.int32()
    columns = {"id": text, "source": text, "category": text, "n_tokens": count, "n_loss_tokens": count}
    columns |= {"hash": pa.binary(32), "words": pa.binary(32), "n_turns": count, "messages": text, "tools": text}
    if spec.kind == "sft":
        columns |= {"input_ids": pa.list_(pa.int32()), "loss": pa.list_(pa.bool_())}
    else:
        columns |= dict.fromkeys((*SIDES, "prompt_text", *(f"{side}_text" for side in SIDES)), text)
    if spec.near_duplicates:
        columns["signature"] = pa.binary(4 * spec.near_duplicates.permutations)
    return pa.schema(list(columns.items()))


@dataclass(frozen=True)
class Stages:
    """What the rows go through. It is sent to every worker once."""

    spec: Spec
    renderer: Renderer
    index: Index | None
    base_key: str  # hash of tokenizer, evaluation texts and code
    sources: dict[str, tuple[str | None, Source]] = field(default_factory=dict)  # by name: category, source

    def key(self, chunk: Chunk) -> str:
        """Hash of the chunk's bytes, the source's declaration, and all else that shapes its shard."""
        category, source = self.sources[chunk.source]
        limits = {name: (c.min_tokens, c.max_tokens) for name, c in self.spec.categories.items()}
        near = self.spec.near_duplicates.model_dump() if self.spec.near_duplicates else None
        declared = source.model_dump(include={"name", "adapter", "columns", "where", "skip_filters"})
        settings = [self.base_key, self.spec.kind, self.spec.sequence_len, near, category, declared, limits]
        digest = hashlib.sha256(json.dumps([*settings, chunk.file, chunk.first], sort_keys=True).encode())
        for line in chunk.lines:
            digest.update(line + b"\n")
        return digest.hexdigest()[:32]


@cache
def code_hash() -> str:
    """Hash of the code and the word lists that shape a shard."""
    package = Path(__file__).parents[1]
    files = [*(package / name for name in SHAPED_BY), *sorted(RULES.glob("*.yml"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def make(chunk: Chunk, stages: Stages, folder: Path, key: str) -> None:
    """Process `chunk` and write `KEY.arrow`."""
    rejects: list[Example] = []
    counts: Counter[str] = Counter()
    tables = []
    rows = _rows(chunk, stages, rejects, counts)
    for start in range(0, len(rows), BATCH):
        batch, columns = _tokenise(rows[start : start + BATCH], stages, rejects)
        if stages.index:
            batch, columns = _decontaminate(batch, columns, stages.index, rejects)
        if batch:
            tables.append(_table(batch, columns, stages.spec))
    table = pa.concat_tables(tables).combine_chunks() if tables else schema(stages.spec).empty_table()
    about = {"counts": counts, "bytes": sum(map(len, chunk.lines)), "rejects": rejects}
    path = folder / f"{key}.arrow"
    table = table.replace_schema_metadata({"hermes3": json.dumps(about)})
    tmp = path.with_name(f".{path.name}.hermes3-{secrets.token_hex(4)}")
    try:
        with pa.OSFile(str(tmp), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def open_shard(path: Path) -> pa.Table:
    """A shard, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _reject(row: Example, stage: str, reason: str, detail: str) -> Example:
    """The record of a row that is left out."""
    detail = detail.encode("utf-8", "replace").decode()[:500]
    return {"id": row["id"], "source": row["source"], "stage": stage, "reason": reason, "detail": detail}


def _rows(chunk: Chunk, stages: Stages, rejects: list[Example], counts: Counter[str]) -> list[Example]:
    """The chunk's rows in the one message form that pass the filters, each with id, source and category."""
    category, source = stages.sources[chunk.source]
    adapt, skip = ADAPTERS[source.adapter], frozenset(source.skip_filters)
    kept = []
    for number, line in enumerate(chunk.lines, chunk.first):
        if not line.strip():
            continue
        place = f"{chunk.file}:{number}"
        row: Example = {"id": place, "source": source.name}
        stage = "read"
        try:
            raw = parse(line)
            if source.where and not selected(raw, source.where):
                counts["not_selected"] += 1
                continue
            counts["read"] += 1
            if isinstance(raw, dict) and isinstance(raw.get("id"), str | int) and str(raw["id"]).isprintable():
                row["id"] = str(raw["id"]) or place
            stage = "adapt"
            noted = Row(raw, source.columns)
            row |= adapt(noted)
            counts.update(f"{what}: {name}" for what, name in noted.account())
            stage = "filter"
            filters.apply(row, skip)
            row["json"] = _json(row)
        except BadRow as bad:
            counts["read"] += stage == "read"
            rejects.append(_reject(row, stage, bad.reason, f"{place}: {bad.detail}"))
            continue
        row["category"] = category or classify(row)
        kept.append(row)
    return kept


def _json(row: Example) -> dict[str, bytes]:
    """What the row says as JSON; `BadRow` for what JSON cannot hold (lone surrogates, integers above 64 bits)."""
    try:
        return {key: orjson.dumps(row[key]) for key in ("messages", "tools", *SIDES) if key in row}
    except TypeError as error:
        raise BadRow("broken_text", str(error)) from None


def _tokenise(rows: list[Example], stages: Stages, rejects: list[Example]) -> tuple[list[Example], dict[str, Any]]:
    """The rows that fit, and their columns of tokens (sft) or text (preference)."""
    columns = (_tokens if stages.spec.kind == "sft" else _texts)(rows, stages.renderer)
    keep = []
    for i, row in enumerate(rows):
        try:
            _check(row, stages)
            keep.append(i)
        except BadRow as bad:
            rejects.append(_reject(row, "tokenise", bad.reason, bad.detail))
    return _kept(rows, columns, keep)


def _tokens(rows: list[Example], renderer: Renderer) -> dict[str, pa.Array]:
    batch = renderer.batch([(row["messages"], row["tools"]) for row in rows])
    offsets = pa.array(batch.offsets.astype(np.int32))
    n_loss = np.diff(np.append(0, np.cumsum(batch.loss))[batch.offsets])
    for row, n_tokens, n in zip(rows, np.diff(batch.offsets).tolist(), n_loss.tolist(), strict=True):
        row.update(n_tokens=n_tokens, n_longest=n_tokens, n_loss_tokens=n)
    return {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(batch.input_ids)),
        "loss": pa.ListArray.from_arrays(offsets, pa.array(batch.loss)),
    }


def _texts(rows: list[Example], renderer: Renderer) -> dict[str, pa.Array]:
    """Text, for Axolotl's pass-through (its own chat strategy for DPO drops tool calls). TRL's tokenizer adds BOS."""
    sides = [([*row["messages"], row[side]], row["tools"]) for row in rows for side in SIDES]
    tokens = renderer.render(sides)
    for row, *pair in zip(rows, tokens[::2], tokens[1::2], strict=True):
        lengths = [len(one.input_ids) for one in pair]
        row.update(n_tokens=sum(lengths), n_longest=max(lengths), n_loss_tokens=sum(one.n_completion for one in pair))
    columns = {"prompt_text": pa.array([prompt_text(row["messages"], row["tools"]) for row in rows], pa.string())}
    for side in SIDES:
        answers = [assistant_text(row[side]) + "<|im_end|>" for row in rows]
        columns[f"{side}_text"] = pa.array(answers, pa.string())
    return columns


def _check(row: Example, stages: Stages) -> None:
    category, longest = stages.spec.categories.get(row["category"]), row["n_longest"]
    if longest > stages.spec.sequence_len:
        raise BadRow("over_sequence_len", f"{longest} > {stages.spec.sequence_len} tokens")
    if category and longest < category.min_tokens:
        raise BadRow("under_min_tokens", f"{longest} < {category.min_tokens} tokens ({row['category']})")
    if category and category.max_tokens and longest > category.max_tokens:
        raise BadRow("over_max_tokens", f"{longest} > {category.max_tokens} tokens ({row['category']})")
    if row["n_loss_tokens"] == 0:
        raise BadRow("no_loss_tokens", "nothing in it is trained")
    if stages.spec.kind == "preference":
        # tokenised from text by TRL, a special token that a person typed would become one
        texts = [message["content"] for message in [*row["messages"], row["chosen"], row["rejected"]]]
        if typed := [token for token in stages.renderer.encode.control if any(token in text for text in texts)]:
            raise BadRow("control_token_in_text", typed[0])


def _decontaminate(
    rows: list[Example], columns: dict[str, Any], index: Index, rejects: list[Example]
) -> tuple[list[Example], dict[str, Any]]:
    """The rows that hold no evaluation text in anything that trains or conditions, and their columns."""
    texts = [(i, text) for i, row in enumerate(rows) for text in _read_in_training(row)]
    hit: dict[int, str] = {}
    for text, detail in index.hits([text for _, text in texts]).items():
        hit.setdefault(texts[text][0], detail)
    for i, detail in sorted(hit.items()):
        rejects.append(_reject(rows[i], "decontaminate", "evaluation_text", detail))
    return _kept(rows, columns, [i for i in range(len(rows)) if i not in hit])


def _read_in_training(row: Example) -> Iterator[str]:
    """What the template writes: system prompt, tools, turns, calls, responses; and both answers of a pair."""
    yield from (turn.text for turn in turns(row["messages"], row["tools"]))
    yield from (assistant_text(row[side]) for side in SIDES if side in row)


def _kept(rows: list[Example], columns: dict[str, Any], keep: list[int]) -> tuple[list[Example], dict[str, Any]]:
    return [rows[i] for i in keep], {name: column.take(pa.array(keep, pa.int64())) for name, column in columns.items()}


def _table(rows: list[Example], columns: dict[str, Any], spec: Spec) -> pa.Table:
    values: dict[str, Any] = {key: [row[key] for row in rows] for key in ("id", "source", "category")}
    values |= {key: [row[key] for row in rows] for key in ("n_tokens", "n_loss_tokens")}
    said = [b"\n".join(row["json"].values()) for row in rows]
    values |= {"hash": list(map(dedup.content_hash, said)), "words": list(map(dedup.words_hash, said))}
    values["n_turns"] = [sum(m["role"] == "assistant" for m in row["messages"]) + ("chosen" in row) for row in rows]
    values |= {key: [row["json"][key].decode() for row in rows] for key in rows[0]["json"]}
    if spec.near_duplicates:
        values["signature"] = [row.tobytes() for row in dedup.signatures(rows, spec.near_duplicates)]
    shape = schema(spec)
    columns |= {name: pa.array(column, shape.field(name).type) for name, column in values.items()}
    return pa.table({name: columns[name] for name in shape.names}, schema=shape)


def example(rows: pa.Table, number: int) -> Example:
    """What row `number` of the shards' rows says."""
    return {key: json.loads(rows[key][number].as_py()) for key in ("messages", *SIDES) if key in rows.column_names}


def sweep(folder: Path, keep: set[str]) -> None:
    """Remove the shards in `folder` whose names are not in `keep`, and what killed builds left; nothing else."""
    for path in folder.iterdir():
        name = SHARD_NAME.fullmatch(path.name)
        if name and path.name not in keep and (name["unfinished"] or _is_shard(path)):
            path.unlink()


def _is_shard(path: Path) -> bool:
    try:
        return b"hermes3" in (open_shard(path).schema.metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False
