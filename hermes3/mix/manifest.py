"""The record of a mix: what went in, what came out, what was left out, and the hashes that let anyone rebuild it.

Hosts without pyarrow read manifests, so nothing here imports it.
"""

import json
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hermes3
from hermes3.files import UserError, sha256
from hermes3.mix import columns
from hermes3.mix.spec import CATEGORIES, Spec

if TYPE_CHECKING:
    import pyarrow as pa

    from hermes3.mix.choose import Choice
    from hermes3.mix.read import File

PACKAGES = ("tokenizers", "tiktoken", "pyarrow", "numpy", "rensa", "orjson")
NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}
Manifest = dict[str, Any]


def read(mix: Path) -> Manifest:
    """The manifest of the mix in the folder `mix`. `UserError` if it is no mix."""
    if not (mix / "manifest.json").is_file():
        raise UserError(f"{mix}: no manifest.json; a mix is a folder made by `hermes3 mix build`")
    return json.loads((mix / "manifest.json").read_text(encoding="utf-8"))


def batches(folder: Path, columns: list[str] | None = None, size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """The rows of the parquet files in `folder`, in order, few of them in memory at a time."""
    import pyarrow.parquet as pq

    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            yield from (batch.to_pylist() for batch in parquet.iter_batches(size, columns=columns))


def make(
    spec: Spec,
    files: "dict[str, list[File]]",
    hashes: dict[str, dict[str, str]],
    lock: dict[str, Any] | None,
    counts: dict[str, Counter[str]],
    searched: dict[str, Any],
    rows: "pa.Table",
    choice: "Choice",
    rejects: "pa.Table",
    output: dict[str, Any],
) -> Manifest:
    """The manifest of a mix.

    `hashes`: {source: {file: SHA-256}}; `counts`: {source: {"read": n, "not_selected": n}}; `searched`: see
    `hermes3.mix.decontaminate.record`; `rows`: the short columns of all shards' rows, of which `choice` takes some;
    `output`: the hashes of the parquet files.
    """
    kept = rows.take(choice.rows)
    by_source, by_category = totals(kept, "source"), totals(kept, "category")
    reasons: dict[str, dict[str, int]] = {}
    for row in rejects.group_by(["source", "stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
        reasons.setdefault(row["source"], {})[f"{row['stage']}/{row['reason']}"] = row["count_all"]
    budgets, packages = spec.budgets(), {name: version(name) for name in PACKAGES}
    return {
        "name": spec.name,
        "kind": spec.kind,
        "seed": spec.seed,
        "sequence_len": spec.sequence_len,
        "spec": spec.model_dump(mode="json"),
        "tokenizer": {"path": str(spec.tokenizer), "sha256": sha256(spec.tokenizer / "tokenizer.json")},
        "template": {"sha256": sha256(spec.tokenizer / "chat_template.jinja")},
        "versions": {"hermes3": hermes3.__version__, "python": platform.python_version()} | packages,
        "lock": lock,
        "sources": [
            {
                "name": source.name,
                "category": category,
                **{"path": source.path, "repo": source.repo, "revision": files[source.name][0].revision},
                **{"licence": source.licence, "rank": source.rank},
                "files": hashes[source.name],
                **{f"rows_{what}": counts.get(source.name, {}).get(what, 0) for what in ("read", "not_selected")},
                **columns.record(counts.get(source.name, {})),
                "rows_kept": by_source.get(source.name, NOTHING)["rows"],
                **{key: by_source.get(source.name, NOTHING)[key] for key in ("tokens", "loss_tokens")},
                "rejects": dict(sorted(reasons.get(source.name, {}).items())),
            }
            for category, source in spec.sources()
        ],
        "categories": {
            name: {**by_category.get(name, NOTHING), "budget": budgets.get(name)}
            for name in dict.fromkeys([*spec.categories, *sorted(by_category)])
        },
        "total": {key: sum(part[key] for part in by_category.values()) for key in NOTHING},
        "rejects": dict(sorted(sum((Counter(part) for part in reasons.values()), Counter()).items())),
        "shortfalls": choice.shortfalls,
        "unmet_weights": choice.unmet_weights,
        "repeated_rows": int((choice.uses > 0).sum()),
        **searched,
        "output": output,
    }


def prepared_folder(manifest: Manifest) -> str:
    """The folder of a mix that holds what Axolotl prepared from it, named by what the mix holds."""
    return f"prepared-{manifest['output']['sha256'][:12]}"


def totals(rows: "pa.Table", column: str) -> dict[str, dict[str, int]]:
    """{value of `column`: rows, tokens, loss_tokens} of a table with n_tokens and n_loss_tokens."""
    sums = rows.group_by(column).aggregate([("n_tokens", "count"), ("n_tokens", "sum"), ("n_loss_tokens", "sum")])
    columns = ("n_tokens_count", "n_tokens_sum", "n_loss_tokens_sum")
    return {row[column]: dict(zip(NOTHING, map(row.get, columns), strict=True)) for row in sums.to_pylist()}


def composition(manifest: Manifest) -> list[dict[str, Any]]:
    """Categories in the order of the paper's table: counts, `share` of the tokens, `loss_share` of its own tokens.

    Shares are fractions. An SFT mix shows all eight, since one that it lacks is a finding; a preference mix, which the
    paper does not break down, shows its own, and their `paper_share` is None.
    """
    is_sft, counts = manifest["kind"] == "sft", manifest["categories"]
    keys = [key for key in CATEGORIES if is_sft or key in counts] + sorted(counts.keys() - CATEGORIES.keys())
    rows = []
    for key in keys:
        label, percent = CATEGORIES.get(key, (key, None))
        row = {"key": key, "label": label, **NOTHING, "budget": None, **counts.get(key, {})}
        row["share"] = row["tokens"] / manifest["total"]["tokens"]
        row["loss_share"] = row["loss_tokens"] / row["tokens"] if row["tokens"] else 0.0
        row["paper_share"] = percent / 100 if percent is not None and is_sft else None
        row["shortfall"] = manifest.get("shortfalls", {}).get(key)
        rows.append(row)
    return rows
