"""Writing the chosen rows: parts of train/, which Axolotl reads, and of rows/, for people, each made by one worker."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from hermes3.chat.render import IGNORE
from hermes3.files import sha256
from hermes3.mix.shard import SIDES, open_shard

# of the files that train; a fourth column would break Axolotl's packing collator
TRAIN = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("attention_mask", pa.list_(pa.int8())), ("labels", pa.list_(pa.int32()))]
)


def part(out: Path, number: int, shards: list[Path], rows: np.ndarray, uses: np.ndarray) -> None:
    """Write part `number` of train/ and rows/: `rows` are numbers over all shards."""
    table = _opened(tuple(shards)).take(rows)
    # for people; a row that is used again has the number of its use after its id
    ids = [f"{i}#{use + 1}" if use else i for i, use in zip(table["id"].to_pylist(), uses.tolist(), strict=True)]
    changed = {"id": ids, "hash": [value.hex() for value in table["hash"].to_pylist()]}
    names = ["id", "source", "category", "hash", "n_tokens", "n_loss_tokens", "n_turns", "messages", "tools", *SIDES]
    columns = {name: changed.get(name, table[name]) for name in names if name in table.column_names}
    for folder, rows_of in (("train", _train(table)), ("rows", pa.table(columns))):
        parquet([rows_of], rows_of.schema, out / f"{folder}/part-{number:05d}.parquet")


@lru_cache(1)  # every part has rows of every shard: a worker maps each once
def _opened(shards: tuple[Path, ...]) -> ds.Dataset:
    table = pa.concat_tables(map(open_shard, shards))
    written = [name for name in table.column_names if name not in ("words", "signature")]
    return ds.dataset(table.select(written))  # a table's own `take` copies all first


def _train(table: pa.Table) -> pa.Table:
    if "prompt_text" in table.column_names:
        return pa.table({"prompt": table["prompt_text"], **{side: table[f"{side}_text"] for side in SIDES}})
    ids, loss = table["input_ids"].combine_chunks(), table["loss"].combine_chunks()
    tokens, bears_loss = ids.flatten().to_numpy(), loss.flatten().to_numpy(zero_copy_only=False)
    labels = np.where(bears_loss, tokens, np.int32(IGNORE))
    offsets = pa.array(np.append(0, np.cumsum(pc.list_value_length(ids).to_numpy())).astype(np.int32))
    values = (tokens, np.ones(len(tokens), np.int8), labels)
    return pa.table([pa.ListArray.from_arrays(offsets, pa.array(array)) for array in values], schema=TRAIN)


def parquet(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["source", "category"]}
    with pq.ParquetWriter(path, schema, **settings) as writer:
        for table in tables:
            writer.write_table(table)


def output_hash(out: Path) -> dict[str, str | dict[str, str]]:
    """Hash of every parquet file, and of them all."""
    files = {str(path.relative_to(out)): sha256(path) for path in sorted(out.rglob("*.parquet"))}
    together = "".join(f"{name} {digest}\n" for name, digest in files.items())
    return {"sha256": hashlib.sha256(together.encode()).hexdigest(), "files": files}
