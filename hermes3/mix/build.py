"""Building a mix: read, then every row by itself (in worker processes, cached), then choose among all, then write.

Output folder (replaced whole, so that data which Axolotl prepared from an older mix inside it cannot survive):
    train/*.parquet      what trains: input_ids, attention_mask, labels; or prompt, chosen, rejected (preference)
    rows/*.parquet       the same rows in the same order, for people: id, source, category, messages, counts, hash
    rejects/*.parquet    every row that was left out: id, source, stage, reason, detail
    manifest.json        the spec, hashes of all that went in and came out, counts, versions
    README.md, card.html the mix at a glance
    prepared             where Axolotl keeps what it prepares: a link that carries the output's hash
"""

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.progress import Progress

from hermes3.chat.render import Renderer
from hermes3.files import MARKER, UserError, check_out, make_folder, new_folder, sha256
from hermes3.files import lock as lock_file
from hermes3.mix import card, choose, columns, decontaminate, lock, manifest, read, shard, write
from hermes3.mix import spec as specs
from hermes3.mix.adapt import SHAPE, Example

COMMAND = "hermes3 mix build"
SMALL = 20_000_000  # bytes of input below which starting worker processes costs more than they save
SHOWN = 3  # bad rows in an error


class Built(NamedTuple):
    manifest: manifest.Manifest
    wall: dict[str, float]  # seconds of each phase
    made: int  # shards that were not in the cache


@dataclass
class Shards:
    """The cached shards of all sources, in order."""

    files: list[Path] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by source: read, not_selected
    rejects: list[Example] = field(default_factory=list)
    made: int = 0  # those that were not cached


