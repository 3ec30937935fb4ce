"""The card of a mix: README.md for the Hub, and card.html, the same text with charts.

Counts are the manifest's, which `hermes3 mix verify` compares with the files. Number columns are read whole (about 50
bytes per row). Text is read of a sample alone: rows lie in an order drawn by hash, so the first are a random sample,
and a share over n rows has Wilson's 95 % interval, unless the sample is the whole mix. The same mix, the same bytes.
"""

import importlib
import json
import re
import threading
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hermes3.files import write_text
from hermes3.messages import Message
from hermes3.mix import lock
from hermes3.mix.manifest import Manifest, batches, composition
from hermes3.mix.refusals import is_refusal
from hermes3.mix.spec import CATEGORIES, Spec
from hermes3.page import charts, mix_charts, text
from hermes3.page.shell import as_page, render, table_row
from hermes3.stats import wilson

STAGES = ("read", "adapt", "filter", "tokenise", "decontaminate", "dedup", "budget")
PAPER = {"tokens": 390_000_000, "loss_share": 0.69}  # arXiv 2408.11857, section 3
LAST_TURNS = 12  # conversations of this many turns or more share one bar
EXAMPLE = 160  # characters of a reject's detail
SAMPLE = 10_000  # rows; a share of 1 % is then known to within 0.2 points
OPENING, LISTED = 4, 15  # words of an opening; openings listed
LANGUAGE_CHARACTERS = 500  # of the question and of the answer each: py3langid is sure long before
_LOADING = threading.Lock()
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
# of the identifiers that the Hub knows; any other licence is `other`
HUB_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "bsd-3-clause")


def write_card(mix: Path, manifest: Manifest) -> None:
    """Write README.md and card.html into the folder `mix`, which holds the files of the mix that `manifest` records."""
    card = facts(mix, manifest)
    filters = text.FILTERS | {"portion": mix_charts.portion, "row": table_row}
    template = Path(__file__).with_name("card.md.jinja")
    write_text(mix / "README.md", f"---\n{front_matter(card)}\n---\n\n{render(template, card, {}, filters)}")
    drawn = {name: getattr(mix_charts, f"{name}_chart")(card) for name in ("lengths", "funnel")}
    if card["kind"] == "sft":
        drawn["mix"] = charts.mix_chart(card)
    page = as_page(render(template, card, drawn, filters), f"{card['name']}: data card", drawn)
    write_text(mix / "card.html", page)


def facts(mix: Path, manifest: Manifest) -> dict[str, Any]:
    """What the card says, as plain data; shares are fractions, lengths are in tokens."""
    rows = pq.read_table(mix / "rows", columns=["category", "n_tokens", "n_turns", "tools"])
    rejects = pq.read_table(mix / "rejects", columns=["source", "stage", "reason", "detail"])
    total, turns = manifest["total"], rows["n_turns"].to_numpy()
    sample = _sample(mix, total["rows"], manifest["kind"])
    # the table of rejects has a column per stage, and one for each kind of duplicates
    named = [why if why.startswith("dedup/") else why.partition("/")[0] for why in manifest["rejects"]]
    stages = sorted(set(named), key=lambda name: (STAGES.index(name.partition("/")[0]), name))
    counts = np.bincount(np.clip(turns, 1, LAST_TURNS), minlength=LAST_TURNS + 1)[1:].tolist()
    hits = rejects.filter(pc.equal(rejects["stage"], "decontaminate")).select(["source", "detail"]).to_pylist()
    contaminated = Counter((hit["detail"].partition(":")[0], hit["source"]) for hit in hits)
    card = {
        "name": manifest["name"],
        "kind": manifest["kind"],
        "manifest": manifest,
        "total": total | {"loss_share": total["loss_tokens"] / total["tokens"]},
        "categories": composition(manifest),
        "stages": [stage.partition("/")[2].replace("_", " ") or stage for stage in stages],
        "sources": [_source(source, stages) for source in manifest["sources"]],
        "funnel": _funnel(manifest),
        "rejects": _rejects(rejects),
        # by the evaluation set that the detail names before its first colon, and by source
        "contaminated": [{"eval_set": s, "source": by, "rows": n} for (s, by), n in sorted(contaminated.items())],
        **{key: manifest[key] for key in ("unsearched", "shared", "not_searched")},
        "refusals": [_refusals(source, sample["refusing"]) for source in manifest["sources"]],
        "lengths": _lengths(rows),
        # rows by number of assistant turns
        "turns": {
            "counts": dict(zip([*map(str, range(1, LAST_TURNS)), f"{LAST_TURNS}+"], counts, strict=True)),
            **{"mean": float(turns.mean()), "most": int(turns.max())},
        },
        # a list of tools, as JSON text, that is neither absent nor empty
        "with_tools": (pc.sum(pc.greater(pc.utf8_length(rows["tools"]), len("null"))).as_py() or 0) / total["rows"],
        "sample": sample,
    }
    return card | {"findings": _findings(card, manifest)}


