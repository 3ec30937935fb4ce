"""What a built mix holds, as plain data: composition against the paper, rejects, shape, and a sample of its text.

Figures come from the written parquet files, not from the build's own counters, so the card also checks the manifest.
Number columns are read whole (about 50 bytes a row); text is read for the sample alone (hermes3/mix/card_sample.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from hermes3.mix import card_sample
from hermes3.mix.categories import CATEGORIES, NAMES

STAGES = ("read", "adapt", "filter", "tokenise", "decontaminate", "dedup", "budget")
PAPER = {"tokens": 390_000_000, "loss_share": 0.69}  # arXiv 2408.11857, section 3
LAST_TURNS = 12  # conversations of as many turns or more share one bar
EXAMPLE = 160  # characters of a reject's detail
ROW_COLUMNS = ["source", "category", "n_tokens", "n_loss_tokens", "n_turns", "tools"]
COUNTS = [([], "count_all"), ("n_tokens", "sum"), ("n_loss_tokens", "sum")]


def analyse(mix: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The card of the mix in the folder `mix` as JSON-able data; shares are fractions, lengths are in tokens.

    `ValueError` where the parquet files do not hold what the manifest says.
    """
    rows = parquet(mix / "rows").to_table(columns=ROW_COLUMNS)
    rejects = parquet(mix / "rejects").to_table(columns=["source", "stage", "reason", "detail"])
    total = {"rows": len(rows)} | {
        name: pc.sum(rows[column]).as_py() or 0
        for name, column in (("tokens", "n_tokens"), ("loss_tokens", "n_loss_tokens"))
    }
    if not total["tokens"] or total != manifest["total"]:
        raise ValueError(f"{mix}: rows/ holds {total}, manifest.json says {manifest['total']}; build the mix again")
    left_out = _left_out(rejects)
    sources = _sources(rows, manifest, left_out)
    sample = card_sample.analyse(mix / "rows", len(rows), manifest["kind"])
    return {
        "name": manifest["name"],
        "kind": manifest["kind"],
        "total": total | {"loss_share": total["loss_tokens"] / total["tokens"]},
        "paper": PAPER if manifest["kind"] == "sft" else None,
        "categories": _categories(rows, manifest),
        "sources": sources,
        "ranks": _ranks(sources, total["tokens"]),
        "funnel": _funnel(manifest, left_out, len(rows)),
        "rejects": _reasons(rejects),
        "left_out": left_out,
        "contaminated": _contaminated(rejects),
        "refusals": _refusals(sources, rejects, sample.pop("refusing")),
        "lengths": _lengths(rows),
        "turns": _turns(rows),
        "with_tools": _with_tools(rows["tools"]) / len(rows),
        "sample": sample,
    }


def parquet(folder: Path) -> ds.Dataset:
    """The parquet files of `folder` as one dataset, in the order of their names. `ValueError` if there is none."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder}: no parquet file; name the folder of a built mix")
    return ds.dataset(files)


def totals(rows: pa.Table, key: str) -> dict[str, dict[str, int]]:
    """{value of the column `key`: rows, tokens, loss_tokens}."""
    counted = rows.group_by(key).aggregate(COUNTS).to_pylist()
    return {
        one[key]: {"rows": one["count_all"], "tokens": one["n_tokens_sum"], "loss_tokens": one["n_loss_tokens_sum"]}
        for one in sorted(counted, key=lambda one: one[key])
    }


def _shares(counts: dict[str, int], tokens: int) -> dict[str, Any]:
    bears = counts["loss_tokens"] / counts["tokens"] if counts["tokens"] else 0.0
    return counts | {"share": counts["tokens"] / tokens, "loss_share": bears}


NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}


def _categories(rows: pa.Table, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """In the order of the paper's table; an SFT mix shows all eight, since one that it lacks is a finding."""
    sft, found = manifest["kind"] == "sft", totals(rows, "category")
    return [
        {
            "key": key,
            "label": label,
            **_shares(found.get(key, NOTHING), manifest["total"]["tokens"]),
            "paper_share": percent / 100 if sft else None,
            "budget": manifest["categories"].get(key, {}).get("budget"),
            "shortfall": manifest["shortfalls"].get(key),
        }
        for key, (label, percent) in CATEGORIES.items()
        if sft or key in found
    ]


