"""The files of a source, and `data_mixes/NAME.lock.json` beside `NAME.yml`: the commits and hashes that pin them.
`asked` is what the spec says of a source's place. With a lock a build reads the same bytes next year, or stops."""

import fnmatch
import glob
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_json, sha256, write_text
from hermes3.mix import spec as specs
from hermes3.mix.read import File, format_of
from hermes3.mix.spec import Source

Lock = dict[str, Any]
Share = Callable[[int], tuple[int, int] | None] | None  # of a file of so many bytes: see read.File; None: nothing
PLACE = {"path", "repo", "revision", "config", "split", "files"}  # keys of a source
REMEDY = (
    "check repo, revision, files, config and split; a gated dataset needs `hf auth login`; for a machine without a "
    "network, run `hermes3 mix lock SPEC` and one build where there is a network, and copy the lock and the Hub cache"
)


def lock_path(spec_path: Path) -> Path:
    return spec_path.with_suffix(".lock.json")


def read(spec_path: Path) -> Lock | None:
    """The lock of a spec, if it has one. `UserError` where the two differ in their sources."""
    path = lock_path(spec_path)
    if not path.is_file():
        return None
    lock = read_json(path, "sources")
    declared = {source.name: _place(source) for _, source in specs.load(spec_path).sources()}
    for name in sorted({*declared, *lock["sources"]}):
        if declared.get(name) != lock["sources"].get(name, {}).get("asked"):
            wrong = f"source {name} is new, gone or changed in {spec_path}; run `hermes3 mix lock {spec_path}` again"
            raise UserError(f"{path}: {wrong}")
    return lock


def make(spec_path: Path, data_root: Path = Path()) -> Lock:
    """Resolve and hash every source of a spec; write the lock beside it and return it."""
    spec = specs.load(spec_path)
    lock: Lock = {"spec": spec.name, "sources": {}}
    for _, source in spec.sources():
        revision, listed = _listed(source, data_root, spec_path)
        files = {}
        for name, entry in listed.items():
            if entry and entry.lfs:  # the Hub states the hash of a large file
                files[name] = {"sha256": entry.lfs.sha256, "bytes": entry.lfs.size}
            else:
                path = _path(source, name, revision, data_root)
                files[name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        pinned = {"repo": source.repo, "revision": revision} if source.repo else {}
        lock["sources"][source.name] = {"asked": _place(source), **pinned, "files": files}
    write_text(lock_path(spec_path), json.dumps(lock, indent=2, ensure_ascii=False) + "\n")
    return lock


def unpinned(spec: specs.Spec, lock: Lock | None) -> list[str]:
    """Names of the Hub sources that may hold other data tomorrow: neither locked nor at a commit."""
    on_hub = [source for _, source in spec.sources() if source.repo and not lock]
    return [source.name for source in on_hub if not re.fullmatch(r"[0-9a-f]{40}", source.revision or "")]


def files_of(source: Source, data_root: Path, lock: Lock | None, spec_path: Path, share: Share = None) -> list[File]:
    """The files of `source` of which something is wanted, all by default, with the hashes that `lock` holds; fetched
    into the Hub cache if they are not there."""
    locked = lock["sources"][source.name] if lock else None
    if locked and source.repo:
        revision, sizes = locked["revision"], {name: one["bytes"] for name, one in locked["files"].items()}
    else:
        revision, listed = _listed(source, data_root, spec_path)
        sizes = {name: one.size if one else (data_root / name).stat().st_size for name, one in listed.items()}
    shares = {name: share(size) if share else (0, 1) for name, size in sizes.items()}
    paths = {name: _path(source, name, revision, data_root) for name in sizes if shares[name]}
    files = [File(name, path, revision, _state(path), shares[name]) for name, path in paths.items()]
    for name in sorted({*paths, *locked["files"]} - {name for name in sizes if not shares[name]}) if locked else ():
        expected = locked["files"].get(name, {}).get("sha256")
        actual = sha256(paths[name]) if name in paths else None
        if actual != expected:
            wrong = f"{name} has sha256 {actual}, the lock says {expected} (None: no such file)"
            remedy = f"bring back the file that was locked, or accept this one with `hermes3 mix lock {spec_path}`"
            raise UserError(f"source {source.name}: {wrong}; {remedy}")
    return files


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: inode, bytes, time in nanoseconds."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def hashes(files: dict[str, list[File]]) -> dict[str, dict[str, str]]:
    """{source: {file: SHA-256}} of what was read. `UserError` where a file is another than before it was read."""
    digests = {}
    for name, each in files.items():
        try:
            digests[name] = {file.name: sha256(file.path) for file in each}
            changed = [file.path for file in each if _state(file.path) != file.state]
        except FileNotFoundError as error:
            changed = [error.filename]
        if changed:
            wrong = f"{changed[0]} changed while it was read; build again when nothing writes it"
            raise UserError(f"source {name}: {wrong}")
    return digests


def _place(source: Source) -> dict[str, Any]:
    return source.model_dump(include=PLACE, exclude_defaults=True)


def _listed(source: Source, data_root: Path, spec_path: Path) -> tuple[str | None, dict[str, Any]]:
    """(commit, {file name: its RepoSibling, with size and LFS hash}) in reading order; None twice for local files."""
    if source.repo:
        revision, listed = _hub_files(source)
    else:
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
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    with _hub_errors(source):
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
        listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
        if source.files:
            matches = {pattern: fnmatch.filter(listed, pattern) for pattern in source.files}
            if unmet := [pattern for pattern, names in matches.items() if not names]:
                raise UserError(f"files: {unmet[0]} matches none of {', '.join(sorted(listed)[:8])} ...")
            names = sorted(set().union(*matches.values()))
        else:  # hf:// keeps it from taking a local folder of that name
            builder = load_dataset_builder(f"hf://datasets/{source.repo}", source.config, revision=info.sha)
            if source.split not in (splits := builder.config.data_files):
                raise UserError(f"split {source.split} is none of {', '.join(splits)}")
            names = [name.removeprefix(f"hf://datasets/{source.repo}@{info.sha}/") for name in splits[source.split]]
        return info.sha, {name: listed[name] for name in names}


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    from httpx import TransportError

    try:
        yield
    except (OSError, TransportError, RuntimeError, ValueError, KeyError) as error:  # KeyError: a file of another repo
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"source {source.name}: {source.repo} at {source.revision}: {reason}; {REMEDY}") from None
