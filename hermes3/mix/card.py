"""The card of a mix: README.md for the Hub, and card.html, the same text with charts.

Counts are the manifest's, which `hermes3 mix verify` compares with the files. Text is read of a sample alone: rows lie
in an order drawn by hash, so the first are a random sample, and a share of them has Wilson's 95 % interval, unless the
sample is the whole mix.
"""

import json
import re
import threading
from collections import Counter
from functools import cache
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hermes3.files import write_text
from hermes3.messages import Message
from hermes3.mix import lock
from hermes3.mix.manifest import Manifest, batches, composition
from hermes3.mix.spec import CATEGORIES, Spec
from hermes3.page import charts, text
from hermes3.page.shell import as_page, render, table_row
from hermes3.stats import wilson

TEMPLATE, LENGTHS = (Path(__file__).with_name(name) for name in ("card.md.jinja", "lengths.html.jinja"))
STAGES = ("read", "adapt", "filter", "tokenise", "decontaminate", "dedup", "budget")
MOST_TURNS = 12  # conversations of this many turns or more share one line
SAMPLE = 10_000  # rows; a share of 1 % is then known to within 0.2 points
OPENING, LISTED = 4, 15  # words of an opening; openings listed
LANGUAGE_CHARACTERS = 500  # of the question and of the answer each: py3langid is sure long before
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
# of the identifiers that the Hub knows; any other licence is `other`
HUB_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "bsd-3-clause")
_LOADING = threading.Lock()


def write_card(mix: Path, manifest: Manifest) -> None:
    """Write README.md and card.html into the folder `mix`, which holds the files of the mix that `manifest` records."""
    card, filters = facts(mix, manifest), text.FILTERS | {"row": table_row, "in_words": text.join}
    write_text(mix / "README.md", render(TEMPLATE, card, {}, filters))
    drawn = {"lengths": render(LENGTHS, card["lengths"], {}, filters), "funnel": _waterfall(card["funnel"])}
    if card["kind"] == "sft":
        drawn["mix"] = charts.mix_chart(card)
    page = as_page(render(TEMPLATE, card, drawn, filters), f"{card['name']}: data card", drawn)
    write_text(mix / "card.html", page)


