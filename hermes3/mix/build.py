"""Building a mix: read, then every row by itself (in worker processes, cached), then choose among all, then write.
The folder is replaced whole, so that what Axolotl prepared from an older mix cannot survive in it."""

import json
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from rich.progress import Progress

from hermes3.chat.render import Renderer
from hermes3.files import MARKER, UserError, check_out, make_folder, new_folder, sha256
from hermes3.files import lock as lock_file
from hermes3.mix import card, choose, columns, decontaminate, dedup, lock, manifest, read, shard, write
from hermes3.mix import spec as specs
from hermes3.mix.adapt import SHAPE

Files = dict[str, list[read.File]]  # by source
Counts = dict[str, Counter[str]]  # by source: read, not_selected, columns
Pool = int | str  # processes, 0: one per core; or dask://HOST:PORT, a cluster
COMMAND = "hermes3 mix build"
SMALL = 20_000_000  # bytes of input below which starting worker processes costs more than they save
ROWS_PER_FILE = 20_000  # about 10 M tokens: what one process holds while it writes
SHOWN = 3  # bad rows in an error
SAMPLED = 20_000_000  # bytes of input that an estimate reads: ten seconds on one core
SAMPLE = 4  # batches of 500 rows that `verify` renders anew


class Built(NamedTuple):
    manifest: manifest.Manifest
    wall: dict[str, float]  # seconds of each phase


def build(
    path: Path, out: Path, data_root: Path = Path(), workers: Pool = 0, cache: Path | None = None, quiet: bool = False
) -> Built:
    """Build the mix that `path` declares into the folder `out`. Shards stay in `cache`, by default beside it."""
    wall, begin = {}, time.perf_counter()

    def lap(phase: str) -> None:
        wall[phase] = time.perf_counter() - begin - sum(wall.values())

    check_out(out, COMMAND)
    spec, pinned = specs.load(path), lock.read(path)
    files = {source.name: lock.files_of(source, data_root, pinned, path) for _, source in spec.sources()}
    threading.Thread(target=card.prepare, daemon=True).start()  # it reads a file of its own while the tokenizer is read
    renderer = Renderer(spec.tokenizer)
    if not quiet and (loose := lock.unpinned(spec, pinned)):
        print(f"{path}: not pinned, so not reproducible: {', '.join(loose)}; run `hermes3 mix lock`", file=sys.stderr)
    lap("start")
    index = decontaminate.Index(spec.decontaminate, data_root) if spec.decontaminate else None
    lap("read evaluation sets")
    stages = shard.Stages(spec, renderer, index)

    cache = (cache or out.parent / ".cache") / spec.name
    sources = [file.path for each in files.values() for file in each]
    for inner in (cache, *sources):
        if inner.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: {inner} lies in it and would be replaced; name another folder")
    make_folder(cache)
    size = sum(source.stat().st_size for source in sources)
    workers = workers or (len(os.sched_getaffinity(0)) if size > SMALL else 1)
    with (
        (cache / MARKER).open("a") as users,
        Progress(disable=quiet, transient=True) as progress,
        _pool(workers, stages) as (pool, most),
    ):
        lock_file(users, shared=True)
        advance = partial(progress.advance, progress.add_task("rows", total=size))
        shards, counts, bad = _make_shards(stages, files, cache, pool, most, advance)
        hashes = lock.hashes(files)
        lap("rows")
        _refuse_bad_sources(path, spec, counts, bad)
        rows = pa.concat_tables(shard.open_shard(file) for file in shards)
        short = rows.select([name for name in shard.SHORT if name in rows.column_names])
        with tempfile.TemporaryFile(dir=cache) as file:
            with pa.ipc.new_file(file, shard.REJECTS) as writer:
                disk = partial(dedup.on_disk, folder=cache)
                writer.write_table(bad)
                choice = choose.choose(short, spec, partial(shard.example, rows), writer.write_table, disk)
            rejects = pa.ipc.open_file(pa.py_buffer(np.memmap(file))).read_all()  # mapped; the file has no name
        lap("deduplicate, fill budgets")
        if not len(choice.rows):
            why = sorted("/".join(r.values()) for r in rejects.group_by(["stage", "reason"]).aggregate([]).to_pylist())
            raise UserError(f"{path}: no row is left: {', '.join(why) or 'the sources are empty'}")
        with new_folder(out, COMMAND) as tmp:
            cuts = range(ROWS_PER_FILE, len(choice.rows), ROWS_PER_FILE)
            parts = zip(np.split(choice.rows, cuts), np.split(choice.uses, cuts), strict=True)
            written = [pool.submit(write.part, tmp, i, shards, *p) for i, p in enumerate(parts)]
            for future in progress.track(written, description="write"):
                future.result()
            order = pc.sort_indices(rejects, sort_keys=[(name, "ascending") for name in shard.REJECTS.names]).to_numpy()
            parts = np.split(order, range(dedup.BUCKET, len(order), dedup.BUCKET))
            write.parquet(map(ds.dataset(rejects).take, parts), shard.REJECTS, tmp / "rejects/part-00000.parquet")
            lap("write")
            searched = decontaminate.record(spec, index)
            inputs = (spec, files, hashes, pinned, counts, searched)
            record = manifest.make(*inputs, tmp, choice, rejects, write.output_hash(tmp))
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (tmp / "manifest.json").write_text(text, encoding="utf-8")
            lap("manifest")
            card.write_card(tmp, record)
            lap("card")
            prepared = manifest.prepared_folder(record)
            (tmp / prepared).mkdir()
            (tmp / "prepared").symlink_to(prepared)
        if lock_file(users):  # no other build uses this cache
            shard.sweep(cache, {file.name for file in shards})
    return Built(record, wall)


