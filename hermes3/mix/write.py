"""Writing the chosen rows: gathered from the shards, part by part, in the drawn order."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hermes3.chat.render import IGNORE
from hermes3.files import sha256
from hermes3.mix.shard import SIDES, open_shard

ROWS_PER_FILE = 20_000  # about 10 M tokens: what one process holds while it writes
# a fourth column would break Axolotl's packing collator
TRAIN = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("attention_mask", pa.list_(pa.int8())), ("labels", pa.list_(pa.int32()))]
)


def part(out: Path, number: int, shards: list[Path], bounds: np.ndarray, rows: np.ndarray, uses: np.ndarray) -> None:
    """Write part `number` of train/ and rows/: `rows` are numbers over all shards; shard i begins at `bounds[i]`."""
    shard_of = np.searchsorted(bounds, rows, side="right") - 1
    by_shard = np.argsort(shard_of, kind="stable")
    wanted, starts = np.unique(shard_of[by_shard], return_index=True)
    tables = []
    for shard, places in zip(wanted.tolist(), np.split(by_shard, starts[1:]), strict=True):
        tables.append(open_shard(shards[shard]).take(pa.array(rows[places] - bounds[shard])))
    back = np.empty(len(rows), np.int64)
    back[by_shard] = np.arange(len(rows))
    table = pa.concat_tables(tables).combine_chunks().take(pa.array(back))
    name = f"part-{number:05d}.parquet"
    parquet(_train(table), out / "train" / name)
    parquet(_readable(table, uses), out / "rows" / name)


def output_hash(out: Path) -> dict[str, str | dict[str, str]]:
    """Hash of every parquet file, and of them all."""
    files = {str(path.relative_to(out)): sha256(path) for path in sorted(out.rglob("*.parquet"))}
    together = "".join(f"{name} {digest}\n" for name, digest in files.items())
    return {"sha256": hashlib.sha256(together.encode()).hexdigest(), "files": files}


def parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=1, use_dictionary=["source", "category"])


def _train(table: pa.Table) -> pa.Table:
    if "prompt_text" in table.column_names:
        return pa.table({"prompt": table["prompt_text"], **{side: table[f"{side}_text"] for side in SIDES}})
    ids, loss = table["input_ids"].combine_chunks(), table["loss"].combine_chunks()
    tokens, bears_loss = ids.flatten().to_numpy(), loss.flatten().to_numpy(zero_copy_only=False)
    labels = np.where(bears_loss, tokens, np.int32(IGNORE))
    ones = np.ones(len(tokens), np.int8)
    offsets = pa.array(np.append(0, np.cumsum(pc.list_value_length(ids).to_numpy())).astype(np.int32))
    columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (tokens, ones, labels)]
    return pa.table(columns, schema=TRAIN)


def _readable(table: pa.Table, uses: np.ndarray) -> pa.Table:
    """The rows for people; a row that is used again has the number of its use after its id."""
    ids = [f"{i}#{use + 1}" if use else i for i, use in zip(table["id"].to_pylist(), uses.tolist(), strict=True)]
    hashes = pa.array([value.hex() for value in table["hash"].to_pylist()], pa.string())
    rest = ["n_tokens", "n_loss_tokens", "n_turns", "messages", "tools", *SIDES]
    columns = {"id": pa.array(ids, pa.string())} | {name: table[name] for name in ("source", "category")}
    columns |= {"hash": hashes} | {name: table[name] for name in rest if name in table.column_names}
    return pa.table(columns)