def facts(mix: Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest and what else the card says; shares are fractions, lengths are in tokens."""
    rows = pq.read_table(mix / "rows", columns=["category", "n_tokens", "n_turns", "tools"])
    rejects = pq.read_table(mix / "rejects", columns=["source", "stage", "reason", "detail"])
    reasons = rejects.group_by(["stage", "reason"], use_threads=False).aggregate(
        [([], "count_all"), ("detail", "first")]
    )
    reasons = sorted(reasons.to_pylist(), key=lambda one: (STAGES.index(one["stage"]), one["reason"]))
    columns = _by_column({f"{one['stage']}/{one['reason']}": 0 for one in reasons})
    hits = rejects.filter(pc.equal(rejects["stage"], "decontaminate")).to_pylist()
    # by the evaluation set that the detail names before its first colon, and by source
    contaminated = Counter((hit["detail"].partition(":")[0], hit["source"]) for hit in hits)
    licences = {(source["licence"] or "").lower() for source in manifest["sources"] if source["rows_kept"]}
    turns, sample = rows["n_turns"].to_numpy(), _sample(mix, manifest["total"]["rows"], manifest["kind"])
    return manifest | {
        "categories": composition(manifest),
        "labels": {key: label for key, (label, _) in CATEGORIES.items()},
        "reasons": reasons,
        "columns": list(columns),
        "lost": [[_by_column(source["rejects"])[name] for name in columns] for source in manifest["sources"]],
        "funnel": _funnel(manifest),
        "contaminated": [(*key, n) for key, n in sorted(contaminated.items())],
        "lengths": _lengths(rows["n_tokens"].to_numpy(), rows["category"].to_numpy()),
        "turns": sorted(Counter(np.minimum(turns, MOST_TURNS).tolist()).items()),
        "turns_mean": float(turns.mean()),
        "turns_most": int(turns.max()),
        # a list of tools, as JSON text, that is neither absent nor empty
        "with_tools": (pc.sum(pc.greater(pc.utf8_length(rows["tools"]), len("null"))).as_py() or 0) / len(rows),
        "sample": sample,
        "licences": sorted({licence if licence in HUB_LICENCES else "other" for licence in licences}),
        "unpinned": lock.unpinned(Spec.model_validate(manifest["spec"]), manifest["lock"]),
    }


def _by_column(rejects: dict[str, int]) -> Counter[str]:
    """Rejects by stage; those of filters and deduplication by reason."""
    counts: Counter[str] = Counter()
    for why, n in rejects.items():
        stage, _, reason = why.partition("/")
        counts[reason.replace("_", " ") if stage in ("filter", "dedup") else stage] += n
    return counts


def _funnel(manifest: Manifest) -> dict[str, int]:
    """Rows read, what each stage took away (negative), rows kept. Rows used more than once come back as `repeated`."""
    lost: Counter[str] = Counter()
    for why, n in manifest["rejects"].items():
        lost[why.partition("/")[0]] -= n
    steps = {"rows read": sum(source["rows_read"] for source in manifest["sources"])}
    steps |= {stage: lost[stage] for stage in STAGES if stage in lost}
    if difference := manifest["total"]["rows"] - sum(steps.values()):
        steps["repeated" if difference > 0 else "unaccounted"] = difference
    return steps | {"rows kept": manifest["total"]["rows"]}


def _waterfall(funnel: dict[str, int]) -> str:
    bars, end = [], 0
    for label, n in funnel.items():
        whole = label in ("rows read", "rows kept")
        begin, end = 0 if whole else end, n if whole else end + n
        words = (f"{n:,}" if whole else f"{n:+,}").replace("-", "−")
        words += "" if label == "rows read" else f"  ({text.portion(abs(n) / funnel['rows read'])})"
        place = {"start": min(begin, end), "end": max(begin, end), "tick": None}
        bars.append({"label": label, "text": words, "series": 1 if whole else 3 if n > 0 else 2, **place})
    return charts.bars(bars)


def _lengths(lengths: np.ndarray, category: np.ndarray) -> dict[str, Any]:
    """Per category quantiles, and the share of its rows in each of `bins` half-octaves; `ticks`: {place: tokens}."""
    octaves = 2 * np.log2(lengths)
    low, high = int(octaves.min()), int(octaves.max()) + 1
    categories = []
    for key, (label, _) in CATEGORIES.items():
        own = lengths[category == key]
        if len(own):
            p5, middle, p95 = map(int, np.quantile(own, (0.05, 0.5, 0.95), method="inverted_cdf"))
            one = {"label": label, "p5": p5, "median": middle, "p95": p95, "longest": int(own.max())}
            shares = np.histogram(octaves[category == key], np.arange(low, high + 1))[0] / len(own)
            one |= {"mean": float(own.mean()), "shares": shares.tolist(), "median_at": 2 * np.log2(middle) - low}
            categories.append(one)
    powers = [power for power in range(high // 2, 4, -2) if 2 * power >= low]
    ticks = {2 * p - low: f"{2**p // 1024}k" if p >= 10 else str(2**p) for p in powers}
    return {"bins": high - low, "ticks": ticks, "categories": categories}


def _sample(mix: Path, total: int, kind: str) -> dict[str, Any]:
    """Figures of the first `SAMPLE` of `total` rows: languages, system prompts, openings, lengths of both sides."""
    columns = ["messages", *(("chosen", "rejected") if kind == "preference" else ())]
    rows = list(islice(chain.from_iterable(batches(mix / "rows", columns)), SAMPLE))
    parts = [[json.loads(row[name]) for name in columns] for row in rows]
    conversations = [[*messages, *answers[:1]] for messages, *answers in parts]

    def share(k: int) -> dict[str, Any]:
        low, high = (None, None) if len(rows) == total else wilson(k, len(rows))
        return {"k": k, "share": k / len(rows), "low": low, "high": high}

    languages = Counter(map(_language, conversations))
    return {
        "rows": len(rows),
        "of": total,
        "languages": [{"language": language, **share(k)} for language, k in languages.most_common()],
        "with_system": share(sum(messages[0]["role"] == "system" for messages in conversations)),
        "openings": {role: _openings(conversations, role) for role in ("assistant", "user")},
        "sides": _sides(parts) if kind == "preference" else None,
    }


def prepare() -> None:
    """Load what a card needs: 2 s of unpacking, which a build can do while it reads rows."""
    with _LOADING:
        _identifier()


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def _language(messages: list[Message]) -> str:
    """ISO 639-1 code of the first question and its answer; `und` where hardly a letter is left."""
    prepare()
    first = {message["role"]: message["content"] for message in reversed(messages)}
    words = " ".join(CODE.sub(" ", first.get(role, ""))[:LANGUAGE_CHARACTERS] for role in ("user", "assistant"))
    return _identifier().classify(words)[0] if sum(map(str.isalpha, words)) >= 20 else "und"


def _openings(conversations: list[list[Message]], role: str) -> list[tuple[str, int, float]]:
    """The commonest first words of more than one message: words, messages, share of the role's messages."""
    texts = (message["content"] for messages in conversations for message in messages if message["role"] == role)
    counter = Counter(" ".join(text.split(None, OPENING)[:OPENING]).casefold() for text in texts if text.strip())
    return [(words, k, k / counter.total()) for words, k in counter.most_common(LISTED) if k > 1]


def _sides(parts: list[list[Any]]) -> dict[str, Any]:
    """Median words of prompt, chosen and rejected, and how often the chosen one is longer (a bias that DPO learns)."""
    lengths = [[sum(len(m["content"].split()) for m in side) for side in (p, [c], [r])] for p, c, r in parts]
    medians = dict(zip(("prompt", "chosen", "rejected"), map(median, zip(*lengths, strict=True)), strict=True))
    return medians | {"chosen_longer": sum(chosen > rejected for _, chosen, rejected in lengths) / len(lengths)}
