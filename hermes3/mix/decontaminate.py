"""Finding evaluation questions in training rows, by word n-grams (13 by default, as in the GPT-3 report, appendix C).

A shorter text is searched for whole, down to `min_words`; a question without such a text cannot be told from ordinary
speech. Reference answers are not searched for: others give the same answers. What stands in more than half of a set's
texts is its instruction or answer format, and is left out, unless it is part of a passage of `PASSAGE` words."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hermes3.chat.prompts import to_json
from hermes3.files import ROOT, UserError, read_yaml
from hermes3.mix.ngrams import Words, edges, folded
from hermes3.mix.spec import Decontaminate, EvalSet, Spec

# names of fields that hold a question's solution
ANSWER = r"answer|target|label|gold|solution|output|response|completion|reference|rationale|explanation|reasoning|truth"
ANSWER = re.compile(rf"{ANSWER}|\bcot|\bideal|expected", re.IGNORECASE)
LEADERBOARD = "leaderboard_"  # lm-eval has some sets under two names
PASSAGE = 30  # words; shared instructions of BIG-Bench Hard have up to 23
FEW = 10  # texts of a set that may share words however small the set is
PLANTED = 20  # questions of each set, in all disguises
SHIFT = np.uint64(64 - 24)  # a table of 24 bits is 16 MB: of two million n-grams, one word in ten is looked up exactly


class Index:
    """The n-grams of all evaluation sets, for every worker."""

    def __init__(self, settings: Decontaminate, data_root: Path):
        self.names = [one.name for one in settings.against]
        self.first = settings.min_words
        self.unsearched: dict[str, int] = {}  # by set: questions without a text that is long enough
        self.shared: dict[str, int] = dict.fromkeys(self.names, 0)  # by set: n-grams that were left out
        self.planted: dict[str, list[str]] = {}  # by set: texts of `PLANTED` questions that are sought
        self.table = np.zeros(1 << 64 - int(SHIFT), bool)  # of hashes of the first words of what is sought
        grams: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # by n: hashes, and the set of each
        for owner, one in enumerate(settings.against):
            docs = list(_docs(one, data_root))
            if missing := {key for doc in docs for key in one.fields if key not in doc}:
                there = f"there are {', '.join(docs[0])}"
                raise UserError(f"decontaminate.against {one.name}: no field {min(missing)}; {there}")
            raw = [list(_texts(doc, one.fields)) for doc in docs]
            questions = [[spelling for text in each for spelling in folded(text)] for each in raw]
            texts = list(dict.fromkeys(text for question in questions for text in question))
            words = Words(texts)
            long = {text for text, n in zip(texts, words.counts, strict=True) if n >= self.first}
            sought = [max(r, key=len) for r, q in zip(raw, questions, strict=True) if not long.isdisjoint(q)]
            self.unsearched[one.name] = len(questions) - len(sought)
            self.planted[one.name] = sought[:: max(1, len(sought) // PLANTED)][:PLANTED]
            limit = max(FEW, sum(map(bool, questions)) / 2)
            for n in range(self.first, settings.ngram + 1):
                at, hashes = words.ngrams(n)
                if n < settings.ngram:  # whole texts alone
                    whole = words.counts[words.text_of[at]] == n
                    at, hashes = at[whole], hashes[whole]
                keep = ~_common(words, at, hashes, n, limit)
                self.shared[one.name] += len(np.unique(hashes[~keep]))
                grams.setdefault(n, []).append((hashes[keep], np.full(keep.sum(), owner, np.uint8)))
                self.table[words.at(at[keep], self.first)[1] >> SHIFT] = True
        joined = {n: [np.concatenate(parts) for parts in zip(*each, strict=True)] for n, each in grams.items()}
        firsts = {n: np.unique(hashes, return_index=True) for n, (hashes, _) in joined.items() if len(hashes)}
        self.grams = {n: (known, joined[n][1][first]) for n, (known, first) in firsts.items()}

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
        at = at[self.table[hashes >> SHIFT]]
        hits: dict[int, str] = {}
        for n, (known, owners) in sorted(self.grams.items(), reverse=True):
            where, hashes = words.at(at, n)
            place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            for i in np.flatnonzero(known[place] == hashes):
                name = self.names[owners[place[i]]]
                hits.setdefault(int(text_of[words.text_of[where[i]]]), f"{name}: {words.phrase(where[i], n)}")
        return hits


def _common(words: Words, at: np.ndarray, hashes: np.ndarray, n: int, limit: float) -> np.ndarray:
    """Whether each n-gram stands in more than `limit` texts, and not in a passage that does."""
    _, gram = np.unique(hashes, return_inverse=True)
    n_texts = np.bincount(np.unique(np.stack([gram, words.text_of[at]]), axis=1)[0])
    common = np.zeros(len(words.start), bool)
    common[at] = n_texts[gram] > limit
    for begin, end in zip(*edges(common), strict=True):
        if end - begin + n > PASSAGE:
            common[begin:end] = False
    return common[at]


def disguised(text: str) -> list[str]:
    """Ten ways in which a question may stand in a training row without being seen."""
    words = text.split()
    return [
        *(blank.join(words) for blank in ("\u00a0", "\u200b", "\u2014")),  # no-break and zero-width spaces, dashes
        "> " + "\n> ".join(words),
        re.sub(r"(?<=\w)(?=\w)", "\u200b", text),  # hidden characters within words
        re.sub(r"[^\w\s]", " ", text),
        text.upper(),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full width
        f'<tool_call>\n{{"name": "solve", "arguments": {to_json({"problem": text})}}}\n</tool_call>',
        f"Once more, as it was asked: {text} That was all.",
    ]


def record(spec: Spec, index: Index | None) -> dict[str, Any]:
    """For the manifest; `not_searched`: rows of the paper's Table 5 of which no task is among the sets."""
    against = spec.decontaminate.against if spec.decontaminate else []
    names = {(one.task or "").removeprefix(LEADERBOARD) for one in against}
    tasks = {name: group["tasks"] for name, group in read_yaml(ROOT / "eval/suites/paper.yml")["groups"].items()}
    missing = [name for name in tasks if names.isdisjoint(task.removeprefix(LEADERBOARD) for task in tasks[name])]
    planted = {}
    for name, texts in index.planted.items() if index else ():
        hidden = [one for text in texts for one in disguised(text)]
        planted[name] = {"planted": len(hidden), "found": len(index.hits(hidden))}
    counts = {key: getattr(index, key, {}) for key in ("unsearched", "shared")}
    return counts | {"planted": planted, "not_searched": missing}


