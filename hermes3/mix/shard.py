"""One chunk of a source through every stage that reads a row by itself, to a shard, from which the mix is written.
A shard is an Arrow file in the cache, named by a hash of all that shapes it, with what was left out in its metadata."""

import gc
import hashlib
import json
import multiprocessing
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import batched, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from hermes3.chat.render import Renderer, assistant_text, prompt_text, turns
from hermes3.files import UserError, sha256
from hermes3.messages import BadRow
from hermes3.mix import dedup, filters, rules
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.mix.classify import classify
from hermes3.mix.columns import Row
from hermes3.mix.decontaminate import Index
from hermes3.mix.read import Chunk, parse, selected
from hermes3.mix.spec import Category, Spec

BATCH = 500  # rows; about 1 MB of text, which the caches of a core hold
SIDES = ("chosen", "rejected")
NO_LIMITS = Category()
SHARD_NAME = re.compile(r"\.?[0-9a-f]{32}\.arrow(?P<unfinished>\.hermes3-[0-9a-f]{8})?")
REJECTS = pa.schema([(key, pa.string()) for key in ("id", "source", "stage", "reason", "detail")])
# what is needed to choose among rows, without the rows themselves
SHORT = ("id", "source", "category", "n_tokens", "n_loss_tokens", "n_turns", "hash", "words", "signature")


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


class Stages:
    """What the rows go through. It is sent to every worker once."""

    def __init__(self, spec: Spec, renderer: Renderer, index: Index | None):
        self.spec, self.renderer, self.index = spec, renderer, index
        self.sources = {source.name: (category, source) for category, source in spec.sources()}
        package = Path(__file__).parents[1]
        files = [spec.tokenizer / "tokenizer.json", spec.tokenizer / "tokenizer_config.json", package / "messages.py"]
        files += sorted([*package.glob("chat/*.*"), *package.glob("mix/*.py"), *rules.FOLDER.glob("*.yml")])
        self.made_of = [*map(sha256, files), index.digest() if index else ""]

    def __reduce__(self) -> tuple[Any, ...]:
        return Stages, (self.spec, self.renderer, self.index)  # a worker hashes the files that it sees

    def key(self, chunk: Chunk) -> str:
        """Hash of the chunk's bytes, the source's declaration, and all else that shapes its shard."""
        category, source = self.sources[chunk.source]
        limits = {name: (c.min_tokens, c.max_tokens) for name, c in self.spec.categories.items()}
        near = self.spec.near_duplicates.model_dump() if self.spec.near_duplicates else None
        declared = source.model_dump(include={"name", "adapter", "columns", "where", "skip_filters"})
        settings = [self.made_of, self.spec.kind, self.spec.sequence_len, near, category, declared, limits]
        digest = hashlib.sha256(json.dumps([*settings, chunk.file, chunk.first], sort_keys=True).encode())
        digest.update(b"\n".join([*chunk.lines, b""]))
        return digest.hexdigest()[:32]


_stages: Stages  # of this worker


def start(stages: Stages) -> None:
    """Make this thread or process one that makes shards."""
    global _stages
    _stages = stages
    if parent := multiprocessing.parent_process():
        # a killed parent cannot tell us to stop
        threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()
        os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers and rensa: the processes are the parallelism
        pa.set_cpu_count(1)
        _ = stages.renderer.encode.gigatoken  # there is enough to encode, or there would be no workers
        gc.freeze()  # 100,000 objects that stay, at which every collection would look again


def table_of(chunk: Chunk, stages: Stages) -> tuple[pa.Table, list[Example], Counter[str]]:
    """The chunk's rows that pass, the records of the others, and what was counted."""
    rejects: list[Example] = []
    counts: Counter[str] = Counter()
    rows = batched(_rows(chunk, stages, rejects, counts), BATCH)
    tables = [_table(kept, stages, rejects) for batch in rows if (kept := _filtered(batch, stages, rejects))]
    table = pa.concat_tables([schema(stages.spec).empty_table(), *tables]).combine_chunks()
    return table, rejects, counts


