"""What an offline run of wandb wrote: its `.wandb` file is LevelDB's log format with one protobuf message a record."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768  # bytes; no record's piece crosses the end of one
LAST = (1, 4)  # kinds of pieces that end a record: a whole one, and the last of several


def records(data: bytes) -> Iterator[Record]:
    assert data[:4] == b":W&B"
    at, pieces = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in LAST:
            yield Record.FromString(pieces)
            pieces = b""


def attempts(wandb_dir: Path) -> list[SimpleNamespace]:
    """All of a WANDB_DIR in their order of time."""
    return [read(path) for path in sorted(wandb_dir.glob("wandb/offline-run-*/*.wandb"))]


def read(path: Path) -> SimpleNamespace:
    """`history`: the values logged, by key, a dict for each call of `wandb.log`; `ended`: whether it was closed."""
    attempt = SimpleNamespace(raw=path.read_bytes(), history=[], ended=False)
    for record in records(attempt.raw):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                attempt.id, attempt.project, attempt.name = run.run_id, run.project, run.display_name
                attempt.group, attempt.job_type, attempt.tags = run.run_group, run.job_type, list(run.tags)
            case "history":
                items = record.history.item
                attempt.history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            case "exit":
                attempt.ended = True
    return attempt
