"""A mix is the same bytes whatever the number of workers, the size of chunks, or how often its build was killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from hermes3.files import MARKER
from hermes3.mix.build import build
from hermes3.mix.shard import SHAPED_BY
from hermes3.mix.verify import verify

SCRIPT = """
import sys
from pathlib import Path
from hermes3.mix import build, read

if __name__ == "__main__":
    read.chunks.__defaults__ = (150, 10**7)  # rows and bytes of a chunk
    spec, out = Path(sys.argv[1]), Path(sys.argv[2])
    build.build(spec, out, spec.parent, int(sys.argv[3]), quiet=True)
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
            asked, said = (" ".join(rng.choices(words, k=n)) for n in (8, rng.randint(5, 60)))
            if rng.random() < 0.02:
                said = "I'm sorry, but I can't help with that."
            rows.append({"id": f"{name}{i}", "instruction": asked, "output": said})
        rows += rows[:50] + [row | {"output": row["output"] + " more"} for row in rows[50:100]] + [{"oops": 1}]
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
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
    why = ["read/not_json", "adapt/wrong_shape", "filter/refusal", "dedup/near_duplicate"]
    assert manifest["rejects"].keys() >= set(why)
    assert abs(manifest["total"]["tokens"] - 150_000) < 512
    return out


def same(a: Path, b: Path) -> bool:
    files = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
    assert len(files) == 7
    others = sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file())
    return files == others and all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def start(spec: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, spec.parent / "build.py", spec, out, str(workers)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize("workers", [1, 3])  # 2: below
def test_the_same_bytes_for_any_number_of_workers_and_size_of_chunks(workers, spec, whole, tmp_path):
    process = start(spec, tmp_path / "mix", workers)
    assert process.wait() == 0, process.stderr.read()
    assert same(whole, tmp_path / "mix")


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
            alive = ["pgrep", "-g", str(process.pid)]
            deadline = time.time() + 20
            while subprocess.run(alive, capture_output=True, check=False).stdout.strip() and time.time() < deadline:
                time.sleep(0.2)
            assert time.time() < deadline, "workers outlive their parent"
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert before <= shards(), "a finished shard is gone"
        assert not out.exists(), "a half-written mix is seen"
    process = start(spec, out, 2)
    assert process.wait() == 0, process.stderr.read()
    assert same(whole, out) and verify(out, every_row=True) == []
    assert {path.name for path in tmp_path.iterdir()} == {"mix", ".cache"}
    assert len(list(cache.iterdir())) == len(shards()) + 1


def test_two_builds_at_once_in_one_cache_do_not_disturb_one_another(spec, whole, tmp_path):
    declared = yaml.safe_load(spec.read_text()) | {"seed": 4, "sequence_len": 500}
    (spec.parent / "other_seed.yml").write_text(yaml.safe_dump(declared))
    both = [start(path, tmp_path / path.stem, 1) for path in (spec, spec.with_name("other_seed.yml"))]
    assert [process.wait() for process in both] == [0, 0], both[0].stderr.read() + both[1].stderr.read()
    assert same(whole, tmp_path / "restart") and verify(tmp_path / "other_seed", every_row=True) == []


def test_a_full_disk_loses_nothing_and_says_so(spec, whole, tmp_path):
    """A limit on the size of any one file stands in for a disk that is full: the write fails in the same place."""
    import resource

    command = [sys.executable, spec.parent / "build.py", spec, tmp_path / "mix", "1"]
    limit = 60_000  # bytes: a few shards fit, the training file does not

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    failed = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert failed.returncode != 0 and "File too large" in failed.stderr
    assert not (tmp_path / "mix").exists()
    assert [
        path for path in tmp_path.rglob(".*") if path.name not in (".cache", MARKER)
    ] == []  # no temporary file stays
    assert start(spec, tmp_path / "mix", 1).wait() == 0
    assert same(whole, tmp_path / "mix")


def test_only_a_change_that_shapes_rows_needs_new_shards(spec, whole):
    def again(declared: dict) -> int:
        (spec.parent / "other.yml").write_text(yaml.safe_dump(declared))
        return build(spec.parent / "other.yml", spec.parent / "other", spec.parent, workers=1, quiet=True).made

    declared = yaml.safe_load(spec.read_text())
    assert again(declared) == 0 and same(whole, spec.parent / "other")
    declared["categories"]["math"]["tokens"] = 90_000
    assert again(declared) == 0
    declared["categories"]["math"]["sources"][0]["skip_filters"] = ["refusal"]
    assert again(declared) == 1
    build(spec, spec.parent / "whole", spec.parent, workers=1, quiet=True)


def test_the_cache_key_holds_the_code_that_shapes_rows_and_no_other():
    code = "import sys, hermes3.mix.shard; print(*(name for name in sys.modules if name.startswith('hermes3.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    files = {name.removeprefix("hermes3.").replace(".", "/") + ".py" for name in loaded}
    # the values of a spec are part of the key; packages themselves and files.py do not touch a row
    assert files - set(SHAPED_BY) == {"chat.py", "mix.py", "files.py", "mix/spec.py"}
    assert set(SHAPED_BY) <= files


@pytest.mark.parametrize("what", ["train", "rows", "manifest", "link"])
def test_verify_sees_what_was_changed(what, spec, whole, tmp_path):
    mix = tmp_path / "mix"
    shutil.copytree(whole, mix, symlinks=True)
    assert verify(mix) == []
    if what == "manifest":
        manifest = json.loads((mix / "manifest.json").read_text())
        manifest["total"]["tokens"] += 1
        (mix / "manifest.json").write_text(json.dumps(manifest))
    elif what == "link":
        (mix / "prepared").unlink()
    else:
        path = next((mix / what).glob("*"))
        pq.write_table(pq.read_table(path).slice(1), path)
    assert verify(mix)
