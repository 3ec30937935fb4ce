"""Making the shards of all sources in worker processes; a shard that the cache holds is not made again."""

import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.progress import Progress

from hermes3.mix import read, shard


@dataclass
class Shards:
    """The cached shards of all sources, in order."""

    files: list[Path] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by source: read, not_selected
    seconds: Counter[str] = field(default_factory=Counter)  # of the workers, by stage; nothing for a cached shard

    def rejects(self) -> list[pa.Table]:
        return [shard.open_shard(path.with_suffix(".rejects.arrow")) for path in self.files]


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


class InProcess:
    """An executor without processes, for mixes that are ready sooner than a process starts."""

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


Pool = ProcessPoolExecutor | InProcess


def pool(workers: int, stages: shard.Stages) -> Pool:
    if workers == 1:
        _start(stages)
        return InProcess()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process, (stages,))


def make_shards(
    stages: shard.Stages, files: dict[str, list[read.File]], cache: Path, pool: Pool, workers: int, progress: Progress
) -> Shards:
    """Every chunk's shard, made or cached; at most a few chunks wait, so memory does not grow with the sources."""
    shards = Shards()
    waiting: deque[tuple[str, Path, Future[Any] | None]] = deque()

    def finish() -> None:
        name, path, future = waiting.popleft()
        if future:
            future.result()
        about = json.loads(shard.open_shard(path).schema.metadata[b"hermes3"])
        shards.counts.setdefault(name, Counter()).update(about["counts"])
        if future:
            shards.seconds.update(about["seconds"])
        shards.files.append(path)
        progress.advance(task, about["bytes"])

    task = progress.add_task("rows", total=read.size_of(file for each in files.values() for file in each))
    for source in files:
        for chunk in read.chunks(source, files[source]):
            key = stages.key(chunk)
            path = cache / f"{key}.arrow"
            cached = path.exists() and path.with_suffix(".rejects.arrow").exists()
            waiting.append((source, path, None if cached else pool.submit(_make, chunk, cache, key)))
            if len(waiting) > 2 * workers:
                finish()
    while waiting:
        finish()
    return shards
