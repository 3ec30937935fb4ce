"""The card of a mix: README.md for the Hub, and card.html, the same text with charts.

Counts are the manifest's, which `hermes3 mix verify` compares with the files. Number columns are read whole (about 50
bytes per row); text is read for a sample alone (hermes3/mix/card_sample.py). The same mix gives the same bytes.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from hermes3.files import write_text
from hermes3.mix import card_sample, lock
from hermes3.mix.manifest import Manifest, composition
from hermes3.mix.spec import CATEGORIES, Spec
from hermes3.page import charts, mix_charts, text
from hermes3.page.shell import as_page, render, table_row

STAGES = ("read", "adapt", "filter", "tokenise", "decontaminate", "dedup", "budget")
PAPER = {"tokens": 390_000_000, "loss_share": 0.69}  # arXiv 2408.11857, section 3
LAST_TURNS = 12  # conversations of this many turns or more share one bar
EXAMPLE = 160  # characters of a reject's detail
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
    rows = ds.dataset(sorted(map(str, (mix / "rows").glob("*.parquet"))))
    rows = rows.to_table(columns=["category", "n_tokens", "n_turns", "tools"])
    rejects = ds.dataset(sorted(map(str, (mix / "rejects").glob("*.parquet"))))
    rejects = rejects.to_table(columns=["source", "stage", "reason", "detail"])
    total = manifest["total"]
    sample = card_sample.analyse(mix / "rows", total["rows"], manifest["kind"])
    stages = _stages(manifest)
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
        "contaminated": _contaminated(rejects),
        "unsearched": manifest["unsearched"],
        "refusals": [_refusals(source, sample["refusing"]) for source in manifest["sources"]],
        "lengths": _lengths(rows),
        "turns": _turns(rows["n_turns"].to_numpy()),
        # a list of tools, as JSON text, that is neither absent nor empty
        "with_tools": (pc.sum(pc.greater(pc.utf8_length(rows["tools"]), len("null"))).as_py() or 0) / total["rows"],
        "sample": sample,
    }
    return card | {"findings": _findings(card, manifest)}


def _findings(card: dict[str, Any], manifest: Manifest) -> str:
    """What the mix is and what is wrong with it, in one paragraph."""
    total, is_sft = card["total"], card["kind"] == "sft"
    rows, bears = f"{total['rows']:,}", text.percent(total["loss_share"])
    if is_sft:
        gap = text.signed(total["loss_share"] - PAPER["loss_share"])
        sentences = [
            f"{rows} conversations, {_millions(total['tokens'])} tokens as trained; the paper's mix has "
            f"{_millions(PAPER['tokens'])}.",
            f"{bears} bear loss, {gap} points against the paper's 69\u00a0%.",
        ]
    else:
        sentences = [
            f"{rows} preference pairs, {_millions(total['tokens'])} tokens as trained, both sides of a pair counted.",
            f"{bears} are answers.",
        ]
    short = [f"{one['label']}: {one['shortfall'].rstrip('.')}." for one in card["categories"] if one["shortfall"]]
    sentences += short
    if is_sft and not short:
        budget = any(one["budget"] for one in card["categories"])
        sentences.append("Every budget is met." if budget else "No category has a budget: every row that passed is in.")
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
    return DatasetCardData(
        pretty_name=card["name"],
        license=known[0] if len(known) == 1 else known,
        language=[one["language"] for one in card["sample"]["languages"] if one["share"] >= 0.01],
        task_categories="text-generation",
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.parquet"}]}
            | ({"default": True} if name == "train" else {})
            for name in ("train", "rows", "rejects")
        ],
    ).to_yaml()


def _stages(manifest: Manifest) -> list[str]:
    """The columns of the table of rejects: stages, and the kinds of duplicates apart."""
    reasons = manifest["rejects"]
    columns = []
    for stage in STAGES:
        own = sorted(reason for reason in reasons if reason.startswith(f"{stage}/"))
        columns += own if stage == "dedup" else [stage] if own else []
    return columns


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
    grouped = rejects.set_column(rejects.schema.get_field_index("detail"), "detail", detail)
    counts = grouped.group_by(["stage", "reason"], use_threads=False).aggregate(
        [([], "count_all"), ("detail", "first")]
    )
    rows = [
        {"stage": one["stage"], "reason": one["reason"], "rows": one["count_all"], "example": one["detail_first"] or ""}
        for one in counts.to_pylist()
    ]
    return sorted(rows, key=lambda row: (STAGES.index(row["stage"]), row["reason"]))


def _contaminated(rejects: pa.Table) -> list[dict[str, Any]]:
    """Rows by evaluation set, which the detail names before its first colon, and source."""
    hits = rejects.filter(pc.equal(rejects["stage"], "decontaminate")).select(["source", "detail"]).to_pylist()
    counts = Counter((hit["detail"].partition(":")[0], hit["source"]) for hit in hits)
    return [{"eval_set": name, "source": source, "rows": n} for (name, source), n in sorted(counts.items())]


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


def _turns(turns: np.ndarray) -> dict[str, Any]:
    """Rows by number of assistant turns, `LAST_TURNS` and more together."""
    counts = np.bincount(np.clip(turns, 1, LAST_TURNS), minlength=LAST_TURNS + 1)[1:].tolist()
    names = [*map(str, range(1, LAST_TURNS)), f"{LAST_TURNS}+"]
    return {"counts": dict(zip(names, counts, strict=True)), "mean": float(turns.mean()), "most": int(turns.max())}


def _millions(value: float) -> str:
    """390123456 -> `390.1 M`; below a million the number itself."""
    return f"{value / 1e6:,.1f}\u00a0M".replace(".0\u00a0M", "\u00a0M") if value >= 1e6 else f"{value:,.0f}"
