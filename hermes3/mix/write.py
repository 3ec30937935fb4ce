"""Writing a mix: parquet files, the manifest that lets anyone rebuild it, and a card to read."""

import hashlib
import json
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import hermes3
from hermes3.chat.prompts import to_json
from hermes3.files import sha256
from hermes3.mix.adapters import Row
from hermes3.mix.categories import NAMES
from hermes3.mix.spec import Spec

ROWS_A_FILE = 50_000


def mix(
    out: Path,
    spec: Spec,
    files: dict[str, Path],
    rows: list[Row],
    rejects: list[Row],
    counts: dict[str, int],
    shortfalls: dict[str, str],
) -> dict[str, Any]:
    """Write every file of the mix into the folder `out`; return the manifest."""
    _parquet(out / "train", [_train_columns(row) for row in rows], _train_schema(spec.kind))
    _parquet(out / "rows", [_row_columns(row) for row in rows], None)
    rejects = sorted(rejects, key=lambda r: (r["source"], r["id"], r["stage"]))
    _parquet(
        out / "rejects", rejects, pa.schema([(k, pa.string()) for k in ("id", "source", "stage", "reason", "detail")])
    )
    written = {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*.parquet"))}
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
            **{name: version(name) for name in ("tokenizers", "transformers", "pyarrow")},
        },
        "sources": [
            {
                "name": source.name,
                "category": category,
                "path": str(source.path),
                "licence": source.licence,
                "sha256": sha256(files[source.name]),
                "rows_read": counts[source.name],
                "rows_kept": sum(row["source"] == source.name for row in rows),
            }
            for category, source in spec.sources()
        ],
        "categories": {name: _total([r for r in rows if r["category"] == name]) for name in spec.categories},
        "total": _total(rows),
        "rejects": dict(sorted(Counter(f"{r['stage']}/{r['reason']}" for r in rejects).items())),
        "shortfalls": shortfalls,
        "output": {"sha256": hashlib.sha256(to_json(written).encode()).hexdigest(), "files": written},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "card.md").write_text(card(manifest), encoding="utf-8")
    return manifest


def card(manifest: dict[str, Any]) -> str:
    """The mix as a page of Markdown."""
    total = manifest["total"]
    lines = [
        f"# {manifest['name']}",
        "",
        f"{total['rows']:,} rows, {total['tokens']:,} tokens as trained, {total['loss_tokens']:,} of them bear loss "
        f"({total['loss_tokens'] / total['tokens']:.0%}). Output {manifest['output']['sha256'][:12]}, "
        f"seed {manifest['seed']}.",
        "",
        "| category | rows | tokens | share | bear loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, part in manifest["categories"].items():
        share = part["tokens"] / total["tokens"]
        bears = part["loss_tokens"] / part["tokens"] if part["tokens"] else 0
        lines.append(f"| {NAMES[name]} | {part['rows']:,} | {part['tokens']:,} | {share:.1%} | {bears:.0%} |")
    lines += ["", "| source | licence | read | kept |", "|---|---|---:|---:|"]
    lines += [
        f"| {s['name']} | {s['licence']} | {s['rows_read']:,} | {s['rows_kept']:,} |" for s in manifest["sources"]
    ]
    lines += ["", "| left out | rows |", "|---|---:|"]
    lines += [f"| {reason} | {n:,} |" for reason, n in manifest["rejects"].items()] or ["| nothing | 0 |"]
    lines += [f"\n{NAMES[name]}: {text}" for name, text in manifest["shortfalls"].items()]
    return "\n".join(lines) + "\n"


def _total(rows: list[Row]) -> dict[str, int]:
    tokens, loss = (sum(row[key] for row in rows) for key in ("n_tokens", "n_loss_tokens"))
    return {"rows": len(rows), "tokens": tokens, "loss_tokens": loss}


def _train_schema(kind: str) -> pa.Schema:
    # a fourth column would break Axolotl's packing collator
    if kind == "sft":
        return pa.schema(
            [
                ("input_ids", pa.list_(pa.int32())),
                ("attention_mask", pa.list_(pa.int8())),
                ("labels", pa.list_(pa.int32())),
            ]
        )
    return pa.schema([(key, pa.string()) for key in ("prompt", "chosen", "rejected")])


def _train_columns(row: Row) -> Row:
    if "text" in row:
        return row["text"]
    tokens = row["tokens"]
    return {"input_ids": tokens.input_ids, "attention_mask": [1] * row["n_tokens"], "labels": tokens.labels}


def _row_columns(row: Row) -> Row:
    said = {key: to_json(row[key]) for key in ("messages", "tools", "chosen", "rejected") if key in row}
    return {key: row[key] for key in ("id", "source", "category", "n_tokens", "n_loss_tokens", "hash")} | said


def _parquet(folder: Path, rows: list[Row], schema: pa.Schema | None) -> None:
    folder.mkdir()
    for part, start in enumerate(range(0, max(len(rows), 1), ROWS_A_FILE)):
        table = pa.Table.from_pylist(rows[start : start + ROWS_A_FILE], schema=schema)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="zstd")