def estimate(path: Path, data_root: Path) -> tuple[float, list[dict[str, Any]]]:
    """The share of the rows that was read, and each source's tokens in each category as a build would choose them.

    The stages are the build's but for decontamination, over the first rows of every chunk, with budgets as much
    smaller. Near-copies within a sample are fewer than in the whole, so the tokens are an upper bound."""
    spec, pinned = specs.load(path), lock.read(path)
    files = {source.name: lock.files_of(source, data_root, pinned, path) for _, source in spec.sources()}
    size = sum(file.path.stat().st_size for each in files.values() for file in each)
    share = min(1.0, SAMPLED / max(size, 1))
    categories = {
        name: one.model_copy(update={"tokens": one.tokens and math.ceil(share * one.tokens)})
        for name, one in spec.categories.items()
    }
    small = spec.model_copy(update={"tokens": spec.tokens and math.ceil(share * spec.tokens), "categories": categories})
    stages, tables = shard.Stages(small, Renderer(spec.tokenizer), None), []
    for source in files:
        for chunk in read.chunks(source, files[source]):
            lines = chunk.lines[: math.ceil(share * len(chunk.lines))]
            tables.append(shard.table_of(replace(chunk, lines=lines), stages)[0])
    rows = pa.concat_tables([shard.schema(small).empty_table(), *tables])
    if not len(rows):
        raise UserError(f"{path}: no row of its sources passes; build it to see why")
    kept = rows.take(choose.choose(rows, small, lambda number: shard.example(rows, number)).rows)
    budgets, totals = spec.budgets(), kept.group_by(["category", "source"]).aggregate([("n_tokens", "sum")]).to_pylist()
    return share, [
        {"category": one["category"], "source": one["source"], "tokens": round(one["n_tokens_sum"] / share)}
        | {"budget": budgets.get(one["category"])}
        for one in sorted(totals, key=lambda one: (one["category"], -one["n_tokens_sum"]))
    ]


