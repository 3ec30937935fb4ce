"""Reading sources and locking them: formats, numbering, broken files, and a stand-in for the Hub."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from hermes3.messages import BadRow
from hermes3.mix import lock, read
from hermes3.mix.lock import files_of
from hermes3.mix.read import File, chunks, parse, selected
from hermes3.mix.spec import Source

ROWS = [{"id": i, "text": f"row {i}: ü, \\ and\n\u2028 \U0001f600 [{{", "deep": {"n": [i, None]}} for i in range(257)]
LINES = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS)).encode()
LIST = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TEXTS = {".jsonl": LINES, ".ndjson": LINES, ".json": LIST}


def source(**keys) -> Source:
    place = {} if "repo" in keys else {"path": "x"}
    return Source.model_validate({"name": "s", "adapter": "messages", "licence": "MIT", **place, **keys})


def written(path: Path, data: bytes) -> list[File]:
    path.write_bytes(data)
    return [File(path.name, path)]


def rows_of(files: list[File]) -> list:
    return [parse(line) for chunk in chunks("s", files) for line in chunk.lines]


def numbered(files: list[File]) -> list[tuple[int, bytes]]:
    return [pair for chunk in chunks("s", files) for pair in enumerate(chunk.lines, chunk.first)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", TEXTS)
def test_text_gives_the_same_rows_in_every_format_and_compression(tmp_path, ending, compression):
    assert rows_of(written(tmp_path / f"a{ending}{compression}", COMPRESS[compression](TEXTS[ending]))) == ROWS


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_file_of_two_parts_is_read_to_its_end(tmp_path, compression):
    both = COMPRESS[compression](LINES) + COMPRESS[compression](LINES)
    assert rows_of(written(tmp_path / f"a.jsonl{compression}", both)) == ROWS * 2


def test_parquet_gives_the_same_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=100)
    assert rows_of([File("a.parquet", tmp_path / "a.parquet")]) == ROWS


def test_parquet_values_that_json_lacks_become_numbers_and_text(tmp_path):
    import datetime as dt
    from decimal import Decimal

    row = {"price": Decimal("1.50"), "day": dt.date(2024, 8, 1), "at": dt.datetime(2024, 8, 1, 12), "raw": "ü".encode()}
    table = pa.Table.from_pylist([row]).append_column("ns", pa.array([1], pa.timestamp("ns")))
    pq.write_table(table, tmp_path / "a.parquet")
    [read] = rows_of([File("a.parquet", tmp_path / "a.parquet")])
    times = {"day": "2024-08-01", "at": "2024-08-01T12:00:00", "ns": "1970-01-01 00:00:00.000000001"}
    assert read == {"price": 1.5, "raw": "ü", **times}


def test_a_json_file_holds_a_list_or_one_row_per_line_and_nothing_else(tmp_path):
    assert rows_of(written(tmp_path / "a.json", LINES)) == ROWS
    with pytest.raises(ValueError, match=r"a\.json .*neither a list of rows nor one row per line"):
        rows_of(written(tmp_path / "a.json", json.dumps({"data": ROWS}, indent=1).encode()))


@pytest.mark.parametrize("block", [2, 7, 64])
def test_a_list_may_be_cut_anywhere_by_the_blocks_that_it_is_read_in(tmp_path, monkeypatch, block):
    monkeypatch.setattr(read, "BLOCK", block)
    odd = [12, -3.5e10, "a,]", [], {}, True, None, {"a": [1, {"b": "\\"}]}, ROWS[3]]
    for text in (json.dumps(odd), json.dumps(odd, indent=3, ensure_ascii=False), " [ ] \n", json.dumps(odd) + "\n"):
        assert rows_of(written(tmp_path / "a.json", text.encode())) == json.loads(text)


def test_an_odd_row_of_a_list_costs_that_row_alone(tmp_path):
    data = b'\xef\xbb\xbf[{"a": "\\ud800"}, {"a": NaN}, {"a": "\xff"}, {"a": "raw\ttab"}, {"a": 1}]'
    lines = [line for _, line in numbered(written(tmp_path / "a.json", data))]
    assert lines == [b'{"a": "\\ud800"}', b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "raw\ttab"}', b'{"a": 1}']


def test_a_long_list_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.json"
    row = json.dumps({"text": "word " * 2000}).encode()
    with path.open("wb") as file:  # 100 MB
        file.write(b"[" + row + (b"," + row) * 9_999 + b"]")
    code = f"""
