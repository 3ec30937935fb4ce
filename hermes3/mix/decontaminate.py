"""Finding evaluation questions in training rows, by word n-grams (13 by default, as in the GPT-3 report, appendix C).

Words are compared in lower case after NFKC (hermes3/mix/ngrams.py). A text of an evaluation set that is shorter than
the n-gram is searched for whole, down to `min_words`. A question without a text of that length cannot be told from
ordinary speech and is counted as unsearched. Reference answers are not searched for: others give the same answers. An
n-gram that stands in more than half of a set's texts is its instruction or answer format, and is left out and counted,
unless it is part of a passage: a field of its own, which is one text, or `PASSAGE` words in a row.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hermes3.chat.render import assistant_text
from hermes3.files import ROOT, UserError, read_yaml
from hermes3.mix.ngrams import Words, edges, folded
from hermes3.mix.spec import Decontaminate, EvalSet, Spec

# names of fields that hold a question's solution
ANSWER = (
    r"answer|target|label|gold|solution|output|response|completion|reference|rationale|explanation|reasoning|\bcot"
    r"|truth|\bideal|expected"
)
SUITE = Path(__file__).parents[2] / "eval/suites/paper.yml"
LEADERBOARD = "leaderboard_"  # lm-eval has some sets under two names
PASSAGE = 30  # words; shared instructions of BIG-Bench Hard have up to 23
FEW = 10  # texts of a set that may share words however small the set is
PLANTED = 20  # questions of each set, in all disguises
TABLE_BITS = 24  # 16 MB: of two million n-grams, one word in ten goes on to the exact look-up


# ways in which a question may stand in a training row without being seen
DISGUISES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "no-break spaces": lambda text: "\u00a0".join(text.split()),
    "zero-width spaces for blanks": lambda text: "\u200b".join(text.split()),
    "zero-width spaces in words": lambda text: re.sub(r"(?<=\w)(?=\w)", "\u200b", text),
    "dashes for blanks": lambda text: "\u2014".join(text.split()),
    "no punctuation": lambda text: re.sub(r"[^\w\s]", " ", text),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "a quotation": lambda text: "> " + "\n> ".join(text.split()),
    "a tool call": lambda text: assistant_text(
        {"content": "", "tool_calls": [{"function": {"name": "solve", "arguments": {"problem": text}}}]}
    ),
    "within a text": lambda text: f"Once more, as it was asked: {text} That was all.",
}


class Index:
    """The n-grams of all evaluation sets. It can be pickled.

    `unsearched`: {set: questions without a text that is long enough}; `shared`: {set: n-grams that were left out};
    `planted`: {set: texts of `PLANTED` questions that are sought}.
    """

    def __init__(self, settings: Decontaminate, data_root: Path):
        self.names = [one.name for one in settings.against]
        self.first = settings.min_words
        self.unsearched: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self.planted: dict[str, list[str]] = {}
        grams: dict[int, list[tuple[np.ndarray, int]]] = {}
        prefixes = [np.empty(0, np.uint64)]
        for owner, one in enumerate(settings.against):
            raw = [list(_texts(_question(doc, one))) for doc in _docs(one, data_root)]
            questions = [[spelling for text in each for spelling in folded(text)] for each in raw]
            texts = list(dict.fromkeys(text for question in questions for text in question))
            words = Words(texts)
            long = {text for text, n in zip(texts, words.counts.tolist(), strict=True) if n >= self.first}
            sought = [
                max(each, key=len)
                for each, question in zip(raw, questions, strict=True)
                if not long.isdisjoint(question)
            ]
            self.unsearched[one.name] = len(questions) - len(sought)
            self.planted[one.name] = sought[:: max(1, len(sought) // PLANTED)][:PLANTED]
            limit = max(FEW, sum(len(question) > 0 for question in questions) / 2)
            self.shared[one.name] = 0
            for n in range(self.first, settings.ngram + 1):
                at, hashes = words.ngrams(n)
                if n < settings.ngram:  # whole texts alone
                    whole = words.counts[words.text_of[at]] == n
                    at, hashes = at[whole], hashes[whole]
                pairs = np.unique(np.stack([hashes, words.text_of[at].astype(np.uint64)]), axis=1)[0]
                known, n_texts = np.unique(pairs, return_counts=True)
                common = np.zeros(len(words), bool)
                common[at] = n_texts[np.searchsorted(known, hashes)] > limit if len(at) else False
                for begin, end in zip(*edges(common), strict=True):
                    if end - begin + n > PASSAGE:
                        common[begin:end] = False
                keep = ~common[at]
                self.shared[one.name] += len(np.unique(hashes[common[at]]))
                grams.setdefault(n, []).append((hashes[keep], owner))
                prefixes.append(words.at(at[keep], self.first)[1])
        self.table = np.zeros(1 << TABLE_BITS, bool)
        self.table[np.concatenate(prefixes) >> np.uint64(64 - TABLE_BITS)] = True
        self.grams = {n: _sorted(parts) for n, parts in grams.items() if any(len(hashes) for hashes, _ in parts)}

    def digest(self) -> str:
        """Hash of all that is searched for."""
        parts = [array.tobytes() for n in sorted(self.grams) for array in self.grams[n]]
        return hashlib.sha256(b"".join([repr(self.names).encode(), *parts])).hexdigest()

    def hits(self, texts: list[str]) -> dict[int, str]:
        """{text: "evaluation set: the words in common"} for each of `texts` that holds a known n-gram."""
        spellings = [folded(text) for text in texts]
        words = Words([spelling for each in spellings for spelling in each])
        text_of = np.repeat(np.arange(len(texts)), list(map(len, spellings)))
        at, hashes = words.ngrams(self.first)
        at = at[self.table[hashes >> np.uint64(64 - TABLE_BITS)]]
        hits: dict[int, str] = {}
        for n, (known, owners) in sorted(self.grams.items(), reverse=True):
            where, hashes = words.at(at, n)
            place = _lookup(known, hashes)
            for i in np.flatnonzero(place >= 0):
                text = int(text_of[words.text_of[where[i]]])
                hits.setdefault(text, f"{self.names[owners[place[i]]]}: {words.phrase(where[i], n)}")
        return hits


def record(spec: Spec, index: Index | None) -> dict[str, Any]:
    """For the manifest: `unsearched` questions and `shared` n-grams by set; rows of the paper's table `not_searched`.

    `planted`: of some questions of each set in all `DISGUISES`, how many the search finds.
    A row of Table 5 (eval/suites/paper.yml) is searched for when a task that measures it is.
    """
    names = {one.task or "" for one in spec.decontaminate.against} if spec.decontaminate else set()
    names = {name.removeprefix(LEADERBOARD) for name in names}
    groups = read_yaml(SUITE)["groups"]
    missing = [
        name
        for name, group in groups.items()
        if names.isdisjoint(task.removeprefix(LEADERBOARD) for task in group["tasks"])
    ]
    if not index:
        return {"unsearched": {}, "shared": {}, "planted": {}, "not_searched": missing}
    planted = {}
    for name, texts in index.planted.items():
        disguised = [disguise(text) for disguise in DISGUISES.values() for text in texts]
        planted[name] = {"planted": len(disguised), "found": len(index.hits(disguised))}
    return {"unsearched": index.unsearched, "shared": index.shared, "planted": planted, "not_searched": missing}


def _question(doc: Any, one: EvalSet) -> Any:
    """What is searched for of a question: the fields that the spec names, else all but answers."""
    if isinstance(doc, dict):
        if missing := set(one.fields) - doc.keys():
            raise UserError(f"decontaminate.against {one.name}: no field {min(missing)}; there are {', '.join(doc)}")
        return {key: doc[key] for key in one.fields} if one.fields else _without_answers(doc)
    return doc


def _without_answers(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("role", value.get("from")) in ("assistant", "gpt"):
            return {}
        return {key: _without_answers(inner) for key, inner in value.items() if not re.search(ANSWER, str(key), re.I)}
    return [_without_answers(inner) for inner in value] if isinstance(value, list | tuple) else value


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


@cache  # 3 s: it reads the declarations of 12,000 tasks
def _task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(ROOT / "eval/tasks"))


def _task_docs(task: str, split: str | None) -> Iterator[Any]:
    """The documents of a split of an lm-eval task, or of each task of a group, loaded by lm-eval itself."""
    from lm_eval.tasks import get_task_dict

    manager = _task_manager()
    if task not in manager.all_tasks:
        raise UserError(f"decontaminate.against {task}: not a task of the installed lm-eval (`lm-eval ls tasks`)")

    def leaves(tree: dict[Any, Any]) -> Iterator[Any]:
        for value in tree.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    for one in leaves(get_task_dict([task], manager)):
        own = split or one.config.test_split or one.config.validation_split
        if own not in one.dataset:
            raise UserError(f"decontaminate.against {task}: no split {own}; it has {', '.join(one.dataset)}")
        yield from one.dataset[own]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


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
