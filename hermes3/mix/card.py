"""The card of a mix: README.md for the Hub, and card.html, the same text with a chart. Text is read of a sample: rows
lie in an order drawn by hash, so the first are a random sample."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hermes3.files import write_text
from hermes3.messages import Message
from hermes3.mix import lock
from hermes3.mix.manifest import Manifest, batches, composition
from hermes3.mix.spec import Spec
from hermes3.page import charts, text
from hermes3.page.shell import as_page, render, table_row

TEMPLATE = Path(__file__).with_name("card.md.jinja")
STAGES = ("read", "adapt", "filter", "tokenise", "decontaminate", "dedup", "budget")
MOST_TURNS = 12  # conversations of this many turns or more share one line
SAMPLE = 4_000  # rows; a share of 1 % is then known to within 0.3 points (95 %)
LANGUAGE_CHARACTERS = 500  # of the question and of the answer each: py3langid is sure long before
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
# of those that the Hub knows
HUB_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "bsd-3-clause")
_LOADING = threading.Lock()


def write_card(mix: Path, manifest: Manifest) -> None:
    """Write README.md and card.html into the folder `mix`, which holds the files of the mix that `manifest` records."""
    for name, page in pages(mix, manifest, []).items():
        write_text(mix / name, page)


def pages(mix: Path, manifest: Manifest, audited: list[dict[str, Any]]) -> dict[str, str]:
    """README.md and card.html; `audited`: the stages whose removals were looked at, of hermes3/mix/audit.py."""
    card = facts(mix, manifest) | {"audited": audited}
    filters = text.FILTERS | {"row": table_row, "in_words": text.join}
    readme = render(TEMPLATE, card | {"page": False}, {}, filters)
    drawn = {"mix": charts.mix_chart(card)} if card["kind"] == "sft" else {}
    page = as_page(render(TEMPLATE, card | {"page": True}, drawn, filters), f"{card['name']}: data card", drawn)
    return {"README.md": readme, "card.html": page}


def facts(mix: Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest and what else the card says; shares are fractions, lengths are in tokens."""
    rows = pq.read_table(mix / "rows", columns=["category", "n_tokens", "n_turns", "tools"])
    rejects = pq.read_table(mix / "rejects", columns=["source", "stage", "reason", "detail"])
    reasons = rejects.group_by(["stage", "reason", "source"], use_threads=False)
    reasons = reasons.aggregate([([], "count_all"), ("detail", "first")]).to_pylist()
    hits = rejects.filter(pc.equal(rejects["stage"], "decontaminate")).to_pylist()
    licences = {(source["licence"] or "").lower() for source in manifest["sources"] if source["rows_kept"]}
    categories = composition(manifest)
    return manifest | {
        "categories": categories,
        "left_out": sorted(reasons, key=lambda one: (STAGES.index(one["stage"]), one["reason"], one["source"])),
        "funnel": _funnel(manifest),
        "contaminated": Counter(hit["detail"].partition(":")[0] for hit in hits),  # by evaluation set
        "lengths": _lengths(rows["n_tokens"].to_numpy(), rows["category"].to_numpy(), categories),
        "turns": sorted(Counter(np.minimum(rows["n_turns"].to_numpy(), MOST_TURNS).tolist()).items()),
        # JSON text of a list that is neither absent nor empty
        "with_tools": (pc.sum(pc.greater(pc.utf8_length(rows["tools"]), len("null"))).as_py() or 0) / len(rows),
        "sample": _sample(mix, manifest["kind"]),
        "licences": sorted({licence if licence in HUB_LICENCES else "other" for licence in licences}),
        "unpinned": lock.unpinned(Spec.model_validate(manifest["spec"]), manifest["lock"]),
    }


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


def _lengths(lengths: np.ndarray, category: np.ndarray, categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quantiles and mean of each category's rows."""
    rows = []
    for one in categories:
        if len(own := lengths[category == one["key"]]):
            p5, median, p95 = map(int, np.quantile(own, (0.05, 0.5, 0.95), method="inverted_cdf"))
            row = {"label": one["label"], "p5": p5, "median": median, "mean": float(own.mean()), "p95": p95}
            rows.append(row | {"longest": int(own.max())})
    return rows


def _sample(mix: Path, kind: str) -> dict[str, Any]:
    """Figures of the first `SAMPLE` rows: languages, share of system prompts, words of both sides of a pair."""
    columns = ["messages", *(("chosen", "rejected") if kind == "preference" else ())]
    rows = list(islice(chain.from_iterable(batches(mix / "rows", columns)), SAMPLE))
    parts = [[json.loads(row[name]) for name in columns] for row in rows]
    classify = prepare()
    languages = Counter(_language([*messages, *answers[:1]], classify) for messages, *answers in parts)
    with_system = sum(messages[0]["role"] == "system" for messages, *_ in parts) / len(parts)
    sample = {"rows": len(rows), "languages": languages.most_common(), "with_system": with_system, "sides": None}
    if kind == "preference":  # a chosen answer that is the longer one is a bias that DPO learns
        sides = [[sum(len(m["content"].split()) for m in side) for side in (p, [c], [r])] for p, c, r in parts]
        medians = dict(zip(("prompt", "chosen", "rejected"), np.median(sides, axis=0).tolist(), strict=True))
        sample["sides"] = medians | {"chosen_longer": sum(c > r for _, c, r in sides) / len(sides)}
    return sample


def prepare() -> Callable[[str], tuple[str, float]]:
    """py3langid's classifier, loaded: 2 s of unpacking, which a build can do while it reads rows. Of ISO 639-1 alone:
    of short English questions it takes some for Nigerian Pidgin, and so with other small ones."""
    from py3langid import langid

    with _LOADING:
        langid.set_languages([code for code, _ in langid.rank("") if len(code) == 2])
    return langid.classify


def _language(messages: list[Message], classify: Callable[[str], tuple[str, float]]) -> str:
    """ISO 639-1 code of the first question and its answer; `und` where hardly a letter is left."""
    first = {message["role"]: message["content"] for message in reversed(messages)}
    words = " ".join(CODE.sub(" ", first.get(role, ""))[:LANGUAGE_CHARACTERS] for role in ("user", "assistant"))
    return classify(words)[0] if sum(map(str.isalpha, words)) >= 20 else "und"
