"""What differs between two built mixes: settings, sources, and rows by what they say.

Rows are matched by their hash. One that a mix uses several times is matched as often: two uses against three are two in
both and one in the other alone. Number and key columns are held in memory, about 300 bytes a row of both mixes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hermes3.mix.card import parquet, totals

COLUMNS = ["id", "source", "category", "n_tokens", "n_loss_tokens", "hash"]
GROUPS = ("category", "source")
SETTINGS = ("spec", "tokenizer", "template", "versions")
Counts = dict[str, dict[str, int]]


def diff(a: Path, b: Path) -> dict[str, Any]:
    """Differences from the mix in folder `a` to the one in `b`, as JSON-able data. `ValueError` names a missing file.

    `rows` is {"category" or "source": {its name: {"only_a", "only_b", "both": {rows, tokens, loss_tokens}}}}; a row in
    both is counted where, and with the tokens that, `b` has it. `why` says what became of the rows of one in the other.
    """
    manifests = [_manifest(folder) for folder in (a, b)]
    rows = [parquet(folder / "rows").to_table(columns=COLUMNS) for folder in (a, b)]
    shared = _shared(rows[0]["hash"], rows[1]["hash"])
    only = [table.filter(pa.array(~mask)) for table, mask in zip(rows, shared, strict=True)]
    parts = {"only_a": only[0], "only_b": only[1], "both": rows[1].filter(pa.array(shared[1]))}
    return {
        "a": _identity(manifests[0]),
        "b": _identity(manifests[1]),
        "settings": _settings(*manifests),
        "sources": _sources(*manifests),
        "moved": _moved(rows[0], parts["both"]),
        "rows": {key: _by_group({name: totals(part, key) for name, part in parts.items()}) for key in GROUPS},
        "tokens": {
            name: [manifest["categories"].get(name, {}).get("tokens", 0) for manifest in manifests]
            for name in dict.fromkeys([*manifests[0]["categories"], *manifests[1]["categories"]])
        },
        "why": {"only_a": _fate(only[0], b, rows[1], manifests[1]), "only_b": _fate(only[1], a, rows[0], manifests[0])},
    }


def as_text(found: dict[str, Any]) -> str:
    """The result of `diff` for the terminal."""
    a, b = found["a"], found["b"]
    lines = [f"a  {_line(a)}", f"b  {_line(b)}"]
    if a["sha256"] == b["sha256"]:
        lines += ["", "The two outputs are the same, byte for byte."]
    lines += _section(
        "Settings, a -> b", [f"{key}: {_show(x)} -> {_show(y)}" for key, (x, y) in found["settings"].items()]
    )
    lines += _section("Sources, a -> b", [f"{name}: {what}" for name, what in found["sources"].items()])
    for key in GROUPS:
        table = [(key, "only in a", "tokens", "only in b", "tokens", "in both", "tokens")]
        table += [
            (name, *(f"{part[side][n]:,}" for side in ("only_a", "only_b", "both") for n in ("rows", "tokens")))
            for name, part in found["rows"][key].items()
        ]
        lines += _section(f"Rows by {key}", _columns(table))
    lines += _section("Rows in both, in another category", [f"{n:,} from {what}" for what, n in found["moved"].items()])
    table = [("category", "a", "b", "change")]
    table += [(name, f"{x:,}", f"{y:,}", f"{y - x:+,}") for name, (x, y) in found["tokens"].items()]
    lines += _section("Tokens", _columns(table))
    for side, other in (("a", "b"), ("b", "a")):
        why = found["why"][f"only_{side}"]
        table = [(reason, f"{n:,}") for reason, n in sorted(why.items(), key=lambda pair: (-pair[1], pair[0]))]
        lines += _section(f"Rows of {side} alone: what became of them in {other}", _columns(table))
    return "\n".join(lines) + "\n"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the folder of a built mix")
    return json.loads(path.read_text(encoding="utf-8"))


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"name": manifest["name"], "sha256": manifest["output"]["sha256"], **manifest["total"]}


def _shared(a: pa.ChunkedArray, b: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `a` and of `b` (two bool[n_rows]) have a partner in the other: the same hash, used as often."""
    codes = pa.chunked_array([*a.chunks, *b.chunks], a.type).combine_chunks().dictionary_encode().indices.to_numpy()
    sides = codes[: len(a)], codes[len(a) :]
    n = int(codes.max(initial=-1)) + 1
    common = np.minimum(*(np.bincount(side, minlength=n) for side in sides))
    return tuple(_use(side) < common[side] for side in sides)


