"""Reading sources and locking them: formats, numbering, broken files, and a stand-in for the Hub."""

import datetime as dt
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
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


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    return bytes(sink.getvalue())


TABLE = parquet(pa.Table.from_pylist(ROWS))
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TEXTS = {"a.jsonl": LINES, "a.NDJSON": LINES, "a.json": LIST, "lines.json": LINES}
FORMATS = {name + ending: press(data) for name, data in TEXTS.items() for ending, press in COMPRESS.items()}
FORMATS["a.parquet"] = TABLE


def source(**keys) -> Source:
    return Source.model_validate({"name": "s", "adapter": "messages", "licence": "MIT", **keys})


def written(path: Path, data: bytes) -> list[File]:
    path.write_bytes(data)
    return [File(path.name, path)]


def numbered(files: list[File]) -> list[tuple[int, bytes]]:
    return [pair for chunk in chunks("s", files) for pair in enumerate(chunk.lines, chunk.first)]


def rows_of(files: list[File]) -> list:
    return [parse(line) for _, line in numbered(files)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_compression_gives_the_same_rows(tmp_path, name):
    assert rows_of(written(tmp_path / name, FORMATS[name])) == ROWS


def test_a_compressed_file_of_two_parts_is_read_to_its_end(tmp_path):
    for ending in (".gz", ".zst"):
        assert rows_of(written(tmp_path / f"a.jsonl{ending}", COMPRESS[ending](LINES) * 2)) == ROWS * 2


def test_parquet_values_that_json_lacks_become_numbers_and_text(tmp_path):
    row = {"price": Decimal("1.50"), "day": dt.date(2024, 8, 1), "at": dt.datetime(2024, 8, 1, 12), "raw": "ü".encode()}
    table = pa.Table.from_pylist([row]).append_column("ns", pa.array([1], pa.timestamp("ns")))
    times = {"day": "2024-08-01", "at": "2024-08-01T12:00:00", "ns": "1970-01-01 00:00:00.000000001"}
    assert rows_of(written(tmp_path / "a.parquet", parquet(table))) == [{"price": 1.5, "raw": "ü", **times}]


@pytest.mark.parametrize("block", [2, 7, 64])
def test_a_list_may_be_cut_anywhere_by_the_blocks_that_it_is_read_in(tmp_path, monkeypatch, block):
    monkeypatch.setattr(read, "BLOCK", block)
    odd = [12, -3.5e10, "a,]", [], {}, True, None, {"a": [1, {"b": "\\"}]}, ROWS[3]]
    for text in (json.dumps(odd), json.dumps(odd, indent=3, ensure_ascii=False), " [ ] \n", json.dumps(odd) + "\n"):
        assert rows_of(written(tmp_path / "a.json", text.encode())) == json.loads(text)


def test_an_odd_row_of_a_list_costs_that_row_alone(tmp_path):
    lines = [b'{"a": "\\ud800"}', b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "raw\ttab"}', b'{"a": 1}']
    data = b"\xef\xbb\xbf[" + b", ".join(lines) + b"]"
    assert numbered(written(tmp_path / "a.json", data)) == list(enumerate(lines, 1))


def test_a_long_list_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.json"
    row = json.dumps({"text": "word " * 2000}).encode()
    with path.open("wb") as file:  # 100 MB
        file.write(b"[" + row + (b"," + row) * 9_999 + b"]")
    tracemalloc.start()
    assert sum(len(chunk.lines) for chunk in chunks("s", [File("a.json", path)])) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 80e6  # two chunks of 16 MB and some blocks
    tracemalloc.stop()


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(1, 90), st.booleans())
def test_chunks_lose_nothing_and_are_as_full_as_their_limits_allow(tmp_path_factory, lengths, rows, size, end):
    texts = [b"x" * length for length in lengths]
    files = written(tmp_path_factory.getbasetemp() / "lines.jsonl", b"\n".join(texts) + b"\n" * end)
    made = list(chunks("s", files * 2, rows, size))
    pairs = [(chunk.first + i, line) for chunk in made for i, line in enumerate(chunk.lines)]
    assert pairs == [(number, text) for number, text in enumerate(texts, 1) if text] * 2
    for chunk, after in zip_longest(made, made[1:]):
        total = sum(map(len, chunk.lines))
        assert 1 <= len(chunk.lines) <= rows and (len(chunk.lines) == 1 or total <= size)
        if after and after.first == chunk.first + len(chunk.lines):  # cut by a limit, not by a blank line or the end
            assert len(chunk.lines) == rows or total + len(after.lines[0]) > size