def make(chunk: Chunk, path: Path) -> None:
    """Process `chunk` and write its shard. `UserError` if `path` is named by other stages than this worker has."""
    if _stages.key(chunk) != path.stem:
        remedy = "start the workers anew from the build's checkout, for one build at a time"
        raise UserError(f"{path}: a worker has other code, rules or settings than the build; {remedy}")
    table, rejects, counts = table_of(chunk, _stages)
    about = {"counts": counts, "bytes": sum(map(len, chunk.lines)), "rejects": rejects}
    table = table.replace_schema_metadata({"hermes3": json.dumps(about)})
    tmp = path.with_name(f".{path.name}.hermes3-{secrets.token_hex(4)}")
    try:
        with pa.OSFile(str(tmp), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with tmp.open("rb") as file:
            os.fsync(file.fileno())  # else a node that is lost may leave the name without the bytes
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


def id_of(raw: Any, place: str) -> str:
    """The row's own `id`, or `place` (FILE:ROW) where it has none that prints."""
    own = raw.get("id") if isinstance(raw, dict) else None
    return str(own) if isinstance(own, str | int) and str(own).isprintable() and str(own) else place


def _rows(chunk: Chunk, stages: Stages, rejects: list[Example], counts: Counter[str]) -> Iterator[Example]:
    """The chunk's rows in the one message form, each with id, source, place and what it says as JSON."""
    _, source = stages.sources[chunk.source]
    for number, line in enumerate(chunk.lines, chunk.first):
        place = f"{chunk.file}:{number}"
        row: Example = {"id": place, "source": source.name, "place": place}
        stage = "read"
        counts["read"] += 1
        try:
            raw = parse(line)
            if not selected(raw, source.where):
                counts.update(read=-1, not_selected=1)
                continue
            row["id"] = id_of(raw, place)
            stage = "adapt"
            noted = Row(raw, source.columns)
            row |= ADAPTERS[source.adapter](noted)
            counts.update(f"{what}: {name}" for what, name in noted.account())
            stage = "filter"
            row["json"] = _json(row)
        except BadRow as bad:
            rejects.append(_reject(row, stage, bad.reason, f"{place}: {bad.detail}"))
        else:
            yield row


def _filtered(rows: tuple[Example, ...], stages: Stages, rejects: list[Example]) -> list[Example]:
    """Those of `rows` that pass the filters, each with its category."""
    kept = []
    for row, needless in zip(rows, filters.cannot_object(rows), strict=True):
        category, source = stages.sources[row["source"]]
        try:
            filters.apply(row, needless.union(source.skip_filters))
        except BadRow as bad:
            rejects.append(_reject(row, "filter", bad.reason, f"{row['place']}: {bad.detail}"))
        else:
            kept.append(row | {"category": category or classify(row)})
    return kept


def _json(row: Example) -> dict[str, bytes]:
    """What the row says as JSON; `BadRow` for what JSON cannot hold (lone surrogates, integers above 64 bits)."""
    try:
        return {key: orjson.dumps(row[key]) for key in ("messages", "tools", *SIDES) if key in row}
    except TypeError as error:
        raise BadRow("broken_text", filters.broken_text(row) or str(error)) from None


def _table(rows: list[Example], stages: Stages, rejects: list[Example]) -> pa.Table:
    """The rows that fit and hold no evaluation text in anything that trains or conditions."""
    spec, index = stages.spec, stages.index
    for row in rows:
        row["turns"] = list(turns(row["messages"], row["tools"]))
    columns = (_tokens if spec.kind == "sft" else _texts)(rows, stages.renderer)
    bad = {i: ("tokenise", *why) for i, row in enumerate(rows) if (why := _unfit(row, stages))}
    if index:
        texts = [(i, text) for i, row in enumerate(rows) if i not in bad for text in _read_in_training(row)]
        for text, detail in index.hits([text for _, text in texts]).items():
            bad.setdefault(texts[text][0], ("decontaminate", "evaluation_text", detail))
    rejects += [_reject(rows[i], *why) for i, why in bad.items()]
    written = [b"\n".join(row["json"].values()) for row in rows]
    columns["hash"], columns["words"] = dedup.content_hashes(written)
    columns["n_turns"] = [sum(m["role"] == "assistant" for m in row["messages"]) + ("chosen" in row) for row in rows]
    columns |= {key: [row[key] for row in rows] for key in ("id", "source", "category", "n_tokens", "n_loss_tokens")}
    columns |= {key: pa.array([row["json"][key] for row in rows], pa.string()) for key in rows[0]["json"]}
    if spec.near_duplicates:
        columns["signature"] = [*map(bytes, dedup.signatures(rows, spec.near_duplicates))]
    table = pa.table(columns, schema=schema(spec))
    return pa.concat_tables(table.slice(a + 1, b - a - 1) for a, b in pairwise([-1, *sorted(bad), len(rows)]))


def _tokens(rows: list[Example], renderer: Renderer) -> dict[str, Any]:
    batch = renderer.batch([row["turns"] for row in rows])
    offsets = pa.array(batch.offsets.astype(np.int32))
    n_loss = np.diff(np.append(0, np.cumsum(batch.loss))[batch.offsets])
    for row, n_tokens, n in zip(rows, np.diff(batch.offsets).tolist(), n_loss.tolist(), strict=True):
        row.update(n_tokens=n_tokens, n_longest=n_tokens, n_loss_tokens=n)
    values = {"input_ids": batch.input_ids, "loss": batch.loss}
    return {name: pa.ListArray.from_arrays(offsets, pa.array(array)) for name, array in values.items()}


def _texts(rows: list[Example], renderer: Renderer) -> dict[str, Any]:
    """Text, for Axolotl's pass-through (its own chat strategy for DPO drops tool calls). TRL's tokenizer adds BOS."""
    tokens = renderer.render([([*row["messages"], row[side]], row["tools"]) for row in rows for side in SIDES])
    for row, *pair in zip(rows, tokens[::2], tokens[1::2], strict=True):
        lengths = [len(one.input_ids) for one in pair]
        row.update(n_tokens=sum(lengths), n_longest=max(lengths), n_loss_tokens=sum(one.n_completion for one in pair))
    columns = {f"{side}_text": [assistant_text(row[side]) + "<|im_end|>" for row in rows] for side in SIDES}
    return columns | {"prompt_text": [prompt_text(row["messages"], row["tools"]) for row in rows]}


def _unfit(row: Example, stages: Stages) -> tuple[str, str] | None:
    """(reason, detail) of a row that is too long or too short, or that cannot train."""
    spec, n_tokens = stages.spec, row["n_longest"]
    category = spec.categories.get(row["category"], NO_LIMITS)
    if n_tokens > spec.sequence_len:
        return "over_sequence_len", f"{n_tokens} > {spec.sequence_len} tokens"
    if n_tokens < category.min_tokens:
        return "under_min_tokens", f"{n_tokens} < {category.min_tokens} tokens ({row['category']})"
    if category.max_tokens and n_tokens > category.max_tokens:
        return "over_max_tokens", f"{n_tokens} > {category.max_tokens} tokens ({row['category']})"
    if row["n_loss_tokens"] == 0:
        return "no_loss_tokens", "nothing in it is trained"
    if spec.kind == "preference":
        # tokenised from text by TRL, a special token that a person typed would become one
        texts = [message["content"] for message in [*row["messages"], row["chosen"], row["rejected"]]]
        if typed := [token for token in stages.renderer.encode.control if any(token in text for text in texts)]:
            return "control_token_in_text", typed[0]
    return None


def _read_in_training(row: Example) -> Iterator[str]:
    """What the template writes: system prompt, tools, turns, calls, responses; and both answers of a pair."""
    yield from (turn.text for turn in row["turns"])
    yield from (assistant_text(row[side]) for side in SIDES if side in row)


def example(rows: pa.Table, number: int) -> Example:
    """What row `number` of the shards' rows says."""
    return {key: json.loads(rows[key][number].as_py()) for key in ("messages", *SIDES) if key in rows.column_names}


def sweep(folder: Path, keep: set[str]) -> None:
    """Remove the shards in `folder` whose names are not in `keep`, and what killed builds left; nothing else."""
    for path in folder.iterdir():
        name = SHARD_NAME.fullmatch(path.name)
        if name and path.name not in keep:
            with suppress(OSError, pa.ArrowInvalid):  # it is no shard
                if name["unfinished"] or b"hermes3" in (open_shard(path).schema.metadata or {}):
                    path.unlink()
