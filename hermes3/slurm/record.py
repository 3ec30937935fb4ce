"""What a stage of a pipeline leaves of itself, beside its stamp NAME.done.

NAME.json is written before its job is submitted; NAME.begun, with the hashes of what it reads, when the job starts; and
NAME.done, which `HERMES3_STAMP` names in the job, when it has ended well. A job without that is no stage. Imports are
light: a job that has lost its packages can still say that it failed.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from hermes3.files import UserError, read_json, sha256, write_text

STAMP = "HERMES3_STAMP"


@dataclass(frozen=True)
class Record:
    """A submitted stage."""

    stage: str
    command: str
    reads: list[str]  # files and folders
    needed_by: list[str]  # stages that wait for it
    again: str  # the user's command
    job: int | None = None  # not known of a dry run, nor where the launch was killed before it had noted it
    log: str = ""


def write(stamp: Path, record: Record) -> None:
    write_text(stamp.with_suffix(".json"), json.dumps(asdict(record), indent=1) + "\n")


def read(stamp: Path) -> Record | None:
    """The stage's record; None if it was never submitted."""
    path = stamp.with_suffix(".json")
    try:
        return Record(**read_json(path)) if path.exists() else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: no record of a stage ({error}); delete it, and the stage runs again") from None


def hashes(paths: list[str]) -> dict[str, str]:
    """File -> sha256, of files and of all files in folders; a path that is not there is left out."""
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): sha256(file) for file in files if file.is_file() and "__pycache__" not in file.parts}


def begin(stamp: Path) -> None:
    """Note what the stage reads, as its job starts for the first time."""
    begun, record = stamp.with_suffix(".begun"), read(stamp)
    if record and not (os.environ.get("SLURM_RESTART_COUNT") and begun.exists()):
        page = {"job": os.environ.get("SLURM_JOB_ID"), "command": record.command, "of": hashes(record.reads)}
        write_text(begun, json.dumps(page) + "\n")


def done(stamp: Path) -> None:
    """Note a stage as complete. What has changed while it ran has no hash in the stamp, and so is another's."""
    begun = stamp.with_suffix(".begun")
    page = read_json(begun) if begun.exists() else {"job": os.environ.get("SLURM_JOB_ID")}
    if was := page.get("of"):
        now = hashes([*was])
        page["of"] = {file: was[file] if now.get(file) == was[file] else None for file in was}
    write_text(stamp, json.dumps(page) + "\n")


def changed(stamp: Path, reads: list[str], command: str) -> str:
    """What differs from what a complete stage was made of; "" for nothing, or where its stamp does not say of what."""
    page, now = read_json(stamp), hashes(reads)
    if (was := page.get("of")) is None:
        return ""
    if files := sorted(file for file in now.keys() | was.keys() if now.get(file) != was.get(file)):
        return f"{files[0]} has changed since job {page['job']} began"
    return "" if page.get("command") == command else f"its command is another than job {page['job']}'s"


if __name__ == "__main__" and os.environ.get(STAMP):
    stamp = Path(os.environ[STAMP])
    match sys.argv[1:]:
        case ["begin"]:
            begin(stamp)
        case ["done"]:
            done(stamp)
        case ["failed", code]:  # the last words of the log
            record = read(stamp)
            text = f"hermes3: stage {record.stage if record else stamp.stem} failed with exit code {code}; "
            text += "the reason is above."
            if record and record.needed_by:
                text += f" Slurm cancels what needs it: {', '.join(record.needed_by)}."
            print(text + (f" When it is mended: {record.again}" if record else ""), file=sys.stderr)
