"""The card as files: card.md for the Hub and card.html to read, with charts; the same mix gives the same bytes."""

from pathlib import Path
from typing import Any

from hermes3.files import write_text
from hermes3.mix import lock
from hermes3.mix.card import STAGES, analyse
from hermes3.mix.card_charts import funnel_chart, lengths_chart, portion, turns_chart
from hermes3.mix.categories import NAMES
from hermes3.mix.spec import Spec
from hermes3.page import charts, text
from hermes3.page.shell import render

HERE = Path(__file__).parent

# of the identifiers that the Hub knows; any other licence is `other`
HUB_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "bsd-3-clause")
LOCKED = {
    "locked": "Sources are locked: another build reads the same bytes, or stops.",
    "pinned": "Hub sources are pinned to commits.",
    "not locked": "Sources are not locked: a later build may read other rows; run hermes3 mix lock.",
    "local files": "Sources are local files, known by the hashes below.",
}


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """Write card.md and card.html into `folder`, which holds the parquet files of the mix that `manifest` describes."""
    card = analyse(folder, manifest)
    facts = {"card": card, "manifest": manifest, "verdict": verdict(card, manifest)}
    facts |= {"sources_are": sources_are(manifest), **_by_source(card)}
    filters = text.FILTERS | {"millions": millions, "portion": portion, "row": row}
    markdown = render(HERE / "card.md.jinja", facts | {"front_matter": front_matter(card)}, {}, filters)
    write_text(folder / "card.md", markdown)
    drawn = {"lengths": lengths_chart(card), "turns": turns_chart(card), "funnel": funnel_chart(card)}
    if card["paper"]:
        drawn["mix"] = charts.mix_chart({"name": card["name"], "categories": card["categories"]})
    write_text(folder / "card.html", render(HERE / "card.html.jinja", facts, drawn, filters))


def verdict(card: dict[str, Any], manifest: dict[str, Any]) -> str:
    """What the mix is and what is wrong with it, in one paragraph."""
    total, paper = card["total"], card["paper"]
    rows = "conversations" if card["kind"] == "sft" else "preference pairs"
    sentences = [f"{total['rows']:,} {rows}, {millions(total['tokens'])} tokens as trained"]
    if paper:
        sentences[0] += f"; the paper's mix has {millions(paper['tokens'])}."
        gap = text.signed(total["loss_share"] - paper["loss_share"])
        sentences.append(f"{text.percent(total['loss_share'])} bear loss, {gap} points against the paper's 69\u00a0%.")
    else:
        sentences[0] += ", both sides of each pair counted."
        sentences.append(f"{text.percent(total['loss_share'])} are answers.")
    sentences += [f"{NAMES.get(key, key)}: {short.rstrip('.')}." for key, short in manifest["shortfalls"].items()]
    if paper and not manifest["shortfalls"]:
        budgets = [category for category in card["categories"] if category["budget"]]
        sentences.append(
            "Every budget is met." if budgets else "No category has a budget: every row that passed is in."
        )
    sentences.append(LOCKED[sources_are(manifest)])
    if unaccounted := [step for step in card["funnel"] if step["step"] == "unaccounted"]:
        sentences.append(
            f"{-unaccounted[0]['rows']:,} rows that were read are neither kept nor rejected: do not use it."
        )
    return " ".join(sentences)


def sources_are(manifest: dict[str, Any]) -> str:
    """A key of `LOCKED`."""
    if lock.unpinned(Spec.model_validate(manifest["spec"]), manifest["lock"]):
        return "not locked"
    if manifest["lock"]:
        return "locked"
    return "pinned" if any(source.get("repo") for source in manifest["sources"]) else "local files"


def front_matter(card: dict[str, Any]) -> str:
    """YAML that the Hub reads at the head of a dataset card."""
    from huggingface_hub import DatasetCardData

    licences = {(source["licence"] or "").lower() for source in card["sources"] if source["rows"]}
    known = sorted({licence if licence in HUB_LICENCES else "other" for licence in licences})
    return DatasetCardData(
        pretty_name=card["name"],
        license=known[0] if len(known) == 1 else known,
        language=[one["language"] for one in card["sample"]["languages"] if one["share"] >= 0.01],
        size_categories=_size(card["total"]["rows"]),
        task_categories="text-generation",
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.parquet"}]}
            | ({"default": True} if name == "train" else {})
            for name in ("train", "rows", "rejects")
        ],
    ).to_yaml()


def _by_source(card: dict[str, Any]) -> dict[str, Any]:
    """The table of rejects per source: a column a stage (`seen`), a row a source; duplicates are told apart."""
    reasons = {reason for counts in card["left_out"].values() for reason in counts}
    seen = []
    for stage in STAGES:
        mine = sorted(reason for reason in reasons if reason.startswith(f"{stage}/"))
        seen += mine if stage == "dedup" else [stage] if mine else []
    rows = [
        {
            "name": source["name"],
            "cells": [
                sum(n for reason, n in source["left_out"].items() if column in (reason, reason.partition("/")[0]))
                for column in seen
            ],
        }
        for source in card["sources"]
    ]
    return {"seen": seen, "by_stage": rows}


def _size(rows: int) -> str:
    """The Hub's size category: `10K<n<100K`."""
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M")]
    under = next((place for place, (bound, _) in enumerate(bounds) if rows < bound), len(bounds))
    if under in (0, len(bounds)):
        return "n<1K" if under == 0 else "n>10M"
    return f"{bounds[under - 1][1]}<n<{bounds[under][1]}"


def millions(value: float) -> str:
    """390123456 -> `390.1 M`; below a million the number itself."""
    return f"{value / 1e6:,.1f}\u00a0M".replace(".0\u00a0M", "\u00a0M") if value >= 1e6 else f"{value:,.0f}"


def row(cells: list[Any]) -> str:
    """A row of a Markdown table."""
    clean = (" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return "| " + " | ".join(clean) + " |"
