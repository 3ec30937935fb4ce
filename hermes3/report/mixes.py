"""Reading a mix's manifest.json: composition beside the paper's Table 1, sources, and what was rejected."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import sha256
from hermes3.mix.categories import CATEGORIES


def read_mix(folder: Path) -> dict[str, Any]:
    """The manifest of the mix in `folder`, its categories in Table 1's order with their share of the tokens.

    `share` and `paper_share` are fractions; `paper_share` is None for a preference mix, which the paper does not break
    down, and for a category of our own. Raises ValueError naming the file when it is missing or holds no tokens.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; build the mix first")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    total = manifest["total"]
    if not total["tokens"]:
        raise ValueError(f"{path}: the mix holds no tokens; see its rejects")
    rejects = [(*key.partition("/")[::2], count) for key, count in manifest["rejects"].items()]
    return {
        "folder": str(folder),
        **{key: manifest[key] for key in ("name", "kind", "seed", "sequence_len", "tokenizer", "versions", "sources")},
        "manifest_sha256": sha256(path),
        "output_sha256": manifest["output"]["sha256"],
        "categories": _categories(manifest),
        "total": total,
        "rejects": [{"stage": stage, "reason": reason, "count": count} for stage, reason, count in rejects],
    }


def _categories(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    counts = manifest["categories"]
    # A category of Table 1 that an SFT mix lacks is shown as 0, not left out.
    missing = list(CATEGORIES) if manifest["kind"] == "sft" else []
    order = list(CATEGORIES)
    keys = sorted({*counts, *missing}, key=lambda key: (order.index(key) if key in order else len(order), key))
    rows = []
    for key in keys:
        label, percent = CATEGORIES.get(key, (key, None))
        count = counts.get(key, {"rows": 0, "tokens": 0, "loss_tokens": 0})
        paper_share = percent / 100 if percent is not None and manifest["kind"] == "sft" else None
        share = count["tokens"] / manifest["total"]["tokens"]
        rows.append({"key": key, "label": label, **count, "share": share, "paper_share": paper_share})
    return rows