import resource
from pathlib import Path
from hermes3.mix.read import File, chunks
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(chunk.lines) for chunk in chunks("s", [File("a.json", Path({str(path)!r}))])) == 10_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 80_000  # KiB: two chunks of 16 MB and some blocks


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(1, 90), st.booleans())
def test_chunks_lose_nothing_keep_the_order_and_number_rows_as_the_file(tmp_path_factory, lengths, rows, size, end):
    texts = [b"x" * length for length in lengths]
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    made = list(chunks("s", written(path, b"\n".join(texts) + b"\n" * end), rows, size))
    pairs = [pair for chunk in made for pair in enumerate(chunk.lines, chunk.first)]
    assert pairs == [(number, text) for number, text in enumerate(texts, 1) if text]
    for chunk in made:
        assert 1 <= len(chunk.lines) <= rows
        assert len(chunk.lines) == 1 or sum(map(len, chunk.lines)) <= size


def test_chunks_are_as_full_as_their_limits_allow_and_never_span_files(tmp_path):
    files = written(tmp_path / "a.jsonl", b"12345\n" * 10) + written(tmp_path / "b.jsonl", b"1\r\n \r\n\n1")
    made = list(chunks("s", files, rows=4, size=100))
    assert {chunk.source for chunk in made} == {"s"}
    cuts = [("a.jsonl", 1, 4), ("a.jsonl", 5, 4), ("a.jsonl", 9, 2), ("b.jsonl", 1, 1), ("b.jsonl", 4, 1)]
    assert [(chunk.file, chunk.first, len(chunk.lines)) for chunk in made] == cuts
    assert [len(c.lines) for c in chunks("s", files[:1], rows=4, size=10)] == [2] * 5
    assert read.size_of(files) == 60 + 8


def parquet(rows: list) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


HOLE = LIST.index(b'"id": 100')
TABLE = parquet(ROWS)
BROKEN = {  # name, bytes, last row that can be read; a list is read row by row, the others in blocks
    "truncated gzip": ("a.jsonl.gz", gzip.compress(LINES)[:-2000], 250),
    "gzip without its checksum": ("a.jsonl.gz", gzip.compress(LINES)[:-6], 257),
    "a list in a gzip without its checksum": ("a.json.gz", gzip.compress(LIST)[:-6], 257),
    "truncated zstd": ("a.jsonl.zst", zstandard.compress(LINES)[:-100], 256),
    "no gzip at all": ("a.jsonl.gz", LINES, 0),
    "list that ends early": ("a.json", LIST[:HOLE], 100),
    "list without its end": ("a.json", LIST[:-1], 256),
    "list with a broken row": ("a.json", LIST.replace(b'"id": 100', b'"id" 100'), 100),
    "list without a comma": ("a.json", LIST.replace(b'},\n {\n  "id": 100', b'}\n {\n  "id": 100'), 100),
    "two lists": ("a.json", LIST + LIST, 257),
    "truncated parquet": ("a.parquet", TABLE[:-100], 0),
    "corrupt parquet": ("a.parquet", TABLE[:500] + b"\xff" * 500 + TABLE[1000:], 0),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_stops_the_build_with_its_name_and_the_row_reached(tmp_path, case):
    name, data, most = BROKEN[case]
    with pytest.raises(ValueError, match=r"sha256sum") as caught:
        numbered(written(tmp_path / name, data))
    reached = int(re.search(rf"source s: .*/{re.escape(name)} cannot be read past row (\d+): ", str(caught.value))[1])
    assert reached == most if name == "a.json" else reached <= most


def test_a_broken_list_is_not_read_on_to_its_end_and_text_after_a_list_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BLOCK", 9)
    with pytest.raises(ValueError, match="past row 2: text follows the list"):
        rows_of(written(tmp_path / "a.json", b"[1, 2]   [3]"))
    monkeypatch.setattr(read, "ROW_LIMIT", 10_000)
    monkeypatch.setattr(read, "BLOCK", 1_000)
    [file] = written(tmp_path / "a.json", b'[{"a": 1}, {"a" 2}, ' + b'{"a": 3}, ' * 100_000 + b"{}]")
    stream = file.path.open("rb")
    position = os.dup(stream.fileno())  # the reader closes its own
    reader = read._list_rows(stream)
    assert next(reader) == (1, b'{"a": 1}')
    with pytest.raises(ValueError, match="the list breaks there"):
        next(reader)
    assert os.lseek(position, 0, os.SEEK_CUR) < 50_000
    os.close(position)


def test_files_are_found_by_name_and_by_glob_in_sorted_order_and_others_named(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)

    def names(path: str) -> list[str]:
        return [file.name for file in files_of(source(path=path), tmp_path, None, Path("mix.yml"))]

    assert [names(name) for name in ("a.jsonl", "c[1].jsonl")] == [["a.jsonl"], ["c[1].jsonl"]]
    assert names("*.jsonl") == ["a.jsonl", "b.jsonl", "c[1].jsonl"] and names("**/*.jsonl")[-1] == "deep/d.jsonl"
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match=r"mix\.yml: source s: no file .*/a\.jsonl; check --data-root \(now /"):
        files_of(source(path="a.jsonl"), tmp_path, None, Path("mix.yml"))
    for name in ("a.csv", "a.parquet.gz", "a", "a.gz", "a.jsonl.zip"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}: not a supported format: \.jsonl, .*\.zst.*\.parquet"):
            files_of(source(path=name), tmp_path, None, Path("mix.yml"))


