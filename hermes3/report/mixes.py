"""Reading a mix's manifest.json: composition beside the paper's Table 1, sources, and what was rejected."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import sha256
from hermes3.mix.manifest import composition


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
        "categories": composition(manifest),
        "total": total,
        "rejects": [{"stage": stage, "reason": reason, "count": count} for stage, reason, count in rejects],
    }