def _use(codes: np.ndarray) -> np.ndarray:
    """How often each entry's code stood before it, int64[n]."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered)
    use = np.empty(len(codes), np.int64)
    use[order] = np.arange(len(codes)) - first
    return use


def _moved(a: pa.Table, both: pa.Table) -> dict[str, int]:
    """{"category in a to category in b": rows} of rows that both have and sort differently."""
    before = a["category"].take(pc.index_in(both["hash"], value_set=a["hash"].combine_chunks()))
    pairs = pa.table({"a": before, "b": both["category"]})
    moved = pairs.filter(pc.not_equal(pairs["a"], pairs["b"])).group_by(["a", "b"]).aggregate([([], "count_all")])
    return {
        f"{one['a']} to {one['b']}": one["count_all"]
        for one in moved.sort_by([("a", "ascending"), ("b", "ascending")]).to_pylist()
    }


def _by_group(parts: dict[str, Counts]) -> dict[str, Counts]:
    nothing = {"rows": 0, "tokens": 0, "loss_tokens": 0}
    names = sorted({name for part in parts.values() for name in part})
    return {name: {side: part.get(name, nothing) for side, part in parts.items()} for name in names}


def _settings(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """{dotted key: [value in a, value in b]} of settings that differ; None where there is none."""
    flat = [dict(_flat({key: manifest[key] for key in SETTINGS})) for manifest in (a, b)]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return {key: [one.get(key) for one in flat] for key in keys if flat[0].get(key) != flat[1].get(key)}


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Leaves with their dotted keys; entries of a list go by their `name`, so that their order says nothing."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        value = {one["name"]: one for one in value}
    if not isinstance(value, dict) or not value:
        return [(key, value)]
    return [leaf for name, one in value.items() for leaf in _flat(one, f"{key}.{name}" if key else name)]


def _sources(a: dict[str, Any], b: dict[str, Any]) -> dict[str, str]:
    """{source: added, removed, or what changed in the files that it was read from}."""
    before, after = ({source["name"]: source for source in manifest["sources"]} for manifest in (a, b))
    out = {}
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            there = after.get(name) or before[name]
            out[name] = f"{'added' if name in after else 'removed'}, {there['rows_read']:,} rows read"
        elif before[name]["files"] != after[name]["files"]:
            files = [set(source[name]["files"].items()) for source in (before, after)]
            changed = sorted({file for file, _ in files[0] ^ files[1]})
            reads = [f"{source[name]['rows_read']:,}" for source in (before, after)]
            out[name] = f"changed, {reads[0]} -> {reads[1]} rows read: {', '.join(changed)}"
    return out


def _fate(rows: pa.Table, other: Path, other_rows: pa.Table, manifest: dict[str, Any]) -> dict[str, int]:
    """{what became of `rows` in the mix `other`: rows}, looked up by source and id."""
    if not len(rows):
        return {}
    rejects = parquet(other / "rejects").to_table(columns=["id", "source", "stage", "reason"])
    keys = _keys(rows)
    read = pc.is_in(rows["source"], value_set=pa.array([source["name"] for source in manifest["sources"]], pa.string()))
    place = pc.index_in(keys, value_set=_keys(rejects))
    fate = pc.case_when(
        pc.make_struct(
            pc.invert(read),
            pc.is_in(rows["hash"], value_set=other_rows["hash"].combine_chunks()),
            pc.is_valid(place),
            pc.is_in(keys, value_set=_keys(other_rows)),
        ),
        "its source is not read",
        "used less often",
        pc.binary_join_element_wise(rejects["stage"], rejects["reason"], "/").take(place),
        "kept under the same id with other words",
        "no trace: its source holds other rows",
    )
    return {one["values"]: one["counts"] for one in pc.value_counts(fate.combine_chunks()).to_pylist()}


def _keys(table: pa.Table) -> pa.Array:
    """Source and id; a row's further uses have the id of the first one, which write.py marks as `id#2`."""
    first = pc.replace_substring_regex(table["id"], r"#\d+$", "")
    return pc.binary_join_element_wise(table["source"], first, "\x00").combine_chunks()


def _line(mix: dict[str, Any]) -> str:
    return f"{mix['name']}: {mix['rows']:,} rows, {mix['tokens']:,} tokens, output {mix['sha256'][:12]}"


def _show(value: Any) -> str:
    text = "(unset)" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text  # a hash


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines or ["none"])]


def _columns(table: list[tuple[str, ...]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
