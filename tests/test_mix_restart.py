"""A mix is the same bytes whatever its workers, the size of chunks, or how often its build or a worker was killed."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hermes3.mix import read, shard
from hermes3.mix.build import build, verify
from hermes3.mix.write import output_hash

SCRIPT = """
import sys
from pathlib import Path
from hermes3.mix import build, read

if __name__ == "__main__":
    read.chunks.__defaults__ = (150, 10**7)  # rows and bytes of a chunk
    spec, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    build.build(spec, out, spec.parent, int(workers) if workers.isdecimal() else workers, quiet=True)
"""


@pytest.fixture(scope="module")
def spec(base, tmp_path_factory) -> Path:
    """A spec over 4,000 rows of two sources with copies, near-copies, refusals, broken rows and evaluation text."""
    folder = tmp_path_factory.mktemp("restart")
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("tin", "oak", "sea", "red") for b in ("er", "ing", "ed", "s", "ly", "top", "way")]
    for name in ("a", "b"):
        rows = []
        for i in range(2000):
            asked, answer = (" ".join(rng.choices(words, k=n)) for n in (8, rng.randint(5, 60)))
            answer = "I'm sorry, but I can't help with that." if rng.random() < 0.02 else answer
            rows.append({"id": f"{name}{i}", "instruction": asked, "output": answer})
        rows += rows[:50] + [row | {"output": row["output"] + " more"} for row in rows[50:100]] + [{"oops": 1}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    sources = [{"name": n, "path": f"{n}.jsonl", "adapter": "instruction", "licence": "our own"} for n in ("a", "b")]
    (folder / "eval.jsonl").write_text(json.dumps({"q": rows[7]["instruction"] + " " + rows[7]["output"]}) + "\n")
    declared = {"name": "restart", "kind": "sft", "tokenizer": str(base), "sequence_len": 512, "seed": 3}
    declared |= {"near_duplicates": {"threshold": 0.8}, "decontaminate": {"against": [{"path": "eval.jsonl"}]}}
    declared |= {"categories": {"math": {"tokens": 150_000, "sources": sources}}}
    (folder / "restart.yml").write_text(yaml.safe_dump(declared))
    (folder / "build.py").write_text(SCRIPT)
    return folder / "restart.yml"


@pytest.fixture(scope="module")
def whole(spec) -> Path:
    """The mix, built in one go, in one process, from whole files."""
    out = spec.parent / "whole"
    manifest = build(spec, out, spec.parent, workers=1, quiet=True).manifest
    why = {
        "read/not_json",
        "adapt/wrong_shape",
        "filter/refusal",
        "dedup/near_duplicate",
        "decontaminate/evaluation_text",
    }
    assert manifest["rejects"].keys() >= why
    assert abs(manifest["total"]["tokens"] - 150_000) < 512
    return out


def same(a: Path, b: Path) -> bool:
    files, others = ({str(p.relative_to(x)): p.read_bytes() for p in x.rglob("*") if p.is_file()} for x in (a, b))
    return len(files) == 7 and files == others


def start(spec: Path, out: Path, workers: int | str) -> subprocess.Popen:
    command = [sys.executable, spec.parent / "build.py", spec, out, str(workers)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> None:
    assert process.wait() == 0, process.stderr.read()


def test_the_same_bytes_for_any_workers_and_chunks_and_beside_another_build_in_one_cache(spec, whole, tmp_path):
    declared = yaml.safe_load(spec.read_text()) | {"seed": 4, "sequence_len": 500}
    (spec.parent / "other_seed.yml").write_text(yaml.safe_dump(declared))
    both = [start(spec, tmp_path / "mix", 3), start(spec.with_name("other_seed.yml"), tmp_path / "other", 1)]
    for process in both:
        finish(process)
    assert same(whole, tmp_path / "mix") and not list(verify(tmp_path / "other"))


def test_kills_lose_nothing_and_leave_nothing(spec, whole, tmp_path):
    """Killed among the shards and while it writes, whole and its parent alone, which two workers notice."""
    out, cache = tmp_path / "mix", tmp_path / ".cache/restart"

    def shards() -> set[Path]:
        return set(cache.glob("*[0-9a-f].arrow"))

    moments = [lambda n=n: len(shards()) >= n for n in (1, 8, 20)]
    moments += [lambda: any(tmp_path.glob(".mix.hermes3-*/rows/*")), lambda: any(tmp_path.glob(".mix.hermes3-*/man*"))]
    for number, moment in enumerate(moments):
        before = shards()
        process = start(spec, out, 2)
        while process.poll() is None and not moment():
            time.sleep(0.005)
        if number % 2:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()  # one that nobody has waited for counts as alive
            alive, deadline = ["pgrep", "-g", str(process.pid)], time.time() + 20
            while subprocess.run(alive, capture_output=True, check=False).stdout.strip():
                assert time.time() < deadline, "workers outlive their parent"
                time.sleep(0.2)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert before <= shards(), "a finished shard is gone"
        assert not out.exists(), "a half-written mix is seen"
    finish(start(spec, out, 2))
    assert same(whole, out) and not list(verify(out))
    assert {path.name for path in tmp_path.iterdir()} == {"mix", ".cache"}
    assert len(list(cache.iterdir())) == len(shards()) + 1


def test_a_cluster_of_dask_loses_a_worker_and_nothing_else(spec, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as without, pytest.raises(ValueError, match=r"dask://localhost:1: .*uv pip install -e"):
        without.setitem(sys.modules, "distributed", None)
        build(spec, tmp_path / "mix", spec.parent, "dask://localhost:1", quiet=True)
    distributed = pytest.importorskip("distributed", reason="no dask here: uv pip install -e '.[dask]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        building = start(spec, tmp_path / "mix", cluster.scheduler_address.replace("tcp", "dask"))
        while building.poll() is None and len([*tmp_path.glob(".cache/restart/*")]) < 5:
            time.sleep(0.005)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        finish(building)
    assert same(whole, tmp_path / "mix")


def test_a_worker_with_other_code_than_the_build_makes_no_shard(spec, whole, tmp_path, monkeypatch):
    stages, chunk = shard._stages, next(read.chunks("a", [read.File("a.jsonl", spec.parent / "a.jsonl")]))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(shard, "sha256", lambda file: "of another checkout")
        elsewhere.setattr(shard, "_stages", pickle.loads(pickle.dumps(stages)))
        with pytest.raises(ValueError, match="a worker has other code, rules or settings than the build"):
            shard.make(chunk, tmp_path / f"{stages.key(chunk)}.arrow")
    assert not [*tmp_path.iterdir()]


def test_only_a_change_that_shapes_rows_needs_new_shards(spec, whole):
    cache = spec.parent / ".cache/restart"

    def new_shards(declared: dict) -> int:
        before = set(cache.iterdir())
        (spec.parent / "other.yml").write_text(yaml.safe_dump(declared))
        build(spec.parent / "other.yml", spec.parent / "other", spec.parent, workers=1, quiet=True)
        return len(set(cache.iterdir()) - before)

    declared = yaml.safe_load(spec.read_text())
    assert new_shards(declared) == 0 and same(whole, spec.parent / "other")
    declared["categories"]["math"]["tokens"] = 90_000
    assert new_shards(declared) == 0
    declared["categories"]["math"]["sources"][0]["skip_filters"] = ["refusal"]
    assert new_shards(declared) == 1


@pytest.mark.parametrize("what", ["train", "rows", "manifest", "link", "label"])
def test_verify_sees_what_was_changed(what, spec, whole, tmp_path):
    mix = tmp_path / "mix"
    shutil.copytree(whole, mix, symlinks=True)
    assert not list(verify(mix))
    if what == "manifest":
        manifest = json.loads((mix / "manifest.json").read_text())
        manifest["total"]["tokens"] += 1
        (mix / "manifest.json").write_text(json.dumps(manifest))
    elif what == "label":  # and the hash that its file then has
        path = next((mix / "train").glob("*"))
        rows = pq.read_table(path).to_pylist()
        rows[1]["labels"] = [-100 for _ in rows[1]["labels"]]
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
        manifest = json.loads((mix / "manifest.json").read_text())
        manifest["output"] = output_hash(mix) | {"sha256": manifest["output"]["sha256"]}
        (mix / "manifest.json").write_text(json.dumps(manifest))
    elif what == "link":
        (mix / "prepared").unlink()
    else:
        path = next((mix / what).glob("*"))
        pq.write_table(pq.read_table(path).slice(1), path)
    assert list(verify(mix))
