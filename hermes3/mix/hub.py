"""Files of Hub datasets: which ones a source names, at which commit, and their download into the Hub cache."""

import fnmatch
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes3.mix.spec import Source


def files(source: Source) -> tuple[str, dict[str, Any]]:
    """(commit, {file name: its RepoSibling, with size and LFS hash}) of a Hub source, in reading order."""
    from huggingface_hub import HfApi

    assert source.repo
    with _hub_errors(source):
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
        listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = _matching(source.files, listed) if source.files else _of_split(source, info.sha)
        if outside := [name for name in names if name not in listed]:
            raise ValueError(f"{outside[0]} is not a file of the repository")
    return info.sha, {name: listed[name] for name in names}


def download(source: Source, name: str, revision: str) -> Path:
    """Path of a Hub file in the Hub cache, fetched if it is not there yet."""
    from huggingface_hub import hf_hub_download

    with _hub_errors(source):
        return Path(hf_hub_download(source.repo, name, repo_type="dataset", revision=revision))


def _matching(globs: list[str], listed: Iterable[str]) -> list[str]:
    """Sorted; a * matches / too. Every glob must name something."""
    found = {pattern: fnmatch.filter(listed, pattern) for pattern in globs}
    if bare := [pattern for pattern, names in found.items() if not names]:
        raise ValueError(f"files: {bare[0]} matches none of {', '.join(sorted(listed)[:8])} ...")
    return sorted({name for names in found.values() for name in names})


def _of_split(source: Source, commit: str) -> list[str]:
    """What `datasets` reads for a config and a split. hf:// keeps it from taking a local folder of that name."""
    from datasets import load_dataset_builder

    splits = load_dataset_builder(f"hf://datasets/{source.repo}", source.config, revision=commit).config.data_files
    if source.split not in splits:
        raise ValueError(f"split {source.split} is none of {', '.join(splits)}")
    prefix = f"hf://datasets/{source.repo}@{commit}/"
    return list(dict.fromkeys(name.removeprefix(prefix) for name in splits[source.split]))


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    from httpx import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (OSError, TransportError, RuntimeError, ValueError) as error:
        if isinstance(error, ConnectionError | TransportError | LocalEntryNotFoundError):
            remedy = (
                "run `hermes3 mix lock SPEC` and one build where there is a network, then take the lock and the Hub "
                "cache (HF_HOME) along"
            )
        else:
            remedy = "check repo, revision, files, config and split; a gated dataset needs `hf auth login`"
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"source {source.name}: {source.repo} at {source.revision}: {reason}; {remedy}") from None
