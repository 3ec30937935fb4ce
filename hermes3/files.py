"""Files: a user's error, YAML and JSON read in words, writing so that nothing half-written is ever seen; the commit."""

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[1]  # of the checkout: recipes, suites and tables lie below it
MARKER = ".hermes3"  # in each folder that a command wrote: {"by": the command, "files": {name: bytes}}; empty before
make_folder = partial(os.makedirs, exist_ok=True)


class UserError(ValueError):  # pydantic takes ValueErrors from validators
    """What the user can mend, in one line: `FILE: KEY: what is wrong; what to do`. The command then exits with 1."""


def read_text(path: Path, known: Path | None = None) -> str:
    """The text of a file. `UserError` if it is not UTF-8, or missing: it names the files of that kind in `known`."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        there = sorted(file.stem for file in known.glob(f"*{path.suffix}")) if known else []
        remedy = f"there are {', '.join(there)}" if there else "check the path"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; give a text file") from None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file. `UserError` if it is missing, no object, or lacks one of `keys` (`outer.inner`)."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); write or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; this is another kind of file")
    for key in keys:
        inner = content
        for part in key.split("."):
            if not isinstance(inner, dict) or part not in inner:
                raise UserError(f"{path}: no key {key}; this is another kind of file, or of another version")
            inner = inner[part]
    return content


def read_yaml(path: Path, known: Path | None = None) -> dict[str, Any]:
    """The mapping in a YAML file. `UserError` if it is missing, is none, or has a key twice; `known` as above."""
    import yaml  # 40 ms, which no `--help` needs

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
            keys: dict[str, yaml.Node] = {}
            for key, _ in node.value:
                first = keys.setdefault(str(key.value), key)
                if first is not key and key.value != "<<":  # PyYAML would take the last one
                    lines = f"{first.start_mark.line + 1} and {key.start_mark.line + 1}"
                    raise UserError(f"{path}: {key.value}: given twice, on lines {lines}; keep one of them")
            return super().construct_mapping(node, deep)

    text = read_text(path, known)
    try:
        mapping = yaml.load(text, Loader)  # noqa: S506, a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: not a mapping; write one `key: value` per line")
    return mapping


def read_model(path: Path, model: type[T], known: Path | None = None) -> T:
    """A YAML file as a pydantic `model`. `UserError` names the file and every key that is wrong."""
    return validated(read_yaml(path, known), model, path)


def validated(given: Any, model: type[T], where: object) -> T:
    """`given` as a pydantic `model`. `UserError` begins with `where`, a file or file:line, and names each wrong key."""
    from pydantic import ValidationError

    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(wrong_keys(error))}") from None


def wrong_keys(error: Any) -> list[str]:
    """`key.inner: what is wrong` for each finding of a pydantic `ValidationError`."""
    pairs = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
    return [f"{key}: {text}" if key else text for key, text in pairs]


def check_out(out: Path, command: str) -> None:
    """Refuse to write the folder `out`, unless it is new or empty, or holds what `command` wrote and nothing else.
    What is in a folder that it left empty does not count, and may be lost."""
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"{out}: {file} is a file, not a folder to write into; name another place")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        record = json.loads((out / MARKER).read_text(encoding="utf-8"))
        by, files = record["by"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        by, files = None, {}
    others = [name for name, size in _contents(out).items() if files.get(name) != size]
    others = [name for name in others if not any(f"{parent}/" in files for parent in Path(name).parents)]
    if by != command or others:
        denied = "make it" if by != command else f"write {others[0]} in it"
        raise UserError(f"{out} is there, and `{command}` did not {denied}; name another folder, or move this one away")


def _contents(folder: Path) -> dict[str, int]:
    """{file below `folder`: bytes}, with {"empty/": 0} for a folder that holds nothing; without the marker."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if path != folder / MARKER and not (is_folder and any(path.iterdir())):
            contents[f"{path.relative_to(folder)}{'/' * is_folder}"] = 0 if is_folder else path.lstat().st_size
    return contents


@contextmanager
def new_folder(out: Path, command: str) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well; a former `out` is there until then.
    Then what killed runs left beside it is removed: hidden folders, known by a marker and a lock that nobody holds."""
    check_out(out, command)
    out = out.resolve()
    make_folder(out.parent)
    hidden = f".{out.name}.hermes3-"
    tmp = Path(tempfile.mkdtemp(prefix=hidden, dir=out.parent))
    try:
        with (tmp / MARKER).open("x", encoding="utf-8") as marker:
            lock(marker)  # this process lives
            yield tmp
            json.dump({"by": command, "files": _contents(tmp)}, marker, ensure_ascii=False, indent=1)
            marker.flush()
            tmp.chmod(0o755)
            check_out(out, command)
            with suppress(FileNotFoundError):  # set aside first: killed here, the old or the new one is whole on disk
                if any(out.iterdir()):
                    os.replace(out, out.with_name(hidden + secrets.token_hex(4)))
            os.replace(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    for path in out.parent.glob(f"{glob.escape(hidden)}????????/{MARKER}"):
        with suppress(OSError), path.open("r+") as marker:
            if lock(marker):
                shutil.rmtree(path.parent, ignore_errors=True)


def rewrite(out: Path, texts: dict[str, str]) -> None:
    """Replace or add text files in a folder that `new_folder` made; the marker notes them as ours."""
    record = read_json(out / MARKER, "by", "files")
    for name, text in texts.items():
        write_text(out / name, text)
        record["files"][name] = (out / name).stat().st_size
    write_text(out / MARKER, json.dumps(record, ensure_ascii=False, indent=1))


def lock(file: IO[Any], shared: bool = False) -> bool | None:
    """Lock `file` until it is closed; a shared lock waits, an exclusive one does not.
    False where another process has it, None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:  # Lustre without -o flock, NFS without lockd
        return False if isinstance(error, BlockingIOError) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename."""
    make_folder(path.parent)
    tmp = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")  # two nodes may have one process id
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(folder: Path, digits: int = 40, dirty: bool = True) -> str | None:
    """The commit of the checkout whose root is `folder`, `-dirty` behind it where tracked files differ; None without.
    Another owner's (shared disks) is trusted, which git refuses: its code runs anyway. None above it is."""
    command = ["git", "-C", str(folder), "-c", f"safe.directory={folder.resolve()}"]
    command += ["describe", "--always", f"--abbrev={digits}", "--exclude=*", *["--dirty"] * dirty]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
