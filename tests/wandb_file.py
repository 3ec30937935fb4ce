"""What an offline run of wandb wrote: its `.wandb` file is LevelDB's log format with one protobuf message a record."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # bytes; no record's piece crosses the end of one
LAST = (1, 4)  # kinds of pieces that end a record: a whole one, and the last of several


@dataclass
class Attempt:
    """One `offline-run-*` folder. `history`: logged values by key, a dict a call of `wandb.log`."""

    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    ended: bool = False
    raw: bytes = b""


def records(data: bytes) -> Iterator[bytes]:
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
            yield pieces
            pieces = b""


def attempts(wandb_dir: Path) -> list[Attempt]:
    """All of a WANDB_DIR in their order of time."""
    return [read(path) for path in sorted(wandb_dir.glob("wandb/offline-run-*/*.wandb"))]


def read(path: Path) -> Attempt:
    attempt = Attempt(raw=path.read_bytes())
    for data in records(attempt.raw):
        record = wandb_internal_pb2.Record.FromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                attempt.id, attempt.project, attempt.name = run.run_id, run.project, run.display_name
                attempt.group, attempt.job_type, attempt.tags = run.run_group, run.job_type, list(run.tags)
            case "config":
                for item in record.config.update:
                    attempt.config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            case "history":
                items = record.history.item
                attempt.history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            case "exit":
                attempt.ended = True
    return attempt