HOLE = LIST.index(b'"id": 100')
BROKEN = {  # name, bytes, last row that can be read; a list is read row by row, the others in blocks
    "truncated gzip": ("a.jsonl.gz", gzip.compress(LINES)[:-2000], 250),
    "gzip without its checksum": ("a.jsonl.gz", gzip.compress(LINES)[:-6], 257),
    "a list in a gzip without its checksum": ("a.json.gz", gzip.compress(LIST)[:-6], 257),
    "truncated zstd": ("a.jsonl.zst", zstandard.compress(LINES)[:-100], 256),
    "no gzip at all": ("a.jsonl.gz", LINES, 0),
    "list that ends early": ("a.json", LIST[:HOLE], 100),
    "list without its end": ("a.json", LIST[:-1], 256),
    "list with a broken row": ("a.json", LIST.replace(b'"id": 100', b'"id" 100'), 100),
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


def test_files_are_found_by_name_and_by_glob_in_sorted_order_and_others_named(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)

    def names(path: str) -> list[str]:
        return [file.name for file in files_of(source(path=path), tmp_path, None, Path("mix.yml"))]

    assert [names(name) for name in ("a.jsonl", "c[1].jsonl")] == [["a.jsonl"], ["c[1].jsonl"]]
    assert names("*.jsonl") == ["a.jsonl", "b.jsonl", "c[1].jsonl"] and names("**/*.jsonl")[-1] == "deep/d.jsonl"
    with pytest.raises(ValueError, match=r"mix\.yml: source s: no file .*/e\.jsonl; check --data-root \(now /"):
        names("e.jsonl")
    for name in ("a.csv", "a.parquet.gz", "a", "a.gz", "a.jsonl.zip"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}: not a supported format: \.jsonl, .*\.zst.*\.parquet"):
            names(name)


def test_parse_takes_what_python_writes_and_refuses_what_is_no_json():
    assert parse(b'{"a": "\\ud800"}') == {"a": "\ud800"}
    assert parse(b'{"a": NaN}')["a"] != parse(b'{"a": NaN}')["a"]
    assert [parse(str(n).encode()) for n in (2**64 - 1, 10**30)] == [2**64 - 1, 10**30]  # no float in its stead
    for bad in (b'{"a"', b"", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 1} {"a": 2}'):
        with pytest.raises(BadRow, match="^not_json: ."):
            parse(bad)


def test_where_selects_by_column_value_and_list_of_values():
    row = {"source": "airoboros", "score": 5, "tags": ["a"], "none": None}
    for where in ({}, {"source": "airoboros", "score": [4, 5]}, {"none": None}, {"tags": [["a"]]}):
        assert selected(row, where)
    for where in ({"source": "airoboros", "score": 4}, {"source": ["alpaca"]}, {"absent": None}):
        assert not selected(row, where)
    assert not selected([], {"a": 1})


# --- the Hub: a small server on this machine that answers as the Hub does where huggingface_hub and datasets ask

OLD, NEW = "a" * 40, "b" * 40
CARD = "---\nconfigs:\n- config_name: big\n  data_files:\n  - {split: train_sft, path: data/train-*.parquet}\n---\n"
ENDPOINT = re.compile(r"(?:/api)?/datasets/(\w+/\w+)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?")


def repository() -> dict[str, dict[str, bytes]]:
    """Two commits of one dataset; its parquet files are large files (LFS), the others are not."""
    old = {"README.md": CARD.encode(), "more/extra.jsonl": LINES, "table.csv": b"a,b\n"}
    for name, rows in {
        "train-00000-of-00002": ROWS[:100],
        "train-00001-of-00002": ROWS[100:],
        "test": ROWS[:3],
    }.items():
        old[f"data/{name}.parquet"] = parquet(pa.Table.from_pylist(rows))
    return {OLD: old, NEW: {**old, "more/extra.jsonl": LINES + LINES}}


class Hub(BaseHTTPRequestHandler):
    """The endpoints of huggingface.co that listing and downloading a dataset touch."""

    def __init__(self, state: dict, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.state["asked"].append(f"{self.command} {path}")
        match = ENDPOINT.fullmatch(path)
        repo, what, revision, name = match.groups() if match else [None] * 4
        commit = self.state["branches"].get(revision or "main", revision)
        files = self.state["commits"].get(commit) if repo == "owner/name" else None
        headers = {"X-Repo-Commit": str(commit)}
        if files is None or (what == "resolve" and name not in files):
            missing = "Repo" if repo != "owner/name" else "Revision" if files is None else "Entry"
            self.send(404, b"{}", {**headers, "X-Error-Code": f"{missing}NotFound"})
        elif what == "resolve":
            self.send(200, files[name], {**headers, "ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"'})
        else:
            replies = {"paths-info": lambda: [], "tree": lambda: self.tree(files, name)}
            reply = replies.get(what, lambda: self.info(repo, commit, files))()
            self.send(200, json.dumps(reply).encode(), {**headers, "Content-Type": "application/json"})

    do_HEAD = do_POST = do_GET

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
        entries = [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)]
        return entries + [{"type": "file", "path": n, "oid": "0", **self.entry(n, data)} for n, data in inside.items()]

    def log_message(self, *_):
        pass


PRELUDE = """
import json, sys
from itertools import zip_longest
from pathlib import Path
from hermes3.mix import lock, read, spec as specs
SPEC, out = Path(sys.argv[1]), []
def rows(files):
    return [read.parse(line)["id"] for chunk in read.chunks("s", files) for line in chunk.lines]
"""
MAKE = """
try:
    out = lock.make(SPEC)
except ValueError as error:
    out = str(error)
"""
FILES = """
for _, source in specs.load(SPEC).sources():
    try:
        files = lock.files_of(source, SPEC.parent, lock.read(SPEC), SPEC)
        out.append([[f.name for f in files], sorted({f.revision for f in files}), rows(files)])
    except ValueError as error:
        out.append(str(error))
"""


@pytest.fixture
def hub(tmp_path):
    """run(code) runs Python in a process whose Hub is the stand-in; `state`: what that holds and was asked."""
    state = {"commits": repository(), "branches": {"main": OLD}, "asked": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, state))
    Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    env |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")

    def run(code: str, offline: bool = False):
        command = [sys.executable, "-c", f"{PRELUDE}{code}\nprint(json.dumps(out))", tmp_path / "mix.yml"]
        env["HF_HUB_OFFLINE"] = str(int(offline))
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    run.state = state
    yield run
    server.shutdown()
    server.server_close()


REPO = {"repo": "owner/name", "revision": "main"}


def spec_of(folder: Path, *declared: dict) -> Path:
    sources = [{"name": f"s{i}", "adapter": "messages", "licence": "MIT", **keys} for i, keys in enumerate(declared)]
    spec = {"name": "mix", "kind": "sft", "tokenizer": "t", "sequence_len": 8, "seed": 1}
    path = folder / "mix.yml"
    path.write_text(yaml.safe_dump({**spec, "categories": {"math": {"sources": sources}}}))
    return path


def test_hub_files_are_found_by_glob_and_by_config_and_split(hub, tmp_path):
    spec_of(
        tmp_path,
        {**REPO, "files": ["more/*.jsonl", "data/test*"]},
        {**REPO, "config": "big", "split": "train_sft"},
        {**REPO, "config": "big", "split": "test"},
        {**REPO, "config": "small"},
        {**REPO, "files": ["*.parquet", "*.json"]},
        {**REPO, "files": ["table.*"]},
        {**REPO, "revision": "v2", "files": ["*.jsonl"]},
        {**REPO, "repo": "owner/other", "files": ["*.jsonl"]},
    )
    by_glob, by_split, no_split, no_config, no_match, no_format, no_revision, no_repo = hub(FILES)
    assert by_glob == [["data/test.parquet", "more/extra.jsonl"], [OLD], [0, 1, 2, *range(257)]]
    assert by_split == [[f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)], [OLD], list(range(257))]
    assert "source s2: owner/name at main: split test is none of train_sft" in no_split
    assert "source s3" in no_config and "big" in no_config
    assert "files: *.json matches none of" in no_match
    assert "table.csv: not a supported format" in no_format
    assert not any(line.endswith("table.csv") for line in hub.state["asked"])  # refused before it is fetched
    assert "source s6: owner/name at v2" in no_revision and "check repo, revision" in no_revision
    assert "source s7: owner/other at main" in no_repo


def test_a_lock_holds_commit_and_hashes_and_a_build_keeps_to_it(hub, tmp_path):
    (tmp_path / "own.jsonl").write_bytes(LINES)
    by_split, by_glob = {**REPO, "config": "big", "split": "train_sft"}, {**REPO, "files": ["more/*"]}
    spec = spec_of(tmp_path, by_split, by_glob, {"path": str(tmp_path / "own.jsonl")})
    for error in (hub(MAKE, offline=True), hub(FILES, offline=True)[1]):
        assert "at main: " in error and "where there is a network" in error
    assert not lock.lock_path(spec).exists()

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
    for error, name in ((changed, "s1: more/extra.jsonl"), (own, f"s2: {tmp_path / 'own.jsonl'}")):
        assert f"source {name} has sha256" in error and "the lock says" in error and "hermes3 mix lock" in error


def test_a_spec_or_a_glob_that_has_changed_since_its_lock_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    spec = spec_of(tmp_path, {"path": "*.jsonl"})
    assert lock.read(spec) is None
    made = lock.make(spec, tmp_path)
    assert lock.read(spec) == made
    [(_, mine)] = lock.specs.load(spec).sources()
    assert [file.path for file in files_of(mine, tmp_path, made, spec)] == [tmp_path / "a.jsonl"]
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(ValueError, match=r"source s0: b\.jsonl has sha256 .* the lock says None"):
        files_of(mine, tmp_path, made, spec)
    for others in ([{"path": "b.jsonl"}], [{"path": "*.jsonl"}, {"path": "b.jsonl"}], [{**REPO, "revision": OLD}]):
        spec_of(tmp_path, *others)
        with pytest.raises(ValueError, match=r"source s. is new, gone or changed .*run `hermes3 mix lock .*` again"):
            lock.read(spec)
    spec = lock.specs.load(spec_of(tmp_path, REPO, {**REPO, "revision": OLD}, {"path": "a.jsonl"}))
    assert lock.unpinned(spec, None) == ["s0"] and lock.unpinned(spec, {"sources": {}}) == []
