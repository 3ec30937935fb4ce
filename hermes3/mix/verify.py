"""Checking a built mix again: its files against its manifest, and its rows against what trains."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hermes3.chat.render import IGNORE, Renderer
from hermes3.files import sha256
from hermes3.mix import manifest as manifests
from hermes3.mix.write import output_hash

SAMPLE = 2_000  # rows rendered anew; they lie in drawn order, so the first ones are a random sample


def verify(mix: Path, every_row: bool = False) -> list[str]:
    """What is wrong with the mix in the folder `mix`; [] if nothing is. `UserError` if it is not a mix at all.

    Checked: the hash of every file; train/ and rows/ row for row in length and loss; sums, budgets and sequence
    length; that no row stands twice unless it is a declared repeat; the tokenizer and template; and for a sample (or
    every row) that the conversation renders to exactly the ids and labels that train.
    """
    manifest = manifests.read(mix)
    return [*_files(mix, manifest), *_rows(mix, manifest), *_rendered(mix, manifest, every_row)]


def _files(mix: Path, manifest: manifests.Manifest) -> Iterator[str]:
    expected, actual = manifest["output"]["files"], output_hash(mix)["files"]
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            yield f"{name}: its hash is {actual.get(name)}, the manifest says {expected.get(name)}"
    if (mix / "prepared").resolve().name != manifests.prepared_folder(manifest):
        yield "prepared: does not lead to the folder of this output; build the mix again"


def _rows(mix: Path, manifest: manifests.Manifest) -> Iterator[str]:
    rows = pq.read_table(mix / "rows", columns=["category", "n_tokens", "n_loss_tokens", "hash"])
    n_tokens, n_loss = rows["n_tokens"].to_numpy(), rows["n_loss_tokens"].to_numpy()
    total = {"rows": len(rows), "tokens": int(n_tokens.sum()), "loss_tokens": int(n_loss.sum())}
    if total != manifest["total"]:
        yield f"rows: hold {total}, the manifest says {manifest['total']}"
    if manifest["kind"] == "sft":
        yield from _trained(mix, n_tokens, n_loss)
        if len(n_tokens) and n_tokens.max() > manifest["sequence_len"]:
            yield f"rows: {n_tokens.max()} tokens in a row, sequence_len is {manifest['sequence_len']}"
    repeated = len(rows) - len(rows["hash"].combine_chunks().unique())
    if repeated != manifest["repeated_rows"]:
        yield f"rows: {repeated} stand more than once, the manifest says {manifest['repeated_rows']}"
    by_category = manifests.totals(rows, "category")
    for name, category in manifest["categories"].items():
        tokens, budget = by_category.get(name, manifests.NOTHING)["tokens"], category["budget"]
        if budget and name not in manifest["shortfalls"] and abs(tokens - budget) > n_tokens.max():
            yield f"{name}: {tokens:,} tokens, budget {budget:,}: further off than one conversation"


def _trained(mix: Path, n_tokens: np.ndarray, n_loss: np.ndarray) -> Iterator[str]:
    """Whether the rows of train/ have the lengths and the loss tokens of those of rows/."""
    lengths, loss = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path in sorted((mix / "train").glob("*.parquet")):
        labels = pq.read_table(path, columns=["labels"])["labels"].combine_chunks()
        offsets = labels.offsets.to_numpy()
        lengths.append(np.diff(offsets))
        loss.append(np.diff(np.append(0, np.cumsum(labels.values.to_numpy() != IGNORE))[offsets]))
    for what, ours, theirs in (("row lengths", lengths, n_tokens), ("loss tokens", loss, n_loss)):
        if not np.array_equal(np.concatenate(ours), theirs):
            yield f"train: its {what} are not those of rows"


def _rendered(mix: Path, manifest: manifests.Manifest, every_row: bool) -> Iterator[str]:
    folder = Path(manifest["tokenizer"]["path"])
    if not (folder / "tokenizer.json").is_file():
        yield f"tokenizer: {folder} is not here, so nothing was rendered anew"
        return
    for name, key in (("tokenizer.json", "tokenizer"), ("chat_template.jinja", "template")):
        if sha256(folder / name) != manifest[key]["sha256"]:
            yield f"{folder / name}: is not the one that the mix was built with"
            return
    if manifest["kind"] != "sft":
        return
    renderer, seen = Renderer(folder), 0
    for train, rows in zip(manifests.batches(mix / "train"), manifests.batches(mix / "rows"), strict=False):
        if len(train) != len(rows):
            return  # reported above
        tokens = renderer.render([(json.loads(row["messages"]), json.loads(row["tools"])) for row in rows])
        for row, trained, rendered in zip(rows, train, tokens, strict=True):
            if (rendered.input_ids.tolist(), rendered.labels.tolist()) != (trained["input_ids"], trained["labels"]):
                yield f"row {row['id']}: does not render to the ids and labels that train"
        seen += len(rows)
        if seen >= SAMPLE and not every_row:
            return