def build(
    path: Path,
    out: Path,
    data_root: Path = Path(),
    workers: int | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Built:
    """Build the mix that `path` declares into the folder `out`; finished shards stay in `cache`, by default beside it.

    `UserError` on bad input, before any work where the spec alone shows it.
    """
    laps, begin = [], time.perf_counter()

    def lap(phase: str) -> None:
        laps.append((phase, time.perf_counter() - begin - sum(seconds for _, seconds in laps)))

    check_out(out, COMMAND)
    spec = specs.load(path)
    pinned = lock.read(path)
    files = {source.name: lock.files_of(source, data_root, pinned, path) for _, source in spec.sources()}
    states = lock.states(files)
    try:
        renderer = Renderer(spec.tokenizer)
    except ValueError as error:
        raise UserError(f"{path}: tokenizer: {error}") from None
    if not quiet and (loose := lock.unpinned(spec, pinned)):
        print(f"{path}: not pinned, so not reproducible: {', '.join(loose)}; run `hermes3 mix lock`", file=sys.stderr)
    lap("start")
    index = decontaminate.Index(spec.decontaminate, data_root) if spec.decontaminate else None
    lap("read evaluation sets")
    tokenizer = [sha256(spec.tokenizer / name) for name in ("tokenizer.json", "tokenizer_config.json")]
    base_key = "".join([*tokenizer, index.digest() if index else "", shard.code_hash()])
    sources = {source.name: (category, source) for category, source in spec.sources()}
    stages = shard.Stages(spec, renderer, index, hashlib.sha256(base_key.encode()).hexdigest(), sources)

    cache = (cache or out.parent / ".cache") / spec.name
    for inner in (cache, *states):
        if inner.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: {inner} lies in it and would be replaced; name another folder")
    make_folder(cache)
    threading.Thread(target=card.prepare, daemon=True).start()
    size = read.size_of(file for each in files.values() for file in each)
    workers = workers or (len(os.sched_getaffinity(0)) if size > SMALL else 1)
    with (
        (cache / MARKER).open("a") as users,
        Progress(disable=quiet, transient=True) as progress,
        _pool(workers, stages) as pool,
    ):
        lock_file(users, shared=True)
        shards = _make_shards(stages, files, cache, pool, workers, progress)
        hashes = lock.hashes(files, states, pinned)
        lap("rows")
        _refuse_bad_sources(path, spec, shards)
        rows = pa.concat_tables(shard.open_shard(file) for file in shards.files)
        short = rows.select([name for name in shard.SHORT if name in rows.column_names])
        choice = choose.choose(short, spec, lambda number: shard.example(rows, number))
        lap("deduplicate, fill budgets")
        left_out = pa.Table.from_pylist(shards.rejects, shard.REJECTS)
        rejects = pa.concat_tables([left_out, *_left_out(rows, choice)])
        rejects = rejects.sort_by([(name, "ascending") for name in shard.REJECTS.names])
        if not len(choice.rows):
            why = sorted({f"{r['stage']}/{r['reason']}" for r in rejects.select(["stage", "reason"]).to_pylist()})
            raise UserError(f"{path}: no row is left: {', '.join(why) or 'the sources are empty'}")
        with new_folder(out, COMMAND) as tmp:
            _write(tmp, shards, choice, pool, progress)
            write.parquet(rejects, tmp / "rejects/part-00000.parquet")
            lap("write")
            searched = decontaminate.record(spec, index)
            inputs = (spec, files, hashes, pinned, shards.counts, searched)
            record = manifest.make(*inputs, short, choice, rejects, write.output_hash(tmp))
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (tmp / "manifest.json").write_text(text, encoding="utf-8")
            lap("manifest")
            card.write_card(tmp, record)
            lap("card")
            prepared = manifest.prepared_folder(record)
            (tmp / prepared).mkdir()
            (tmp / "prepared").symlink_to(prepared)
        if lock_file(users):  # no other build uses this cache
            shard.sweep(cache, {file.name for file in shards.files})
    return Built(record, dict(laps), shards.made)


def summary(out: Path, built: Built) -> str:
    """The head of the mix's card, what was left out and the time that it took, as Markdown."""
    head = (out / "README.md").read_text(encoding="utf-8").split("\n# ", 1)[1].split("\n| Source |")[0]
    lines = [f"- left out: {n:,} {why}" for why, n in built.manifest["rejects"].items()]
    lines.append(f"- {sum(built.wall.values()):.1f} s: " + ", ".join(f"{k} {v:.1f}" for k, v in built.wall.items()))
    return "\n".join([f"# {head}", *lines, f"- {out}/card.html"])


def _refuse_bad_sources(path: Path, spec: specs.Spec, shards: Shards) -> None:
    """Stop where a source is empty, is not of its shape (`max_bad_rows`), or holds more than its adapter reads."""
    bad: dict[str, list[Example]] = {}
    for row in shards.rejects:
        if row["reason"] in SHAPE:
            bad.setdefault(row["source"], []).append(row)
    wrong = []
    for _, source in spec.sources():
        rows, counts = bad.get(source.name, []), shards.counts.get(source.name, Counter())
        limit = spec.max_bad_rows if source.max_bad_rows is None else source.max_bad_rows
        where, n_read = f"{path}: source {source.name}: ", counts["read"]
        if counts["not_selected"] and not n_read:
            wrong.append(f"{where}where {source.where} selects no row; check the column's name")
        elif not n_read:
            wrong.append(f"{where}{source.path or source.repo} holds no row; check the file, or take the source out")
        elif len(rows) > limit * n_read:
            shown = "".join(f"\n  {row['reason']}: {row['detail']}" for row in rows[:SHOWN])
            wrong.append(
                f"{where}{len(rows):,} of {n_read:,} rows are not of shape {source.adapter}; check the adapter, or "
                f"raise max_bad_rows (now {limit:g}){shown}"
            )
        elif unread := columns.unread(counts, source):
            shown = ", ".join(f"{name} ({n:,} rows)" for name, n in unread.items())
            wrong.append(
                f"{where}adapter {source.adapter} does not read {shown}, which may hold what should train; declare "
                f"`columns: {{{min(unread)}: COLUMN}}` with a column that it reads, take another adapter, or leave "
                f"them out with `ignore: [{', '.join(unread)}]`"
            )
    if wrong:
        raise UserError("\n".join(wrong))


def _left_out(rows: pa.Table, choice: choose.Choice) -> Iterator[pa.Table]:
    for why, (numbers, details) in choice.rejected.items():
        about = rows.select(["id", "source"]).take(pa.array(numbers))
        stage, reason = (pa.array([part] * len(numbers), pa.string()) for part in why.split("/"))
        yield pa.table([*about.columns, stage, reason, pa.array(details, pa.string())], schema=shard.REJECTS)


def _write(out: Path, shards: Shards, choice: choose.Choice, pool: Executor, progress: Progress) -> None:
    for name in ("train", "rows"):
        (out / name).mkdir()
    bounds = np.append(0, np.cumsum([shard.open_shard(file).num_rows for file in shards.files])[:-1])
    cuts = range(write.ROWS_PER_FILE, len(choice.rows), write.ROWS_PER_FILE)
    parts = zip(np.split(choice.rows, cuts), np.split(choice.uses, cuts), strict=True)
    futures = [pool.submit(write.part, out, i, shards.files, bounds, *part) for i, part in enumerate(parts)]
    for future in progress.track(futures, description="write"):
        future.result()


# --- worker processes

_stages: shard.Stages  # of a worker process


def _start(stages: shard.Stages) -> None:
    global _stages
    _stages = stages


def _start_process(stages: shard.Stages) -> None:
    def leave_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()  # a killed parent cannot tell us to stop
    os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers and rensa: the processes are the parallelism
    pa.set_cpu_count(1)
    _start(stages)


def _make(chunk: read.Chunk, folder: Path, key: str) -> None:
    shard.make(chunk, _stages, folder, key)


def _pool(workers: int, stages: shard.Stages) -> Executor:
    if workers == 1:  # a small mix is ready sooner than a process starts
        return ThreadPoolExecutor(1, initializer=_start, initargs=(stages,))
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process, (stages,))


def _make_shards(
    stages: shard.Stages,
    files: dict[str, list[read.File]],
    cache: Path,
    pool: Executor,
    workers: int,
    progress: Progress,
) -> Shards:
    """Every chunk's shard, made or cached; at most a few chunks wait, so memory does not grow with the sources."""
    shards = Shards()
    waiting: deque[tuple[str, Path, Future[Any] | None]] = deque()
    task = progress.add_task("rows", total=read.size_of(file for each in files.values() for file in each))

    def finish() -> None:
        name, path, future = waiting.popleft()
        if future:
            future.result()
        about = json.loads(shard.open_shard(path).schema.metadata[b"hermes3"])
        shards.counts.setdefault(name, Counter()).update(about["counts"])
        shards.rejects += about["rejects"]
        shards.made += future is not None
        shards.files.append(path)
        progress.advance(task, about["bytes"])

    for source in files:
        for chunk in read.chunks(source, files[source]):
            key = stages.key(chunk)
            path = cache / f"{key}.arrow"
            waiting.append((source, path, None if path.exists() else pool.submit(_make, chunk, cache, key)))
            if len(waiting) > 2 * workers:
                finish()
    while waiting:
        finish()
    return shards
