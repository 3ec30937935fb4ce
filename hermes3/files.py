"""Files: a user's error, YAML read into a checked form, and writing so that nothing half-written is ever seen."""

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[1]  # of the checkout: recipes, suites and tables lie below it


class UserError(ValueError):
    """What the user can mend: one line `FILE: KEY: what is wrong; what to do`. The command prints it and exits with 1.

    A ValueError, because pydantic takes those from validators.
    """


@cache
def _loader() -> type:
    """A safe YAML loader that refuses a key which stands twice in one mapping; PyYAML would take the last one."""
    import yaml  # 40 ms, which no `--help` needs

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and name != "<<":
                    wrong = f"given twice, on lines {lines[name]} and {line}, and the first would be dropped"
                    raise UserError(f"{name}: {wrong}; keep one of them")
                lines[name] = line
            return super().construct_mapping(node, deep)

    return Loader


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The mapping that `text` holds; `path` is named in the error."""
    import yaml

    try:
        mapping = yaml.load(text, _loader())  # noqa: S506, a safe loader
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: not a mapping; write one `key: value` per line")
    return mapping


def read_text(path: Path, known: Path | None = None) -> str:
    """The text of a file. `UserError` if it is missing or not UTF-8.

    `known`: a folder; when `path` is missing, the error names the files of its kind that are there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        there = sorted(file.stem for file in known.glob(f"*{path.suffix}")) if known else []
        remedy = f"there are {', '.join(there)}" if there else "check the path"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; give a text file") from None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file. `UserError` if the file is missing, is no JSON object, or lacks one of `keys`."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); write or copy it again") from None
    if missing := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise UserError(f"{path}: no key {missing[0]}; this is another kind of file, or of another version")
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; this is another kind of file")
    return content


def read_yaml(path: Path, known: Path | None = None) -> dict[str, Any]:
    """The mapping in a YAML file. `UserError` if the file is missing, is no mapping, or has a key twice; `known` as in
    `read_text`."""
    return parse_yaml(read_text(path, known), path)


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
    lines = []
    for one in error.errors():
        text = one["msg"].removeprefix("Value error, ")
        key = ".".join(map(str, one["loc"]))
        lines.append(f"{key}: {text}" if key else text)
    return lines


MARKER = ".hermes3"  # in each folder that a command wrote: {"by": the command, "files": {name: bytes}}; empty before


def check_out(out: Path, command: str) -> None:
    """Refuse to write the folder `out`, unless it is new or empty, or holds what `command` wrote and nothing else."""
    _refuse_file(out)
    if out.is_dir() and any(out.iterdir()) and (foreign := _foreign(out, command)):
        raise UserError(f"{out} is there, and {foreign}; name another folder, or move this one away")


def _refuse_file(folder: Path) -> None:
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"{folder}: {file} is a file, not a folder to write into; name another place")


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it that are missing. `UserError` where one of them is a file."""
    _refuse_file(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _foreign(folder: Path, command: str) -> str:
    """Why `folder` holds more than `command` wrote; "" if it does not. What is in a folder left empty may be lost."""
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        by, files = record["by"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"`{command}` did not make it"
    if by != command:
        return f"`{by}` made it, not `{command}`"
    for name, size in _contents(folder).items():
        kept_empty = any(f"{parent}/" in files for parent in Path(name).parents)
        if files.get(name) != size and not kept_empty:
            return f"`{command}` did not write {name} in it"
    return ""


def _contents(folder: Path) -> dict[str, int]:
    """{file below `folder`: bytes}, with {"empty/": 0} for a folder that holds nothing; without the marker."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_dir():
            contents[name] = path.lstat().st_size
        elif not any(path.iterdir()):
            contents[f"{name}/"] = 0
    contents.pop(MARKER, None)
    return contents


@contextmanager
def new_folder(out: Path, command: str) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well; a former `out` is there until then.

    `UserError` where `check_out` refuses. Afterwards, what killed runs of `command` left beside `out` is removed.
    """
    check_out(out, command)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp, marker = _claim(out)
    with marker:  # its lock says that this process lives
        try:
            yield tmp
            json.dump({"by": command, "files": _contents(tmp)}, marker, ensure_ascii=False, indent=1)
            marker.flush()
            tmp.chmod(0o755)
            check_out(out, command)
            with suppress(FileNotFoundError):  # set aside first: killed here, the old or the new one is whole on disk
                os.replace(out, out.with_name(f".{out.name}.hermes3-{secrets.token_hex(4)}"))
            os.replace(tmp, out)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    _sweep(out)


def lock(file: IO[Any], shared: bool = False) -> bool:
    """Lock `file` until it is closed; a shared lock waits, an exclusive one does not.

    False where another process has it, and on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _claim(out: Path) -> tuple[Path, IO[str]]:
    """A new hidden folder beside `out`, and its open marker, locked."""
    while True:
        tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}.hermes3-", dir=out.parent))
        try:
            marker = (tmp / MARKER).open("x", encoding="utf-8")
        except FileNotFoundError:  # empty still, it was swept
            continue
        lock(marker)
        return tmp, marker


def _sweep(out: Path) -> None:
    """Remove the hidden folders of runs that have ended, known by name, marker and the lock that nobody holds."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.hermes3-????????"):
        try:
            marker = (folder / MARKER).open("r+", encoding="utf-8")
        except FileNotFoundError:
            with suppress(OSError):  # unless it holds something, which then is not ours
                folder.rmdir()
            continue
        except OSError:
            continue
        with marker:
            if lock(marker):
                for path in folder.iterdir():
                    if path.name != MARKER:  # the last to go, for a sweep that is killed
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename. `UserError` where `path` is below a file."""
    make_folder(path.parent)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