def _texts(value: Any, fields: list[str] | None = None, answers: bool = False) -> Iterator[str]:
    """Every text in a document, at any depth: of the `fields` that a spec names, else all but those of answers."""
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        turn = value.get("role", value.get("from")) in ("assistant", "gpt")
        keys = fields or [key for key in value if answers or not (turn or ANSWER.search(str(key)))]
        value = [value[key] for key in keys]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, None, answers or bool(fields))


def _docs(one: EvalSet, data_root: Path) -> Iterable[Any]:
    if one.task:
        return _task_docs(one.task, one.split)
    path = data_root / (one.path or "")
    if not path.is_file():
        raise UserError(f"decontaminate.against {one.path}: no file {path}; check --data-root")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        data = json.loads(text)  # a list, or an object that holds one (BIG-Bench Hard)
        return data if isinstance(data, list) else next((v for v in data.values() if isinstance(v, list)), [data])
    except ValueError as error:
        raise UserError(f"decontaminate.against {path}: not JSON: {error}") from None


def _task_docs(task: str, split: str | None) -> Iterator[Any]:
    """The documents of a split of an lm-eval task, or of each task of a group, loaded by lm-eval itself."""
    from lm_eval.tasks import get_task_dict

    if task not in task_manager().all_tasks:
        raise UserError(f"decontaminate.against {task}: not a task of the installed lm-eval (`lm-eval ls tasks`)")
    tasks = [get_task_dict([task], task_manager())]
    while tasks:
        if isinstance(one := tasks.pop(), dict):
            tasks += reversed(one.values())
            continue
        own = split or one.config.test_split or one.config.validation_split
        if own not in one.dataset:
            raise UserError(f"decontaminate.against {task}: no split {own}; it has {', '.join(one.dataset)}")
        yield from one.dataset[own]


@cache  # 3 s: it reads the declarations of 12,000 tasks
def task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(ROOT / "eval/tasks"))
