"""Making the shards of all sources in worker processes; what is in the cache already is not made again."""

import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.progress import Progress

from hermes3.mix import shard, sources, write
from hermes3.mix.spec import Spec


@dataclass
class Shards:
    """The cached shards of all sources, in order."""

    files: list[Path] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by source: read, not_selected
    seconds: Counter[str] = field(default_factory=Counter)  # of the workers, by stage; nothing for a shard found

    def rejects(self) -> list[pa.Table]:
        return [write.open_shard(path.with_suffix(".rejects.arrow")) for path in self.files]


_stages: shard.Stages  # of a worker process


def _start(stages: shard.Stages) -> None:
    global _stages
    _stages = stages


def _start_process(stages: shard.Stages) -> None:
    def leave_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()  # killed, it could not tell us to stop
    os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers and rensa: the processes are the parallelism
    pa.set_cpu_count(1)
    _start(stages)


def _make(chunk: sources.Chunk, folder: Path, key: str) -> None:
    shard.make(chunk, _stages, folder, key)


class Here:
    """An executor without processes, for mixes that are ready sooner than a process starts."""

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass


Pool = ProcessPoolExecutor | Here


def pool(workers: int, stages: shard.Stages) -> Pool:
    if workers == 1:
        _start(stages)
        return Here()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process, (stages,))


def make_all(
    stages: shard.Stages,
    files: dict[str, list[sources.File]],
    cache: Path,
    pool: Pool,
    workers: int,
    progress: Progress,
) -> Shards:
    """Every chunk's shard, made or found; at most a few chunks wait, so memory does not grow with the sources."""
    shards = Shards()
    waiting: deque[tuple[str, Path, Future[Any] | None]] = deque()

    def finish() -> None:
        name, path, future = waiting.popleft()
        if future:
            future.result()
        about = json.loads(write.open_shard(path).schema.metadata[b"hermes3"])
        shards.counts.setdefault(name, Counter()).update(about["counts"])
        if future:
            shards.seconds.update(about["seconds"])
        shards.files.append(path)
        progress.advance(task, about["bytes"])

    task = progress.add_task("rows", total=sum(sources.estimate(each) for each in files.values()))
    for chunk in _chunks(stages.spec, files):
        key = stages.key(chunk)
        path = cache / f"{key}.arrow"
        found = path.exists() and path.with_suffix(".rejects.arrow").exists()
        future = None if found else pool.submit(_make, chunk, cache, key)
        waiting.append((chunk.source, path, future))
        if len(waiting) > 2 * workers:
            finish()
    while waiting:
        finish()
    return shards


def _chunks(spec: Spec, files: dict[str, list[sources.File]]) -> Iterator[sources.Chunk]:
    for _, source in spec.sources():
        yield from sources.chunks(source, files[source.name])
