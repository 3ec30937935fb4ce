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

from hermes3.messages import Message
from hermes3.mix.refusals import is_refusal
from hermes3.stats import wilson

SAMPLE = 10_000  # rows; a share of 1 % is then known to within 0.2 points
OPENING = 4  # words
LISTED = 15  # openings
LANGUAGE_CHARACTERS = 500  # of the question and of the answer each: py3langid is sure long before
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def analyse(rows: Path, total: int, kind: str) -> dict[str, Any]:
    """Figures of the first `SAMPLE` rows of the folder `rows`, which holds `total` rows.

    `refusing` is {source: share of its sampled rows in which the refusal filter still finds a refusal}.
    """
    languages: Counter[str] = Counter()
    read: Counter[str] = Counter()
    refusing: Counter[str] = Counter()
    openings: dict[str, Counter[str]] = {"assistant": Counter(), "user": Counter()}
    sides: list[tuple[int, int, int]] = []
    systems = 0
    for row in islice(_rows(rows, kind), SAMPLE):
        messages = json.loads(row["messages"])
        if kind == "preference":
            chosen, rejected = json.loads(row["chosen"]), json.loads(row["rejected"])
            sides.append((_words(messages), _words([chosen]), _words([rejected])))
            messages = [*messages, chosen]
        languages[_identifier()(messages)] += 1
        systems += messages[0]["role"] == "system"
        read[row["source"]] += 1
        refusing[row["source"]] += any(is_refusal(m["content"]) for m in messages if m["role"] == "assistant")
        for message in messages:
            words = message["content"].split(None, OPENING)[:OPENING]
            if words and message["role"] in openings:
                openings[message["role"]][" ".join(words).casefold()] += 1
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


def _rows(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of the parquet files in `folder`, few of them in memory at a time."""
    columns = ["source", "messages"] + (["chosen", "rejected"] if kind == "preference" else [])
    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=1000, columns=columns):
                yield from batch.to_pylist()


@cache  # 0.4 s to load
def _identifier() -> Callable[[list[Message]], str]:
    """messages -> ISO 639-1 code of the first question and its answer; `und` where hardly a letter is left."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)

    def identify(messages: list[Message]) -> str:
        first = {message["role"]: message["content"] for message in reversed(messages)}
        text = " ".join(CODE.sub(" ", first.get(role, ""))[:LANGUAGE_CHARACTERS] for role in ("user", "assistant"))
        return identifier.classify(text)[0] if sum(map(str.isalpha, text)) >= 20 else "und"

    return identify


def _share(k: int, n: int, whole: bool) -> dict[str, Any]:
    """{k, n, share, low, high}; without an interval where the sample is all that there is."""
    low, high = (None, None) if whole else wilson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def _ranked(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def _openings(counter: Counter[str]) -> list[dict[str, Any]]:
    """The commonest first words that stand in more than one message, with their share of all messages of the role."""
    n = counter.total()
    return [{"opening": text, "k": k, "share": k / n} for text, k in _ranked(counter)[:LISTED] if k > 1]


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _sides(sides: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Median words of prompt, chosen and rejected, and how often the chosen one is longer (a bias that DPO learns)."""
    prompt, chosen, rejected = zip(*sides, strict=True)
    return {
        **{name: median(words) for name, words in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))},
        "chosen_longer": sum(c > r for _, c, r in sides) / len(sides),
    }