def _sources(rows: pa.Table, manifest: dict[str, Any], left_out: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    found = totals(rows, "source")
    return [
        {
            "name": source["name"],
            "category": NAMES.get(source["category"], "by classification"),
            "place": source.get("repo") or source.get("path"),
            **{key: source.get(key) for key in ("revision", "licence", "rank")},
            "rows_read": source["rows_read"],
            "rows_not_selected": source["rows_not_selected"],
            **_shares(found.get(source["name"], NOTHING), manifest["total"]["tokens"]),
            "left_out": left_out.get(source["name"], {}),
        }
        for source in manifest["sources"]
    ]


def _ranks(sources: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Rows and tokens by the rank of their source; rank 1 has the strongest generator."""
    ranks = sorted({source["rank"] or 1 for source in sources})
    members = {rank: [source for source in sources if (source["rank"] or 1) == rank] for rank in ranks}
    return [
        {
            "rank": rank,
            "sources": len(some),
            **_shares({key: sum(source[key] for source in some) for key in NOTHING}, tokens),
        }
        for rank, some in members.items()
    ]


def _left_out(rejects: pa.Table) -> dict[str, dict[str, int]]:
    """{source: {"stage/reason": rows}}."""
    counted = rejects.group_by(["source", "stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    out: dict[str, dict[str, int]] = {}
    for one in sorted(counted, key=lambda one: (one["source"], *_stage_order(one))):
        out.setdefault(one["source"], {})[f"{one['stage']}/{one['reason']}"] = one["count_all"]
    return out


def _stage_order(one: dict[str, Any]) -> tuple[int, str, str]:
    place = STAGES.index(one["stage"]) if one["stage"] in STAGES else len(STAGES)
    return place, one["stage"], one["reason"]


def _funnel(manifest: dict[str, Any], left_out: dict[str, dict[str, int]], kept: int) -> list[dict[str, Any]]:
    """Rows read, what each stage took away (negative), rows kept. Rows used more than once come back as `repeated`."""
    by_stage: dict[str, int] = {}
    for reasons in left_out.values():
        for reason, n in reasons.items():
            stage = reason.partition("/")[0]
            by_stage[stage] = by_stage.get(stage, 0) + n
    read = sum(source["rows_read"] for source in manifest["sources"])
    steps = [{"step": "rows read", "rows": read}]
    steps += [{"step": stage, "rows": -by_stage[stage]} for stage in STAGES if stage in by_stage]
    if difference := kept - read + sum(by_stage.values()):
        steps.append({"step": "repeated" if difference > 0 else "unaccounted", "rows": difference})
    return [*steps, {"step": "rows kept", "rows": kept}]


def _reasons(rejects: pa.Table) -> list[dict[str, Any]]:
    """Rejects by stage and reason, each with the detail of the first that has one."""
    detail = pc.utf8_slice_codeunits(pc.if_else(pc.equal(rejects["detail"], ""), None, rejects["detail"]), 0, EXAMPLE)
    grouped = rejects.set_column(rejects.schema.get_field_index("detail"), "detail", detail)
    found = grouped.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all"), ("detail", "first")])
    return [
        {"stage": one["stage"], "reason": one["reason"], "rows": one["count_all"], "example": one["detail_first"] or ""}
        for one in sorted(found.to_pylist(), key=_stage_order)
    ]


def _contaminated(rejects: pa.Table) -> list[dict[str, Any]]:
    """Rows by source and evaluation set, which the detail names before its first colon."""
    found = rejects.filter(pc.equal(rejects["stage"], "decontaminate")).select(["source", "detail"]).to_pylist()
    counts: dict[tuple[str, str], int] = {}
    for one in found:
        key = one["source"], one["detail"].partition(":")[0]
        counts[key] = counts.get(key, 0) + 1
    return [{"source": source, "eval_set": name, "rows": n} for (source, name), n in sorted(counts.items())]


def _refusals(
    sources: list[dict[str, Any]], rejects: pa.Table, refusing: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Per source: rows that reached the filters, rows that refusal took, and what it still finds in the sample."""
    out = []
    for source in sources:
        early = sum(n for reason, n in source["left_out"].items() if reason.startswith(("read/", "adapt/")))
        reached, dropped = source["rows_read"] - early, source["left_out"].get("filter/refusal", 0)
        found = refusing.get(source["name"], {"n": 0, "k": 0})
        rate = dropped / reached if reached else 0.0
        out.append({"source": source["name"], "reached": reached, "dropped": dropped, "rate": rate, "kept": found})
    return out


def _lengths(rows: pa.Table) -> dict[str, Any]:
    """Histogram of `n_tokens` per category in half-octave bins (`edges`: tokens[n_bins + 1]), and quantiles."""
    lengths = rows["n_tokens"].to_numpy()
    low, high = np.floor(2 * np.log2(max(lengths.min(), 1))), np.ceil(2 * np.log2(lengths.max() + 1))
    edges = 2 ** (np.arange(low, max(high, low + 1) + 1) / 2)
    category = rows["category"].combine_chunks().dictionary_encode()
    codes = category.indices.to_numpy()
    out = {}
    for code, name in sorted(enumerate(category.dictionary.to_pylist()), key=lambda pair: pair[1]):
        mine = lengths[codes == code]
        middle = np.quantile(mine, (0.05, 0.5, 0.95), method="inverted_cdf")
        out[name] = {
            "bins": np.histogram(mine, edges)[0].tolist(),
            "mean": float(mine.mean()),
            **dict(zip(("p5", "median", "p95"), map(int, middle), strict=True)),
            "longest": int(mine.max()),
        }
    return {"edges": edges.tolist(), "categories": out}


def _turns(rows: pa.Table) -> dict[str, Any]:
    """Rows by number of assistant turns, `LAST_TURNS` and more together."""
    turns = rows["n_turns"].to_numpy()
    found = np.bincount(np.clip(turns, 1, LAST_TURNS), minlength=LAST_TURNS + 1)[1:].tolist()
    counts = {f"{n}+" if n == LAST_TURNS else str(n): rows for n, rows in enumerate(found, start=1)}
    return {"counts": counts, "mean": float(turns.mean()), "most": int(turns.max())}


def _with_tools(tools: pa.ChunkedArray) -> int:
    """Rows whose list of tools, as JSON text, is neither absent nor empty."""
    return pc.sum(pc.greater(pc.utf8_length(tools), len("null"))).as_py() or 0
