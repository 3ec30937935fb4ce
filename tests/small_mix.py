"""A mix of a few short rows, and a recipe that trains on it: small enough to load in a second."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hermes3.mix.manifest import prepared_folder
from hermes3.recipe.read import read

ROOT = Path(__file__).parents[1]
SEQUENCE_LEN = 64
IGNORE = -100


def write_counts(mix: Path, lengths: list[int], n_loss: list[int], kind: str = "sft") -> Path:
    """What the preview reads of a mix, in two files as Axolotl's loading must keep their order."""
    (mix / "rows").mkdir(parents=True)
    for part, rows in enumerate((slice(0, len(lengths) // 3), slice(len(lengths) // 3, None))):
        table = pa.table({"n_tokens": lengths[rows], "n_loss_tokens": n_loss[rows]})
        pq.write_table(table, mix / f"rows/part-{part:05d}.parquet")
    write_manifest(mix, kind, "")
    return mix


def write_manifest(mix: Path, kind: str, digest: str) -> dict:
    """Every key that readers of a manifest ask for, of a mix that no build made."""
    manifest = {"name": "small", "kind": kind, "sequence_len": SEQUENCE_LEN, "sources": {}, "categories": {}}
    manifest |= {"rejects": {}, "total": {"tokens": 0}, "output": {"sha256": digest}}
    (mix / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def write_mix(mix: Path, lengths: list[int], digest: str = "0123456789abcdef") -> Path:
    """The parts of a mix that training, the preview and the guard read: random tokens, a third without loss."""
    rng, rows = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        ids = [10 + number, *rng.integers(100, 3000, length - 1).tolist()]  # a row is known by its first token
        labels = [IGNORE] * (length // 3) + ids[length // 3 :]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    write_counts(mix, lengths, [length - length // 3 for length in lengths])
    (mix / "train").mkdir()
    for part, some in enumerate((rows[: len(rows) // 3], rows[len(rows) // 3 :])):
        pq.write_table(pa.Table.from_pylist(some), mix / f"train/part-{part:05d}.parquet")
    manifest = write_manifest(mix, "sft", digest)
    (mix / prepared_folder(manifest)).mkdir()
    (mix / "prepared").symlink_to(prepared_folder(manifest))
    return mix


def write_recipe(folder: Path, mix: Path, base: Path, **changes) -> Path:
    """The demo's recipe on a mix of short rows, with other values. None: without the key."""
    recipe = {key: value for key, value in read(ROOT / "recipes/tiny_sft.yml").items() if "wandb" not in key}
    recipe |= {"base_model": str(base), "output_dir": str(folder / "out"), "dataset_prepared_path": f"{mix}/prepared"}
    recipe |= {"sequence_len": SEQUENCE_LEN, "num_epochs": 3, "save_strategy": "no", **changes}
    recipe["datasets"][0]["path"] = str(mix / "train")
    folder.mkdir(exist_ok=True)
    recipe = {key: value for key, value in recipe.items() if value is not None}
    (folder / "tiny_sft.yml").write_text(yaml.safe_dump(recipe))
    return folder / "tiny_sft.yml"
