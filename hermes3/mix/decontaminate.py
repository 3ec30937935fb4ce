"""Finding evaluation questions in training rows, by word n-grams (13 by default, as in the GPT-3 report, appendix C).

A text of an evaluation set that is shorter than the n-gram is searched for whole, down to `min_words`. A question
without a text of that length cannot be told from ordinary speech and is counted as unsearched. An n-gram that stands in
more than `BOILERPLATE` questions of its set (instructions, answer formats) says nothing about contamination and is left
out of the search.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hermes3.files import UserError
from hermes3.mix.ngrams import Words
from hermes3.mix.spec import Decontaminate, EvalSet

BOILERPLATE = 10
TABLE_BITS = 24  # 16 MB: of two million n-grams, one word in ten goes on to the exact look-up


class Index:
    """The n-grams of all evaluation sets. It can be pickled."""

    def __init__(self, settings: Decontaminate, data_root: Path):
        self.names = [one.name for one in settings.against]
        self.first = settings.min_words
        self.unsearched: dict[str, int] = {}
        grams: dict[int, list[tuple[np.ndarray, int]]] = {}
        prefixes = []
        for owner, one in enumerate(settings.against):
            questions = [list(_texts(doc)) for doc in _docs(one, data_root)]
            words = Words([text for texts in questions for text in texts])
            question_of = np.repeat(np.arange(len(questions)), [len(texts) for texts in questions])[words.text_of]
            sizes = np.bincount(words.text_of, minlength=1)[words.text_of]  # words in the text of each word
            searched = np.unique(question_of[sizes >= self.first])
            self.unsearched[one.name] = len(questions) - len(searched)
            for n in range(self.first, settings.ngram + 1):
                at, hashes = words.ngrams(n)
                if n < settings.ngram:  # whole texts alone
                    at, hashes = at[sizes[at] == n], hashes[sizes[at] == n]
                at, hashes = _without_boilerplate(at, hashes, question_of)
                grams.setdefault(n, []).append((hashes, owner))
                prefixes.append(words.at(at, self.first)[1])
        every = np.concatenate(prefixes)
        self.table = np.zeros(1 << TABLE_BITS, bool)
        self.table[every >> np.uint64(64 - TABLE_BITS)] = True
        self.prefixes = np.unique(every)
        self.grams = {n: _sorted(parts) for n, parts in grams.items() if any(len(hashes) for hashes, _ in parts)}

    def digest(self) -> str:
        """Hash of all that is searched for."""
        parts = [array.tobytes() for n in sorted(self.grams) for array in self.grams[n]]
        return hashlib.sha256(b"".join([repr(self.names).encode(), *parts])).hexdigest()

    def hits(self, words: Words) -> dict[int, str]:
        """{text: "evaluation set: the words in common"} for each text of `words` that holds a known n-gram."""
        at, hashes = words.ngrams(self.first)
        at = at[self.table[hashes >> np.uint64(64 - TABLE_BITS)]]
        at, hashes = words.at(at, self.first)
        at = at[_lookup(self.prefixes, hashes) >= 0]
        hits: dict[int, str] = {}
        for n, (known, owners) in sorted(self.grams.items(), reverse=True):
            where, hashes = words.at(at, n)
            place = _lookup(known, hashes)
            for i in np.flatnonzero(place >= 0):
                text = int(words.text_of[where[i]])
                hits.setdefault(text, f"{self.names[owners[place[i]]]}: {words.phrase(where[i], n)}")
        return hits


def _docs(one: EvalSet, data_root: Path) -> Iterator[Any]:
    if one.task:
        yield from _task_docs(one.task, one.split)
        return
    path = data_root / (one.path or "")
    if not path.is_file():
        raise UserError(f"decontaminate.against {one.path}: no file {path}; check --data-root")
    try:
        if path.suffix == ".json":
            data = json.loads(path.read_text(encoding="utf-8"))  # a list, or an object that holds one (BIG-Bench Hard)
            lists = [data] if isinstance(data, list) else [value for value in data.values() if isinstance(value, list)]
            yield from lists[0] if lists else [data]
        else:
            with path.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
    except ValueError as error:
        raise UserError(f"decontaminate.against {path}: not JSON: {error}") from None


def _task_docs(task: str, split: str) -> Iterator[Any]:
    """The documents of an lm-eval task's split, loaded by lm-eval itself."""
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path="eval/tasks")
    if task not in manager.all_tasks:
        raise UserError(f"decontaminate.against {task}: not a task of the installed lm-eval (`lm-eval ls tasks`)")

    def leaves(tree: dict[Any, Any]) -> Iterator[Any]:
        for value in tree.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    for one in leaves(get_task_dict([task], manager)):
        if split not in one.dataset:
            raise UserError(f"decontaminate.against {task}: no split {split}; it has {', '.join(one.dataset)}")
        yield from one.dataset[split]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _without_boilerplate(at: np.ndarray, hashes: np.ndarray, question_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(at):
        return at, hashes
    pairs = np.unique(np.stack([hashes, question_of[at].astype(np.uint64)]), axis=1)[0]
    known, counts = np.unique(pairs, return_counts=True)
    keep = counts[np.searchsorted(known, hashes)] <= BOILERPLATE
    return at[keep], hashes[keep]


def _sorted(parts: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct hashes in order, and the first set that owns each."""
    hashes = np.concatenate([hashes for hashes, _ in parts])
    owners = np.concatenate([np.full(len(hashes), owner, np.uint8) for hashes, owner in parts])
    known, first = np.unique(hashes, return_index=True)
    return known, owners[first]


def _lookup(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Where each hash is in `known`, -1 if it is not there."""
    if not len(known):
        return np.full(len(hashes), -1)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[place] == hashes, place, -1)
