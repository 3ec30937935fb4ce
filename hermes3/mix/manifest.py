"""The record of a mix: what went in, what came out, what was left out, and the hashes that let anyone rebuild it."""

import json
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import hermes3
from hermes3.files import sha256
from hermes3.mix.choose import Choice
from hermes3.mix.decontaminate import Index
from hermes3.mix.sources import File
from hermes3.mix.spec import Spec
from hermes3.mix.write import output_hash

PACKAGES = ("tokenizers", "tiktoken", "pyarrow", "numpy", "rensa", "orjson")


def make(
    out: Path,
    spec: Spec,
    files: dict[str, list[File]],
    lock: dict[str, Any] | None,
    index: Index | None,
    rows: pa.Table,
    choice: Choice,
    rejects: pa.Table,
    counts: dict[str, Counter[str]],
) -> dict[str, Any]:
    """Write `manifest.json` into `out`, whose parquet files are there, and return it.

    `rows`: the short columns of all shards' rows, of which `choice` takes some; `counts`: {source: {"read": n}}.
    """
    kept = rows.take(pa.array(choice.rows))
    by_source, by_category = _totals(kept, "source"), _totals(kept, "category")
    why = _reasons(rejects)
    budgets = spec.budgets()
    manifest = {
        "name": spec.name,
        "kind": spec.kind,
        "seed": spec.seed,
        "sequence_len": spec.sequence_len,
        "spec": spec.model_dump(mode="json"),
        "tokenizer": {"path": str(spec.tokenizer), "sha256": sha256(spec.tokenizer / "tokenizer.json")},
        "template": {"sha256": sha256(spec.tokenizer / "chat_template.jinja")},
        "versions": {
            "hermes3": hermes3.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "lock": lock,
        "sources": [
            {
                "name": source.name,
                "category": category,
                "path": source.path,
                "repo": source.repo,
                "revision": files[source.name][0].revision,
                "licence": source.licence,
                "rank": source.rank,
                "files": {file.name: sha256(file.path) for file in files[source.name]},
                "rows_read": counts.get(source.name, Counter())["read"],
                "rows_not_selected": counts.get(source.name, Counter())["not_selected"],
                "rows_kept": by_source.get(source.name, NONE)["rows"],
                "tokens": by_source.get(source.name, NONE)["tokens"],
                "loss_tokens": by_source.get(source.name, NONE)["loss_tokens"],
                "rejects": why.get(source.name, {}),
            }
            for category, source in spec.sources()
        ],
        "categories": {
            name: {**by_category.get(name, NONE), "budget": budgets.get(name)}
            for name in dict.fromkeys([*spec.categories, *sorted(by_category)])
        },
        "total": {key: sum(part[key] for part in by_category.values()) for key in NONE},
        "rejects": dict(sorted(sum((Counter(part) for part in why.values()), Counter()).items())),
        "shortfalls": choice.shortfalls,
        "repeated_rows": int(np.count_nonzero(choice.uses)),
        "unsearched": index.unsearched if index else {},
        "output": output_hash(out),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def prepared_folder(manifest: dict[str, Any]) -> str:
    """The folder of a mix that holds what Axolotl prepared from it, named by what the mix holds."""
    return f"prepared-{manifest['output']['sha256'][:12]}"


NONE = {"rows": 0, "tokens": 0, "loss_tokens": 0}


def _totals(rows: pa.Table, key: str) -> dict[str, dict[str, int]]:
    sums = rows.group_by(key).aggregate([("n_tokens", "count"), ("n_tokens", "sum"), ("n_loss_tokens", "sum")])
    return {
        row[key]: dict(zip(NONE, (row["n_tokens_count"], row["n_tokens_sum"], row["n_loss_tokens_sum"]), strict=True))
        for row in sums.to_pylist()
    }


def _reasons(rejects: pa.Table) -> dict[str, dict[str, int]]:
    """{source: {"stage/reason": rows}}"""
    table = pa.table(
        {"source": rejects["source"], "why": pc.binary_join_element_wise(rejects["stage"], rejects["reason"], "/")}
    )
    counted: dict[str, dict[str, int]] = {}
    for row in sorted(table.group_by(["source", "why"]).aggregate([([], "count_all")]).to_pylist(), key=repr):
        counted.setdefault(row["source"], {})[row["why"]] = row["count_all"]
    return {source: dict(sorted(why.items())) for source, why in counted.items()}
