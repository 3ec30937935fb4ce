"""The record of a mix: what went in, came out and was left out, and the hashes that let anyone rebuild it. Hosts
without pyarrow read manifests, so nothing here imports it."""

import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hermes3
from hermes3.files import UserError, read_json, sha256
from hermes3.mix import columns
from hermes3.mix.spec import CATEGORIES, Spec

PACKAGES = ("tokenizers", "gigatoken", "pyarrow", "numpy", "rensa", "orjson")
NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}
# keys without which nothing can be said of a mix
NEEDED = ("name", "kind", "sequence_len", "sources", "categories", "rejects", "total.tokens", "output.sha256")
Manifest = dict[str, Any]


def read(mix: Path) -> Manifest:
    """The manifest of the mix in the folder `mix`. `UserError` if it is no mix."""
    if not (mix / "manifest.json").is_file():
        raise UserError(f"{mix}: no manifest.json; a mix is a folder made by `hermes3 mix build`")
    return read_json(mix / "manifest.json", *NEEDED)


def batches(folder: Path, columns: list[str] | None = None, size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """The rows of the parquet files in `folder`, in order, few of them in memory at a time."""
    import pyarrow.parquet as pq

    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            yield from (batch.to_pylist() for batch in parquet.iter_batches(size, columns=columns))


def make(
    spec: Spec,
    files: dict[str, list[Any]],
    hashes: dict[str, dict[str, str]],
    lock: dict[str, Any] | None,
    counts: dict[str, Counter[str]],
    searched: dict[str, Any],
    mix: Path,
    choice: Any,
    rejects: Any,
    output: dict[str, Any],
) -> Manifest:
    """`files`: {source: `read.File`s}; `hashes`: {source: {file: SHA-256}}; `counts`: {source: {"read": n, ...}};
    `mix`: the folder of the rows; `choice`: `choose.Choice`; `rejects`: Arrow table; `output`: hashes of the files."""
    by_source, by_category = totals(mix, "source"), totals(mix, "category")
    lost: dict[str, Counter[str]] = {source.name: Counter() for _, source in spec.sources()}
    for row in rejects.group_by(["source", "stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
        lost[row["source"]][f"{row['stage']}/{row['reason']}"] = row["count_all"]
    sources = []
    for category, source in spec.sources():
        seen, taken = counts.get(source.name, Counter()), by_source.get(source.name, NOTHING)
        one = source.model_dump(include={"name", "path", "repo", "licence", "rank"}) | {"category": category}
        one |= {"revision": files[source.name][0].revision, "files": hashes[source.name]}
        one |= {"rows_read": seen["read"], "rows_not_selected": seen["not_selected"], **columns.record(seen)}
        one |= {"rows_kept": taken["rows"], "tokens": taken["tokens"], "loss_tokens": taken["loss_tokens"]}
        sources.append(one | {"rejects": dict(sorted(lost[source.name].items()))})
    names, budgets = dict.fromkeys([*spec.categories, *sorted(by_category)]), spec.budgets()
    versions = {"hermes3": hermes3.__version__, "python": platform.python_version()}
    return {
        **spec.model_dump(include={"name", "kind", "seed", "sequence_len"}),
        "spec": spec.model_dump(mode="json"),
        "tokenizer": {"path": str(spec.tokenizer), "sha256": sha256(spec.tokenizer / "tokenizer.json")},
        "template": {"sha256": sha256(spec.tokenizer / "chat_template.jinja")},
        "versions": versions | {name: version(name) for name in PACKAGES},
        "lock": lock,
        "sources": sources,
        "categories": {name: by_category.get(name, NOTHING) | {"budget": budgets.get(name)} for name in names},
        "total": {key: sum(part[key] for part in by_category.values()) for key in NOTHING},
        "rejects": dict(sorted(sum(lost.values(), Counter()).items())),
        "shortfalls": choice.shortfalls,
        "unmet_weights": choice.unmet_weights,
        "repeated_rows": int((choice.uses > 0).sum()),
        **searched,
        "output": output,
    }


def prepared_folder(manifest: Manifest) -> str:
    """The folder of a mix that holds what Axolotl prepared from it, named by what the mix holds."""
    return f"prepared-{manifest['output']['sha256'][:12]}"


def totals(mix: Path, column: str) -> dict[str, dict[str, int]]:
    """{value of `column`: rows, tokens, loss_tokens} of the mix in the folder `mix`."""
    import pyarrow.parquet as pq

    rows = pq.read_table(mix / "rows", columns=[column, "n_tokens", "n_loss_tokens"], read_dictionary=[column])
    rows = rows.unify_dictionaries().group_by(column)
    sums = rows.aggregate([([], "count_all"), ("n_tokens", "sum"), ("n_loss_tokens", "sum")])
    return {key: dict(zip(NOTHING, values, strict=True)) for key, *values in map(dict.values, sums.to_pylist())}


def composition(manifest: Manifest) -> list[dict[str, Any]]:
    """Categories in the paper's order: counts, `share` of the tokens, `loss_share` of its own tokens. An SFT mix of the
    paper's categories shows all eight; any other those that it has."""
    is_sft, counts = manifest["kind"] == "sft", manifest["categories"]
    rows, own = [], sorted(counts.keys() - CATEGORIES.keys())
    for key in [*(key for key in CATEGORIES if key in counts or (is_sft and not own)), *own]:
        label, percent = CATEGORIES.get(key, (key, None))
        row = {"key": key, "label": label, **NOTHING, "budget": None, **counts.get(key, {})}
        row["share"] = row["tokens"] / manifest["total"]["tokens"]
        row["loss_share"] = row["loss_tokens"] / row["tokens"] if row["tokens"] else 0.0
        row["paper_share"] = percent / 100 if is_sft and percent else None
        rows.append(row | {"shortfall": manifest.get("shortfalls", {}).get(key)})
    return rows
