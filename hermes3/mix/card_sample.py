"""What the card says of text, measured on a sample: language, system prompts, refusals that are left, openings.

Rows lie in an order drawn by hash, so the first are a random sample; only they are parsed. A share over n rows has
Wilson's 95 % interval, unless the sample is the whole mix.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

SAMPLE = 10_000  # rows; a share of 1 % is then known to within 0.2 points
OPENING = 4  # words
LISTED = 15  # openings
LANGUAGE_CHARACTERS = 500  # of the question and of the answer each: py3langid is sure long before
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def analyse(rows: Path, total: int, kind: str) -> dict[str, Any]:
    """Figures of the first `SAMPLE` rows of the folder `rows`, which holds `total` rows.

    `refusing` is {source: share of its sampled rows in which the refusal filter still finds a refusal}.
    """
    from hermes3.mix.refusals import is_refusal

    languages: Counter[str] = Counter()
    read: Counter[str] = Counter()
    refusing: Counter[str] = Counter()
    openings: dict[str, Counter[str]] = {"assistant": Counter(), "user": Counter()}
    sides: list[tuple[int, int, int]] = []
    systems = 0
    identify = _identifier()
    for row in first_rows(rows, SAMPLE, kind):
        messages = json.loads(row["messages"])
        if kind == "preference":
            chosen, rejected = json.loads(row["chosen"]), json.loads(row["rejected"])
            sides.append(tuple(len(_words(one)) for one in (messages, [chosen], [rejected])))
            messages = [*messages, chosen]
        languages[identify(messages)] += 1
        systems += messages[0]["role"] == "system"
        read[row["source"]] += 1
        answers = [message["content"] for message in messages if message["role"] == "assistant" and message["content"]]
        refusing[row["source"]] += any(is_refusal(answer) is not None for answer in answers)
        for role, counter in openings.items():
            said = (
                message["content"].split(None, OPENING)[:OPENING] for message in messages if message["role"] == role
            )
            counter.update(" ".join(words).casefold() for words in said if words)
    n = read.total()
    whole = n == total
    return {
        "rows": n,
        "of": total,
        "languages": [{"language": language, **_share(k, n, whole)} for language, k in _ranked(languages)],
        "with_system": _share(systems, n, whole),
        "openings": {role: _openings(counter) for role, counter in openings.items()},
        "refusing": {source: _share(refusing[source], read[source], whole) for source in sorted(read)},
        "sides": _sides(sides) if sides else None,
    }


def first_rows(folder: Path, n: int, kind: str) -> Iterator[dict[str, Any]]:
    """The first `n` rows of the parquet files in `folder`, few of them in memory at a time."""
    columns = ["source", "messages"] + (["chosen", "rejected"] if kind == "preference" else [])

    def rows() -> Iterator[dict[str, Any]]:
        for file in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=1000, columns=columns):
                    yield from batch.to_pylist()

    return islice(rows(), n)


@cache  # 0.4 s to load
def _identifier() -> Callable[[list[dict[str, Any]]], str]:
    """messages -> ISO 639-1 code of the first question and its answer; `und` where hardly a letter is left."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)

    def identify(messages: list[dict[str, Any]]) -> str:
        first = {message["role"]: message["content"] for message in reversed(messages)}
        said = " ".join(CODE.sub(" ", first.get(role, ""))[:LANGUAGE_CHARACTERS] for role in ("user", "assistant"))
        if sum(map(str.isalpha, said)) < 20:
            return "und"
        return identifier.classify(said)[0]

    return identify


def _share(k: int, n: int, whole: bool) -> dict[str, Any]:
    """{k, n, share, low, high}; without an interval where the sample is all that there is."""
    from hermes3.stats import wilson

    low, high = (None, None) if whole else wilson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def _ranked(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def _openings(counter: Counter[str]) -> list[dict[str, Any]]:
    """The commonest first words that stand in more than one message, with their share of all messages of the role."""
    n = counter.total()
    return [{"opening": text, "k": k, "share": k / n} for text, k in _ranked(counter)[:LISTED] if k > 1]


def _words(messages: list[dict[str, Any]]) -> list[str]:
    return [word for message in messages for word in message["content"].split()]


def _sides(sides: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Median words of prompt, chosen and rejected, and how often the chosen one is longer (a bias that DPO learns)."""
    prompt, chosen, rejected = zip(*sides, strict=True)
    return {
        **{name: median(words) for name, words in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))},
        "chosen_longer": sum(c > r for _, c, r in sides) / len(sides),
    }