def _findings(card: dict[str, Any], manifest: Manifest) -> str:
    """What the mix is and what is wrong with it, in one paragraph."""
    total, is_sft = card["total"], card["kind"] == "sft"
    rows, tokens, bears = f"{total['rows']:,}", _millions(total["tokens"]), text.percent(total["loss_share"])
    if is_sft:
        gap = text.signed(total["loss_share"] - PAPER["loss_share"])
        sentences = [
            f"{rows} conversations, {tokens} tokens as trained; the paper's mix has {_millions(PAPER['tokens'])}.",
            f"{bears} bear loss, {gap} points against the paper's 69\u00a0%.",
        ]
    else:
        sentences = [f"{rows} preference pairs, {tokens} tokens as trained, both sides of a pair counted."]
        sentences.append(f"{bears} are answers.")
    short = [f"{one['label']}: {one['shortfall'].rstrip('.')}." for one in card["categories"] if one["shortfall"]]
    sentences += short + [f"{source}: {why}." for source, why in manifest["unmet_weights"].items()]
    if is_sft and not short:
        budget = any(one["budget"] for one in card["categories"])
        sentences.append("Every budget is met." if budget else "No category has a budget: every row that passed is in.")
    if not manifest["unsearched"]:
        sentences.append("No evaluation set was searched for.")
    elif manifest["not_searched"]:
        sentences.append(f"Not searched for, of the paper's Table 5: {text.join(manifest['not_searched'])}.")
    if lock.unpinned(Spec.model_validate(manifest["spec"]), manifest["lock"]):
        sentences.append("Sources are not locked: a later build may read other rows; run hermes3 mix lock.")
    elif manifest["lock"]:
        sentences.append("Sources are locked: another build reads the same bytes, or stops.")
    elif any(source.get("repo") for source in manifest["sources"]):
        sentences.append("Hub sources are pinned to commits.")
    else:
        sentences.append("Sources are local files, known by their hashes in manifest.json.")
    for step in card["funnel"]:
        if step["step"] == "unaccounted":
            sentences.append(f"{-step['rows']:,} rows that were read are neither kept nor rejected: do not use it.")
    return " ".join(sentences)


def front_matter(card: dict[str, Any]) -> str:
    """YAML that the Hub reads at the head of a dataset card."""
    from huggingface_hub import DatasetCardData

    licences = {(source["licence"] or "").lower() for source in card["sources"] if source["rows_kept"]}
    known = sorted({licence if licence in HUB_LICENCES else "other" for licence in licences})
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.parquet"}]}
        for name in ("train", "rows", "rejects")
    ]
    return DatasetCardData(
        pretty_name=card["name"],
        license=known[0] if len(known) == 1 else known,
        language=[one["language"] for one in card["sample"]["languages"] if one["share"] >= 0.01],
        task_categories="text-generation",
        configs=[configs[0] | {"default": True}, *configs[1:]],
    ).to_yaml()


def _source(source: dict[str, Any], stages: list[str]) -> dict[str, Any]:
    place, revision = source.get("repo") or source.get("path"), source.get("revision")
    lost = source["rejects"].items()
    return source | {
        "category": CATEGORIES.get(source["category"], ("by classification",))[0],
        "place": f"{place}@{revision[:7]}" if revision else place,
        "loss_share": source["loss_tokens"] / source["tokens"] if source["tokens"] else 0.0,
        "by_stage": [sum(n for why, n in lost if stage in (why, why.partition("/")[0])) for stage in stages],
    }


def _funnel(manifest: Manifest) -> list[dict[str, Any]]:
    """Rows read, what each stage took away (negative), rows kept. Rows used more than once come back as `repeated`."""
    by_stage: Counter[str] = Counter()
    for reason, n in manifest["rejects"].items():
        by_stage[reason.partition("/")[0]] += n
    read, kept = sum(source["rows_read"] for source in manifest["sources"]), manifest["total"]["rows"]
    steps = [{"step": "rows read", "rows": read}]
    steps += [{"step": stage, "rows": -by_stage[stage]} for stage in STAGES if stage in by_stage]
    if difference := kept - read + by_stage.total():
        steps.append({"step": "repeated" if difference > 0 else "unaccounted", "rows": difference})
    return [*steps, {"step": "rows kept", "rows": kept}]


def _rejects(rejects: pa.Table) -> list[dict[str, Any]]:
    """Rejects by stage and reason, each with the detail of the first that has one."""
    detail = pc.utf8_slice_codeunits(pc.if_else(pc.equal(rejects["detail"], ""), None, rejects["detail"]), 0, EXAMPLE)
    table = rejects.select(["stage", "reason"]).append_column("detail", detail)
    counts = table.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all"), ("detail", "first")])
    counts = counts.rename_columns({"count_all": "rows", "detail_first": "example"}).to_pylist()
    return sorted(counts, key=lambda one: (STAGES.index(one["stage"]), one["reason"]))