def test_parse_takes_what_python_writes_and_refuses_what_is_no_json():
    assert parse(b'{"a": "\\ud800"}') == {"a": "\ud800"}
    assert parse(b'{"a": NaN}')["a"] != parse(b'{"a": NaN}')["a"]
    for bad in (b'{"a"', b"", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 1} {"a": 2}'):
        with pytest.raises(BadRow) as caught:
            parse(bad)
        assert caught.value.reason == "not_json" and caught.value.detail


def test_where_selects_by_column_value_and_list_of_values():
    row = {"source": "airoboros", "meta": {"score": 5, "tags": ["a"], "none": None}}
    assert selected(row, {})
    assert selected(row, {"source": "airoboros", "meta.score": [4, 5]})
    assert selected(row, {"meta.none": None}) and selected(row, {"meta.tags": [["a"]]})
    assert not selected(row, {"source": "airoboros", "meta.score": 4})
    assert not selected(row, {"source": ["alpaca"]})
    assert not any(selected(row, where) for where in ({"meta.absent": None}, {"source.deep": 1}))
    assert not selected([], {"a": 1})


# --- the Hub: a small server on this machine that answers as the Hub does where huggingface_hub and datasets ask

OLD, NEW = "a" * 40, "b" * 40
CARD = "---\nconfigs:\n- config_name: big\n  data_files:\n  - {split: train_sft, path: data/train-*.parquet}\n---\n"


def repository() -> dict[str, dict[str, bytes]]:
    """Two commits of one dataset; its parquet files are large files (LFS), the others are not."""
    old = {
        "README.md": CARD.encode(),
        "data/train-00000-of-00002.parquet": parquet(ROWS[:100]),
        "data/train-00001-of-00002.parquet": parquet(ROWS[100:]),
        "data/test-00000-of-00001.parquet": parquet(ROWS[:3]),
        "more/extra.jsonl": LINES,
        "table.csv": b"a,b\n",
    }
    return {OLD: old, NEW: {**old, "more/extra.jsonl": LINES + LINES}}


