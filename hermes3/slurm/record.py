"""What a stage of a pipeline leaves of itself: NAME.json when it is submitted, NAME.done when it has ended well.

`HERMES3_STAMP` in a job's environment is the path of its NAME.done; without it a job is no stage, and nothing is
written. The scripts of launch/ end with `python -m hermes3.slurm.record done`, or `failed CODE`. Imports are light: a
job that has lost its environment's packages can still say that it failed.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hermes3.files import UserError, sha256, write_text

STAMP = "HERMES3_STAMP"


@dataclass(frozen=True)
class Record:
    """A submitted stage. `reads`: file -> sha256; `needed_by`: stages that wait for it; `again`: the user's command.

    `made`: files that stages before it make, whose hashes are noted when it is done.
    """

    stage: str
    job: int | None
    log: str
    command: str
    reads: dict[str, str]
    needed_by: list[str]
    again: str
    made: list[str] = field(default_factory=list)


def write(stamp: Path, record: Record) -> None:
    """Note a stage as submitted."""
    write_text(stamp.with_suffix(".json"), json.dumps(asdict(record), indent=1) + "\n")


def read(stamp: Path) -> Record | None:
    """The stage's record; None if it was never submitted."""
    path = stamp.with_suffix(".json")
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: no record of a stage ({error}); delete it, and the stage runs again") from None


def hashes(paths: list[Path]) -> dict[str, str]:
    """File -> sha256, of files and of all files in folders; a path that is not there is left out."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): sha256(file) for file in files if file.is_file() and "__pycache__" not in file.parts}


def done(stamp: Path) -> None:
    """Note a stage as complete, and what it was made of."""
    record = read(stamp)
    made = hashes([Path(path) for path in record.made]) if record else {}
    end = {"job": os.environ.get("SLURM_JOB_ID"), "ended": time.strftime("%Y-%m-%d %H:%M:%S"), "made": made}
    write_text(stamp, json.dumps(end) + "\n")


def made(stamp: Path) -> dict[str, str]:
    """File -> sha256 of what a complete stage was made of; {} for one that is not."""
    return json.loads(stamp.read_text(encoding="utf-8")).get("made", {}) if stamp.is_file() else {}


def failure(stamp: Path, code: str) -> str:
    """What a failed stage says last in its log."""
    record = read(stamp)
    name = record.stage if record else stamp.stem
    text = f"hermes3: stage {name} failed with exit code {code}; the reason is above."
    if record and record.needed_by:
        text += f" Slurm cancels what needs it: {', '.join(record.needed_by)}."
    return text + (f" When it is mended: {record.again}" if record else "")


if __name__ == "__main__":
    match os.environ.get(STAMP), sys.argv[1:]:
        case None | "", _:
            pass  # this job is no stage
        case stamp, ["done"]:
            done(Path(stamp))
        case stamp, ["failed", code]:
            print(failure(Path(stamp), code), file=sys.stderr)
        case _:
            sys.exit("usage: python -m hermes3.slurm.record done | failed CODE")