def _refusals(source: dict[str, Any], refusing: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows that reached the filters, rows that the refusal filter took, and what it still finds in the sample."""
    early = sum(n for reason, n in source["rejects"].items() if reason.startswith(("read/", "adapt/")))
    reached, dropped = source["rows_read"] - early, source["rejects"].get("filter/refusal", 0)
    kept = refusing.get(source["name"], {"n": 0, "k": 0})
    rate = dropped / reached if reached else 0.0
    return {"source": source["name"], "reached": reached, "dropped": dropped, "rate": rate, "kept": kept}


def _lengths(rows: pa.Table) -> dict[str, Any]:
    """Histogram of `n_tokens` per category in half-octave bins (`edges`: tokens[n_bins + 1]), and quantiles."""
    lengths, category = rows["n_tokens"].to_numpy(), rows["category"].to_numpy(zero_copy_only=False)
    low, high = np.floor(2 * np.log2(max(lengths.min(), 1))), np.ceil(2 * np.log2(lengths.max() + 1))
    edges = 2 ** (np.arange(low, max(high, low + 1) + 1) / 2)
    categories = []
    for key, (label, _) in CATEGORIES.items():
        own = lengths[category == key]
        if len(own):
            quantiles = map(int, np.quantile(own, (0.05, 0.5, 0.95), method="inverted_cdf"))
            one = {"key": key, "label": label, "bins": np.histogram(own, edges)[0].tolist(), "mean": float(own.mean())}
            one |= dict(zip(("p5", "median", "p95"), quantiles, strict=True)) | {"longest": int(own.max())}
            categories.append(one)
    return {"edges": edges.tolist(), "categories": categories}


def _millions(value: float) -> str:
    """390123456 -> `390.1 M`; below a million the number itself."""
    return f"{value / 1e6:,.1f}\u00a0M".replace(".0\u00a0M", "\u00a0M") if value >= 1e6 else f"{value:,.0f}"


# --- what is read of the text


def _sample(mix: Path, total: int, kind: str) -> dict[str, Any]:
    """Figures of the first `SAMPLE` of `total` rows: languages, system prompts, openings, lengths of both sides.

    `refusing` is {source: share of its sampled rows in which the refusal filter still finds a refusal}.
    """
    languages, read, refusing, systems = Counter(), Counter(), Counter(), 0
    openings: dict[str, Counter[str]] = {"assistant": Counter(), "user": Counter()}
    sides: list[tuple[int, ...]] = []
    prepare()
    columns = ["source", "messages", *(("chosen", "rejected") if kind == "preference" else ())]
    for row in islice((row for batch in batches(mix / "rows", columns) for row in batch), SAMPLE):
        messages, *answers = (json.loads(row[name]) for name in columns[1:])
        if answers:
            sides.append(tuple(_words(part) for part in (messages, *([answer] for answer in answers))))
            messages.append(answers[0])
        languages[_language(messages)] += 1
        systems += messages[0]["role"] == "system"
        read[row["source"]] += 1
        refusing[row["source"]] += any(is_refusal(m["content"]) for m in messages if m["role"] == "assistant")
        for message in messages:
            words = message["content"].split(None, OPENING)[:OPENING]
            if words and message["role"] in openings:
                openings[message["role"]][" ".join(words).casefold()] += 1
    n = read.total()

    def share(k: int, n: int) -> dict[str, Any]:
        low, high = (None, None) if read.total() == total else wilson(k, n)
        return {"k": k, "n": n, "share": k / n, "low": low, "high": high}

    return {
        "rows": n,
        "of": total,
        "languages": [{"language": language, **share(k, n)} for language, k in _ranked(languages)],
        "with_system": share(systems, n),
        "openings": {role: _openings(counter) for role, counter in openings.items()},
        "refusing": {source: share(refusing[source], read[source]) for source in sorted(read)},
        "sides": _sides(sides) if sides else None,
    }


def prepare() -> None:
    """Load what a card needs: 2 s of unpacking and importing, which a build can do while it reads rows."""
    importlib.import_module("matplotlib.backends.backend_svg")
    with _LOADING:
        _identifier()


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def _language(messages: list[Message]) -> str:
    """ISO 639-1 code of the first question and its answer; `und` where hardly a letter is left."""
    first = {message["role"]: message["content"] for message in reversed(messages)}
    text = " ".join(CODE.sub(" ", first.get(role, ""))[:LANGUAGE_CHARACTERS] for role in ("user", "assistant"))
    return _identifier().classify(text)[0] if sum(map(str.isalpha, text)) >= 20 else "und"


def _ranked(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def _openings(counter: Counter[str]) -> list[dict[str, Any]]:
    """The commonest first words that stand in more than one message, with their share of all messages of the role."""
    n = counter.total()
    return [{"opening": text, "k": k, "share": k / n} for text, k in _ranked(counter)[:LISTED] if k > 1]


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _sides(sides: list[tuple[int, ...]]) -> dict[str, Any]:
    """Median words of prompt, chosen and rejected, and how often the chosen one is longer (a bias that DPO learns)."""
    medians = dict(zip(("prompt", "chosen", "rejected"), map(median, zip(*sides, strict=True)), strict=True))
    return medians | {"chosen_longer": sum(chosen > rejected for _, chosen, rejected in sides) / len(sides)}