class Hub(BaseHTTPRequestHandler):
    """The endpoints of huggingface.co that listing and downloading a dataset touch."""

    def __init__(self, state: dict, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.state["asked"].append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/revision/(.+))?", path):
            self.answer(*match.groups(), lambda commit, files: self.info(match[1], commit, files))
        elif match := re.fullmatch(r"/api/datasets/(\w+/\w+)/tree/([^/]+)/?(.*)", path):
            self.answer(match[1], match[2], lambda _, files: self.tree(files, match[3]))
        elif match := re.fullmatch(r"/api/datasets/(\w+/\w+)/paths-info/([^/]+)", path):
            self.answer(match[1], match[2], lambda _, files: [])
        elif match := re.fullmatch(r"/datasets/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            self.answer(match[1], match[2], lambda _, files: files.get(match[3], "EntryNotFound"))
        else:
            self.send(404, b"{}", {})

    do_HEAD = do_POST = do_GET

    def answer(self, repo, revision, make):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        commit = self.state["branches"].get(revision or "main", revision)
        files = self.state["commits"].get(commit)
        reply = make(commit, files) if repo == "owner/name" and files else "RevisionNotFound"
        if repo != "owner/name":
            reply = "RepoNotFound"
        headers = {"X-Repo-Commit": str(commit)}
        if isinstance(reply, str):
            self.send(404, b"{}", {**headers, "X-Error-Code": reply})
        elif isinstance(reply, bytes):
            self.send(200, reply, {**headers, "ETag": f'"{hashlib.sha256(reply).hexdigest()}"'})
        else:
            self.send(200, json.dumps(reply).encode(), {**headers, "Content-Type": "application/json"})

    def send(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entry(self, name, data):
        digest = hashlib.sha256(data).hexdigest()
        lfs = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
        return {"size": len(data), **({"lfs": lfs} if name.endswith(".parquet") else {})}

    def info(self, repo, commit, files):
        siblings = [{"rfilename": name, "blobId": "0", **self.entry(name, data)} for name, data in files.items()]
        fixed = {"private": False, "tags": [], "downloads": 0, "likes": 0}
        return {"id": repo, "sha": commit, "siblings": siblings, **fixed}

    def tree(self, files, under):
        inside = {name: data for name, data in files.items() if name.startswith(f"{under}/" if under else "")}
        folders = {str(parent) for name in inside for parent in Path(name).parents} - {".", under}
        return [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)] + [
            {"type": "file", "path": name, "oid": "0", **self.entry(name, data)} for name, data in inside.items()
        ]

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """run(code) runs Python in a process whose Hub is the stand-in; `state`: what that holds and was asked."""
    state = {"commits": repository(), "branches": {"main": OLD}, "asked": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, state))
    Thread(target=server.serve_forever, daemon=True).start()
    prelude = f"""
import json
from pathlib import Path
from hermes3.mix import lock, read, spec as specs
SPEC = Path({str(tmp_path / "mix.yml")!r})
def rows(found):
    return [read.parse(line)["id"] for chunk in read.chunks("s", found) for line in chunk.lines]
"""

    def run(code: str, offline: bool = False):
        env = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run([sys.executable, "-c", prelude + code], env=env, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    run.state = state
    yield run
    server.shutdown()
    server.server_close()


def spec_of(folder: Path, *hub_sources: dict, **local) -> Path:
    both = [{"name": f"s{i}", "adapter": "messages", "licence": "MIT", **keys} for i, keys in enumerate(hub_sources)]
    spec = {"name": "mix", "kind": "sft", "tokenizer": "t", "sequence_len": 8, "seed": 1, **local}
    path = folder / "mix.yml"
    path.write_text(yaml.safe_dump({**spec, "categories": {"math": {"sources": both}}}))
    return path


FILES = """
out = []
for _, source in specs.load(SPEC).sources():
    try:
        found = lock.files_of(source, SPEC.parent, lock.read(SPEC), SPEC)
        out.append([[f.name for f in found], sorted({f.revision for f in found}), rows(found)])
    except ValueError as error:
        out.append(str(error))
print(json.dumps(out))
"""
MAKE = """
try:
    print(json.dumps(lock.make(SPEC)))
except ValueError as error:
    print(json.dumps(str(error)))
"""


def test_hub_files_are_found_by_glob_and_by_config_and_split(hub, tmp_path):
    repo = {"repo": "owner/name", "revision": "main"}
    spec_of(
        tmp_path,
        {**repo, "files": ["more/*.jsonl", "data/test-*"]},
        {**repo, "config": "big", "split": "train_sft"},
        {**repo, "config": "big", "split": "test"},
        {**repo, "config": "small"},
        {**repo, "files": ["*.parquet", "*.json"]},
        {**repo, "files": ["table.*"]},
        {**repo, "revision": "v2", "files": ["*.jsonl"]},
        {**repo, "repo": "owner/other", "files": ["*.jsonl"]},
    )
    everything = list(range(257))
    by_glob, by_split, no_split, no_config, no_match, no_format, no_revision, no_repo = hub(FILES)
    assert by_glob == [["data/test-00000-of-00001.parquet", "more/extra.jsonl"], [OLD], [0, 1, 2, *everything]]
    assert by_split == [[f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)], [OLD], everything]
    assert "source s2: owner/name at main: split test is none of train_sft" in no_split
    assert "source s3" in no_config and "big" in no_config
    assert "files: *.json matches none of" in no_match
    assert "table.csv: not a supported format" in no_format
    assert not any(line.endswith("table.csv") for line in hub.state["asked"])  # refused before it is fetched
    assert "source s6: owner/name at v2" in no_revision and "check repo, revision" in no_revision
    assert "source s7: owner/other at main" in no_repo