def _refuse_bad_sources(path: Path, spec: specs.Spec, counts: Counts, rejects: pa.Table) -> None:
    """Stop where a source is empty, is not of its shape (`max_bad_rows`), or holds more than its adapter reads."""
    wrong = []
    for _, source in spec.sources():
        bad = rejects.filter((pc.field("source") == source.name) & pc.field("reason").isin(SHAPE))
        limit = spec.max_bad_rows if source.max_bad_rows is None else source.max_bad_rows
        own = counts.get(source.name, Counter())
        unread = {key.partition(": ")[2]: n for key, n in sorted(own.items()) if key.startswith(columns.MAY_TRAIN)}
        unread = {name: n for name, n in unread.items() if name not in source.ignore and name not in source.where}
        if not own["read"]:
            remedy = "check the file and `where`, or take the source out"
            error = f"{source.path or source.repo} holds no row, or `where` selects none; {remedy}"
        elif len(bad) > limit * own["read"]:
            error = f"{len(bad):,} of {own['read']:,} rows are not of shape {source.adapter}; check the adapter, or "
            error += f"raise max_bad_rows (now {limit:g})"
            error += "".join(f"\n  {row['reason']}: {row['detail']}" for row in bad[:SHOWN].to_pylist())
        elif unread:
            shown = ", ".join(f"{name} ({n:,} rows)" for name, n in unread.items())
            error = f"adapter {source.adapter} does not read {shown}, which may hold what should train; declare "
            error += f"`columns: {{{min(unread)}: COLUMN}}` with a column that it reads, take another adapter, or "
            error += f"leave them out with `ignore: [{', '.join(unread)}]`"
        else:
            continue
        wrong.append(f"{path}: source {source.name}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))


def _make_shards(
    stages: shard.Stages, files: Files, cache: Path, pool: Executor, most: int, advance: Callable[[float], None]
) -> tuple[list[Path], Counts, pa.Table]:
    """Every chunk's shard, made or cached, what was counted and left out. At most `most` chunks wait in memory."""
    shards: list[Path] = []
    counts: Counts = {}
    rejects = [shard.REJECTS.empty_table()]
    waiting: deque[tuple[str, Path, Future[Any] | None]] = deque()

    def finish() -> None:
        name, path, future = waiting.popleft()
        if future:
            future.result()
        about = json.loads(shard.open_shard(path).schema.metadata[b"hermes3"])
        counts.setdefault(name, Counter()).update(about["counts"])
        rejects.append(pa.Table.from_pylist(about["rejects"], shard.REJECTS))
        shards.append(path)
        advance(about["bytes"])

    for source in files:
        for file in files[source]:
            for chunk in islice(read.chunks(source, [file]), file.share[0], None, file.share[1]):
                path = cache.absolute() / f"{stages.key(chunk)}.arrow"
                waiting.append((source, path, None if path.exists() else pool.submit(shard.make, chunk, path)))
                if len(waiting) > most:
                    finish()
    while waiting:
        finish()
    return shards, counts, pa.concat_tables(rejects)


@contextmanager
def _pool(workers: Pool, stages: shard.Stages) -> Iterator[tuple[Executor, int]]:
    """Workers that have `stages`, and how many chunks may wait for them."""
    if isinstance(workers, str):
        try:
            os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__LARGE_GRAPH_WARNING_THRESHOLD", "1GB")  # a chunk has 16 MB
            import distributed

            client = distributed.Client(workers.replace("dask://", "tcp://"))
            client.wait_for_workers(1, 60)
        except (ImportError, OSError, ValueError) as error:
            remedy = "uv pip install -e '.[dask]', start a scheduler and workers, give dask://HOST:PORT (docs/mix.md)"
            raise UserError(f"--executor {workers}: {error}; {remedy}") from None
        with client, client.get_executor(pure=False) as pool:
            client.register_worker_callbacks(partial(shard.start, stages))  # of workers that join later, too
            yield pool, max(64, 2 * sum(client.nthreads().values()))
        return
    processes = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
    kind = ThreadPoolExecutor if workers == 1 else processes  # a small mix is ready sooner than a process starts
    with kind(workers, initializer=shard.start, initargs=(stages,)) as pool:
        yield pool, 2 * workers


def make_part(path: Path, part: str, cache: Path, data_root: Path = Path(), workers: int = 0) -> tuple[int, int]:
    """Make the shards of part i of N (`part`: i/N) for builds with this `cache`: how many are new, how many it has.
    A file smaller than a quarter of a part is one part's; of a larger one, each part makes every N-th chunk."""
    number, of = (int(word) if word.isdecimal() else 0 for word in part.partition("/")[::2])
    if not 1 <= number <= of:
        raise UserError(f"--part {part}: give i/N with i from 1 to N, such as 2/8")
    spec, pinned = specs.load(path), lock.read(path)
    if loose := lock.unpinned(spec, pinned):
        raise UserError(f"{path}: not pinned, so parts may read other data: {loose[0]}; run `hermes3 mix lock {path}`")
    sizes: list[int] = []
    for _, source in spec.sources():
        lock.files_of(source, data_root, pinned, path, sizes.append)  # wants nothing yet
    large, loads = sum(sizes) / (4 * of), [0] * of

    def share(size: int) -> tuple[int, int] | None:
        if size > large:
            return (number + size) % of, of
        least = loads.index(min(loads))
        loads[least] += size
        return (0, 1) if least == number - 1 else None

    files = {source.name: lock.files_of(source, data_root, pinned, path, share) for _, source in spec.sources()}
    index = decontaminate.Index(spec.decontaminate, data_root) if spec.decontaminate else None
    stages = shard.Stages(spec, Renderer(spec.tokenizer), index)
    cache = cache.absolute() / spec.name
    make_folder(cache)
    before = {*cache.iterdir()}
    with (cache / MARKER).open("a") as users, _pool(workers or len(os.sched_getaffinity(0)), stages) as (pool, most):
        lock_file(users, shared=True)
        shards = {*_make_shards(stages, files, cache, pool, most, lambda _: None)[0]}
    return len(shards - before), len(shards)


def verify(mix: Path, every_row: bool = False) -> Iterator[str]:
    """What is wrong with the mix in the folder `mix`: hashes of its files, its tokenizer and template; its sums; and
    for the first rows, which lie in drawn order, or for every row: that it renders to the ids and labels that train."""
    record = manifest.read(mix)
    folder = Path(record["tokenizer"]["path"])
    expected = record["output"].get("files", {}) | {"prepared": manifest.prepared_folder(record)}
    actual = write.output_hash(mix)["files"] | {"prepared": (mix / "prepared").resolve().name}
    for name, key in (("tokenizer.json", "tokenizer"), ("chat_template.jinja", "template")):
        expected[f"{folder / name}"] = record[key]["sha256"]
        actual[f"{folder / name}"] = sha256(folder / name) if (folder / name).is_file() else None
    by_category = manifest.totals(mix, "category")
    expected["total"] = record["total"]
    actual["total"] = {key: sum(counts[key] for counts in by_category.values()) for key in manifest.NOTHING}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            yield f"{name}: is {actual.get(name)}, the manifest says {expected.get(name)}"
            if str(folder) in name:
                return  # of another tokenizer, nothing renders to the same
    parts = zip(manifest.batches(mix / "train"), manifest.batches(mix / "rows"), strict=False)
    renderer = Renderer(folder) if record["kind"] == "sft" else None
    for train, texts in islice(parts, None if every_row else SAMPLE) if renderer else ():
        rendered = renderer.render([(json.loads(row["messages"]), json.loads(row["tools"])) for row in texts])
        for row, trained, tokens in zip(texts, train, rendered, strict=False):
            if (tokens.input_ids.tolist(), tokens.labels.tolist()) != (trained["input_ids"], trained["labels"]):
                yield f"row {row['id']}: does not render to the ids and labels that train"
