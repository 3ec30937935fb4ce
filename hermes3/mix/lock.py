"""The files of a source, and `data_mixes/NAME.lock.json` beside `NAME.yml`, which pins them.

The lock holds the commit of every Hub dataset and the hash of every file:
{"spec": name, "sources": {name: {"asked", "repo"?, "revision"?, "files": {file: {"sha256", "bytes"}}}}}
`asked` is what the spec says of the place, so that a later change of the spec is noticed. With a lock a build reads the
same bytes next year, or stops; without one `revision: main` is whatever the branch holds that day.
"""

import fnmatch
import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes3.files import UserError, sha256, write_text
from hermes3.mix import spec as specs
from hermes3.mix.read import File, format_of
from hermes3.mix.spec import Source

Lock = dict[str, Any]
PLACE = {"path", "repo", "revision", "config", "split", "files"}  # keys of a source
OFFLINE = (
    "run `hermes3 mix lock SPEC` and one build where there is a network, then copy the lock and the Hub cache here"
)
WRONG = "check repo, revision, files, config and split; a gated dataset needs `hf auth login`"


def lock_path(spec_path: Path) -> Path:
    return spec_path.with_suffix(".lock.json")


def read(spec_path: Path) -> Lock | None:
    """The lock of a spec, if it has one. `UserError` where the two differ in their sources."""
    path = lock_path(spec_path)
    if not path.is_file():
        return None
    again = f"run `hermes3 mix lock {spec_path}` again"
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        locked = {name: source["asked"] for name, source in lock["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a lock; {again}") from None
    declared = {source.name: _place(source) for _, source in specs.load(spec_path).sources()}
    for name in sorted(declared.keys() | locked.keys()):
        if declared.get(name) != locked.get(name):
            change = "is gone from" if name not in declared else "changed in" if name in locked else "is new in"
            raise UserError(f"{path}: source {name} {change} {spec_path}; {again}")
    return lock


def make(spec_path: Path, data_root: Path = Path()) -> Lock:
    """Resolve and hash every source of a spec; write the lock beside it and return it.

    The Hub states the SHA-256 of its large files; small ones are downloaded and hashed. `UserError` names the source
    that cannot be resolved.
    """
    spec = specs.load(spec_path)
    sources = {}
    for _, source in spec.sources():
        revision, listed = _listed(source, data_root, spec_path)
        files = {}
        for name, entry in listed.items():
            if entry and entry.lfs:
                files[name] = {"sha256": entry.lfs.sha256, "bytes": entry.lfs.size}
            else:
                path = _path(source, name, revision, data_root)
                files[name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        pinned = {"repo": source.repo, "revision": revision} if source.repo else {}
        sources[source.name] = {"asked": _place(source), **pinned, "files": files}
    lock = {"spec": spec.name, "sources": sources}
    write_text(lock_path(spec_path), json.dumps(lock, indent=2, ensure_ascii=False) + "\n")
    return lock


def unpinned(spec: specs.Spec, lock: Lock | None) -> list[str]:
    """Names of the Hub sources that may hold other data tomorrow: neither locked nor at a commit."""
    return [
        source.name
        for _, source in spec.sources()
        if source.repo and not lock and not re.fullmatch(r"[0-9a-f]{40}", source.revision or "")
    ]


def files_of(source: Source, data_root: Path, lock: Lock | None, spec_path: Path) -> list[File]:
    """The files of `source`, downloaded if they are on the Hub, and compared with the hashes of `lock` if there is one.

    `UserError` where there is no such file, where its format is not supported, or where a hash differs. A locked Hub
    source needs no network once its files are in the Hub cache.
    """
    locked = lock["sources"][source.name] if lock else None
    if locked and source.repo:
        revision, names = locked["revision"], locked["files"]
    else:
        revision, names = _listed(source, data_root, spec_path)
    files = [File(name, _path(source, name, revision, data_root), revision) for name in names]
    again = f"`hermes3 mix lock {spec_path}`"
    if locked and (differing := set(names) ^ set(locked["files"])):
        raise UserError(f"source {source.name}: {min(differing)} is new or gone since the lock; run {again} again")
    for file in files if locked else ():
        expected, actual = locked["files"][file.name]["sha256"], sha256(file.path)
        if actual != expected:
            raise UserError(
                f"source {source.name}: {file.name} has sha256 {actual}, the lock says {expected}; bring back the file "
                f"that was locked, or accept this one with {again}"
            )
    return files


State = tuple[int, int, int]  # of a file: inode, bytes, time of its last change in nanoseconds


def states(files: dict[str, list[File]]) -> dict[Path, State]:
    """How each file of {source: files} is before it is read."""
    return {file.path: _state(file.path) for each in files.values() for file in each}


def _state(path: Path) -> State:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def hashes(files: dict[str, list[File]], before: dict[Path, State], lock: Lock | None) -> dict[str, dict[str, str]]:
    """{source: {file: SHA-256}} of what was read. `UserError` where a file is another than it was `before`."""
    digests: dict[str, dict[str, str]] = {}
    for name, each in files.items():
        for file in each:
            try:
                digest = sha256(file.path)
                same = _state(file.path) == before[file.path]
            except FileNotFoundError:
                same = False
            if not same or (lock and digest != lock["sources"][name]["files"][file.name]["sha256"]):
                wrong = f"{file.path} changed while it was read; build again when nothing writes to it"
                raise UserError(f"source {name}: {wrong}")
            digests.setdefault(name, {})[file.name] = digest
    return digests


def _place(source: Source) -> dict[str, Any]:
    return source.model_dump(include=PLACE, exclude_defaults=True)


def _listed(source: Source, data_root: Path, spec_path: Path) -> tuple[str | None, dict[str, Any]]:
    """(commit, {file name: its RepoSibling, with size and LFS hash}) in reading order; None twice for local files."""
    if source.repo:
        revision, listed = _hub_files(source)
    else:
        assert source.path
        exact = (data_root / source.path).is_file()  # also where its name holds a * or [
        names = [source.path] if exact else sorted(glob.glob(source.path, root_dir=data_root, recursive=True))
        revision, listed = None, {name: None for name in names if (data_root / name).is_file()}
        if not listed:
            missing = f"no file {data_root / source.path}; check --data-root (now {data_root.absolute()})"
            raise UserError(f"{spec_path}: source {source.name}: {missing}")
    for name in listed:
        format_of(name)
    return revision, listed


def _path(source: Source, name: str, revision: str | None, data_root: Path) -> Path:
    """Where a file is; one of the Hub's is fetched into the Hub cache if it is not there yet."""
    if not source.repo:
        return data_root / name
    from huggingface_hub import hf_hub_download

    with _hub_errors(source):
        return Path(hf_hub_download(source.repo, name, repo_type="dataset", revision=revision))


def _hub_files(source: Source) -> tuple[str, dict[str, Any]]:
    """Commit, and the files that match the globs (a * matches / too) or that `datasets` reads for config and split."""
    from huggingface_hub import HfApi

    with _hub_errors(source):
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
        listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names: list[str] = []
        for pattern in source.files:
            if not (matches := fnmatch.filter(listed, pattern)):
                raise UserError(f"files: {pattern} matches none of {', '.join(sorted(listed)[:8])} ...")
            names = sorted({*names, *matches})
        if not source.files:
            from datasets import load_dataset_builder

            # hf:// keeps it from taking a local folder of that name
            builder = load_dataset_builder(f"hf://datasets/{source.repo}", source.config, revision=info.sha)
            if source.split not in (splits := builder.config.data_files):
                raise UserError(f"split {source.split} is none of {', '.join(splits)}")
            prefix = f"hf://datasets/{source.repo}@{info.sha}/"
            names = [name.removeprefix(prefix) for name in splits[source.split]]
        if outside := [name for name in names if name not in listed]:
            raise UserError(f"{outside[0]} is not a file of the repository")
    return info.sha, {name: listed[name] for name in names}


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    from httpx import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (OSError, TransportError, RuntimeError, ValueError) as error:
        offline = isinstance(error, ConnectionError | TransportError | LocalEntryNotFoundError)
        reason = f"{' '.join(str(error).split())[:400] or type(error).__name__}; {OFFLINE if offline else WRONG}"
        raise UserError(f"source {source.name}: {source.repo} at {source.revision}: {reason}") from None