def test_a_lock_holds_commit_and_hashes_and_a_build_keeps_to_it(hub, tmp_path):
    (tmp_path / "own.jsonl").write_bytes(LINES)
    spec = spec_of(
        tmp_path,
        {"repo": "owner/name", "revision": "main", "config": "big", "split": "train_sft"},
        {"repo": "owner/name", "revision": "main", "files": ["more/*"]},
        {"path": str(tmp_path / "own.jsonl")},
    )
    made = hub(MAKE)
    assert made == lock.read(spec) and lock.lock_path(spec) == tmp_path / "mix.lock.json"
    old = hub.state["commits"][OLD]
    hashed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in old.items()}
    assert made["spec"] == "mix" and [s.get("revision") for s in made["sources"].values()] == [OLD, OLD, None]
    assert [s["files"] for s in made["sources"].values()] == [
        {name: hashed[name] for name in old if name.startswith("data/train")},
        {"more/extra.jsonl": hashed["more/extra.jsonl"]},
        {str(tmp_path / "own.jsonl"): hashed["more/extra.jsonl"]},
    ]
    fetched = [line for line in hub.state["asked"] if line.startswith("GET /datasets/")]
    assert any(line.endswith("more/extra.jsonl") for line in fetched)
    assert not any(line.endswith(".parquet") for line in fetched)  # the Hub states the hash of a large file

    hub.state["branches"]["main"] = NEW  # the lock is older, and stands
    locked = hub(FILES)
    assert [rows for _, _, rows in locked] == [list(range(257))] * 3 and locked[1][1] == [OLD]
    del hub.state["asked"][:]
    assert hub(FILES, offline=True) == locked and not hub.state["asked"]

    (tmp_path / "own.jsonl").write_bytes(LINES[:-10])
    hub.state["commits"][OLD]["more/extra.jsonl"] = b'{"id": 1}\n'  # a Hub that answers otherwise than it did
    shutil.rmtree(tmp_path / "home")
    kept, changed, own = hub(FILES)
    assert kept == locked[0]
    for said, name in ((changed, "s1: more/extra.jsonl"), (own, f"s2: {tmp_path / 'own.jsonl'}")):
        assert f"source {name} has sha256" in said and "the lock says" in said and "hermes3 mix lock" in said


def test_without_a_network_no_lock_is_made_and_no_hash_invented(hub, tmp_path):
    spec = spec_of(tmp_path, {"repo": "owner/name", "revision": "main", "files": ["more/*"]})
    for said in (hub(MAKE, offline=True), hub(FILES, offline=True)[0]):
        assert "source s0: owner/name at main" in said and "where there is a network" in said
    assert not lock.lock_path(spec).exists()


def test_a_spec_that_has_changed_since_its_lock_is_refused(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    spec = spec_of(tmp_path, {"path": "a.jsonl"})
    assert lock.read(spec) is None
    made = lock.make(spec, tmp_path)
    assert lock.read(spec) == made
    [(_, mine)] = lock.specs.load(spec).sources()
    assert files_of(mine, tmp_path, made, spec) == [File("a.jsonl", tmp_path / "a.jsonl")]
    for others, said in (
        ([{"path": "b.jsonl"}], "source s0 changed in"),
        ([{"path": "a.jsonl"}, {"path": "b.jsonl"}], "source s1 is new in"),
        ([{"path": "a.jsonl", "name": "x"}], "source s0 is gone from"),
        ([{"repo": "owner/name", "revision": OLD}], "source s0 changed in"),
    ):
        spec_of(tmp_path, *others)
        with pytest.raises(ValueError, match=rf"{said} .*run `hermes3 mix lock .*mix\.yml` again"):
            lock.read(spec)
    lock.lock_path(spec).write_text("[]")
    with pytest.raises(ValueError, match="not a lock"):
        lock.read(spec)


def test_a_file_that_joins_a_locked_glob_is_refused_and_branches_are_unpinned(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    spec = spec_of(tmp_path, {"path": "*.jsonl"})
    made = lock.make(spec, tmp_path)
    (tmp_path / "b.jsonl").write_bytes(LINES)
    [(_, mine)] = lock.specs.load(spec).sources()
    with pytest.raises(ValueError, match=r"source s0: b\.jsonl is new or gone since the lock; run"):
        files_of(mine, tmp_path, made, spec)
    repo = {"repo": "owner/name", "files": ["*"]}
    path = spec_of(tmp_path, {**repo, "revision": "main"}, {**repo, "revision": OLD}, {"path": "a.jsonl"})
    spec = lock.specs.load(path)
    assert lock.unpinned(spec, None) == ["s0"] and lock.unpinned(spec, {"sources": {}}) == []
