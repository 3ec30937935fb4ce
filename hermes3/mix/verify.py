"""Re-checking a built mix: that its files are those of its manifest, and that they say what the manifest says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from hermes3.chat.render import IGNORE, Renderer
from hermes3.files import sha256
from hermes3.mix.manifest import prepared_folder
from hermes3.mix.write import output_hash

SAMPLE = 2_000  # rows rendered anew; they lie in drawn order, so the first ones are a random sample


def verify(mix: Path, every_row: bool = False) -> list[str]:
    """What is wrong with the mix in the folder `mix`; [] if nothing is. `ValueError` if it is not a mix at all.

    Checked: the hash of every file; train/ and rows/ row for row in length and loss; sums, budgets and sequence
    length; that no row stands twice unless it is a declared repeat; the tokenizer and template; and for a sample (or
    every row) that the conversation renders to exactly the ids and labels that train.
    """
    if not (mix / "manifest.json").is_file():
        raise ValueError(f"{mix}: no manifest.json; a mix is a folder made by `hermes3 mix build`")
    manifest = json.loads((mix / "manifest.json").read_text(encoding="utf-8"))
    return [*_files(mix, manifest), *_rows(mix, manifest), *_rendered(mix, manifest, every_row)]


def _files(mix: Path, manifest: dict[str, Any]) -> Iterator[str]:
    said, found = manifest["output"], output_hash(mix)
    for name in sorted(said["files"].keys() | found["files"].keys()):
        if said["files"].get(name) != found["files"].get(name):
            yield f"{name}: its hash is {found['files'].get(name)}, the manifest says {said['files'].get(name)}"
    if (mix / "prepared").resolve().name != prepared_folder(manifest):
        yield "prepared: does not lead to the folder of this output; build the mix again"


def _rows(mix: Path, manifest: dict[str, Any]) -> Iterator[str]:
    columns = ["category", "n_tokens", "n_loss_tokens", "hash"]
    rows = ds.dataset(mix / "rows").to_table(columns=columns)
    n_tokens, n_loss = rows["n_tokens"].to_numpy(), rows["n_loss_tokens"].to_numpy()
    total = {"rows": len(rows), "tokens": int(n_tokens.sum()), "loss_tokens": int(n_loss.sum())}
    if total != manifest["total"]:
        yield f"rows: hold {total}, the manifest says {manifest['total']}"
    if manifest["kind"] == "sft":
        at = 0
        for path in sorted((mix / "train").glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(5_000, columns=["input_ids", "labels"]):
                labels = batch.column("labels")
                lengths = np.diff(labels.offsets.to_numpy())
                bears = np.append(0, np.cumsum(labels.flatten().to_numpy() != IGNORE))
                starts = np.append(0, np.cumsum(lengths))
                part = slice(at, at + len(batch))
                if not np.array_equal(lengths, n_tokens[part]):
                    yield f"{path.name}: row lengths differ between train and rows"
                if not np.array_equal(np.diff(bears[starts]), n_loss[part]):
                    yield f"{path.name}: loss tokens differ between train and rows"
                at += len(batch)
        if at != len(rows):
            yield f"train: {at} rows, rows: {len(rows)}"
        if len(n_tokens) and n_tokens.max() > manifest["sequence_len"]:
            yield f"rows: {n_tokens.max()} tokens in a row, sequence_len is {manifest['sequence_len']}"
    again = len(rows) - len(rows["hash"].combine_chunks().unique())
    if again != manifest["repeated_rows"]:
        yield f"rows: {again} stand more than once, the manifest says {manifest['repeated_rows']}"
    category_of = rows["category"].to_numpy()
    for name, said in manifest["categories"].items():
        have = int(n_tokens[category_of == name].sum())
        if said["budget"] and name not in manifest["shortfalls"] and abs(have - said["budget"]) > n_tokens.max():
            yield f"{name}: {have:,} tokens, budget {said['budget']:,}: further off than one conversation"


def _rendered(mix: Path, manifest: dict[str, Any], every_row: bool) -> Iterator[str]:
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
    trains = (batch for path in sorted((mix / "train").glob("*.parquet")) for batch in _batches(path))
    people = (batch for path in sorted((mix / "rows").glob("*.parquet")) for batch in _batches(path))
    for train, rows in zip(trains, people, strict=True):
        if len(train["input_ids"]) != len(rows["id"]):
            return  # said above
        said = [(json.loads(m), json.loads(t)) for m, t in zip(rows["messages"], rows["tools"], strict=True)]
        for i, tokens in enumerate(renderer.render(said)):
            if tokens.input_ids.tolist() != train["input_ids"][i] or tokens.labels.tolist() != train["labels"][i]:
                yield f"row {rows['id'][i]}: does not render to the ids and labels that train"
        seen += len(said)
        if seen >= SAMPLE and not every_row:
            return


def _batches(path: Path) -> Iterator[dict[str, list[Any]]]:
    for batch in pq.ParquetFile(path).iter_batches(500):
        yield batch.to_pydict()
