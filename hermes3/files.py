"""Files: a user's error, YAML read into a checked form, and writing so that nothing half-written is ever seen."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


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


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well; a former `out` is there until then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield tmp
        tmp.chmod(0o755)
        if out.exists():  # set aside first: killed here, the old folder or the new one is whole on disk
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            os.replace(out, old / out.name)
            os.replace(tmp, out)
            shutil.rmtree(old)
        else:
            os.replace(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
