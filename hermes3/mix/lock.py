"""`data_mixes/NAME.lock.json` beside `NAME.yml`: the commit of every Hub dataset, and the hash of every file.

{"spec": name, "sources": {name: {"asked", "repo"?, "revision"?, "files": {file: {"sha256", "bytes"}}}}}
`asked` is what the spec says of the place, so that a spec that has changed since is noticed.

With it a build takes the same bytes next year, or stops; without it `revision: main` means what it means that day.
"""

import json
import re
from pathlib import Path
from typing import Any

from hermes3.files import sha256, write_text
from hermes3.mix import hub, sources
from hermes3.mix import spec as specs

ASKED = {"path", "repo", "revision", "config", "split", "files"}


def lock_path(spec_path: Path) -> Path:
    return spec_path.with_suffix(".lock.json")


def read(spec_path: Path) -> dict[str, Any] | None:
    """The lock of a spec, if it has one. `ValueError` where the two do not speak of the same sources."""
    path = lock_path(spec_path)
    if not path.is_file():
        return None
    again = f"run `hermes3 mix lock {spec_path}` again"
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        locked = {name: source["asked"] for name, source in lock["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a lock; {again}") from None
    asked = {source.name: _asked(source) for _, source in specs.load(spec_path).sources()}
    for name in sorted(asked.keys() | locked.keys()):
        if asked.get(name) != locked.get(name):
            what = (
                "changed in" if name in asked and name in locked else "is new in" if name in asked else "is gone from"
            )
            raise ValueError(f"{path}: source {name} {what} {spec_path}; {again}")
    return lock


def make(spec_path: Path, data_root: Path = Path()) -> dict[str, Any]:
    """Resolve and hash every source of a spec; write the lock beside it and return it.

    The Hub states the SHA-256 of its large files; small ones are downloaded and hashed. `ValueError` names the source
    that cannot be resolved.
    """
    spec = specs.load(spec_path)
    lock = {
        "spec": spec.name,
        "sources": {source.name: _resolve(source, data_root, spec_path) for _, source in spec.sources()},
    }
    write_text(lock_path(spec_path), json.dumps(lock, indent=2, ensure_ascii=False) + "\n")
    return lock


def unpinned(spec: specs.Spec, lock: dict[str, Any] | None) -> list[str]:
    """Names of the Hub sources that may be other data tomorrow: neither locked nor at a commit."""
    return [
        source.name
        for _, source in spec.sources()
        if source.repo and not lock and not re.fullmatch(r"[0-9a-f]{40}", source.revision or "")
    ]


def _asked(source: specs.Source) -> dict[str, Any]:
    return source.model_dump(include=ASKED, exclude_defaults=True)


def _resolve(source: specs.Source, data_root: Path, spec_path: Path) -> dict[str, Any]:
    if source.path:
        files = {file.name: _hashed(file.path) for file in sources.local_files(source, data_root, spec_path)}
        return {"asked": _asked(source), "files": files}
    revision, listed = hub.files(source)
    files = {
        name: {"sha256": entry.lfs.sha256, "bytes": entry.lfs.size}
        if entry.lfs
        else _hashed(hub.download(source, name, revision))
        for name, entry in listed.items()
    }
    return {"asked": _asked(source), "repo": source.repo, "revision": revision, "files": files}


def _hashed(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}
