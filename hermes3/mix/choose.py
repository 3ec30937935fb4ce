"""Which rows make the mix: no duplicates, each category's budget met to within one conversation, in a drawn order.

Everything here depends on the rows' content and the seed alone: not on chunks, workers or a library's random stream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import batched

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from hermes3.mix import dedup
from hermes3.mix.ngrams import mix
from hermes3.mix.shard import REJECTS
from hermes3.mix.spec import CATEGORIES, Source, Spec


@dataclass(frozen=True)
class Choice:
    rows: np.ndarray  # int64[n_kept], numbers of the rows to write, in order
    uses: np.ndarray  # int64[n_kept], 0 for a row's first use
    shortfalls: dict[str, str]  # {category: sentence}
    unmet_weights: dict[str, str]  # {source: sentence}


def choose(
    rows: pa.Table, spec: Spec, row_at: dedup.RowAt, reject: Callable = lambda _: None, disk: Callable = dedup.on_disk
) -> Choice:
    """Choose among `rows` (the columns `SHORT` of hermes3/mix/shard.py); `row_at` gives what a row says, `reject` takes
    tables of those left out. Some 20 bytes per row are in memory, the rest in `disk` arrays."""
    named = ds.dataset(rows.select(["id", "source"]))

    def leave_out(why: str, numbers: np.ndarray, details: list[str]) -> None:
        stage, reason = (pa.repeat(part, len(numbers)) for part in why.split("/"))
        reject(pa.table([*named.take(numbers).columns, stage, reason, details], schema=REJECTS))

    sources = [source for _, source in spec.sources()]
    source_of = disk(pc.index_in(rows["source"], value_set=pa.array([one.name for one in sources])).chunks, np.int16)
    names = list(dict.fromkeys([*CATEGORIES, *spec.categories]))
    category_of = disk(pc.index_in(rows["category"], value_set=pa.array(names)).chunks, np.int16)
    tokens, seed = disk(rows["n_tokens"].chunks, np.int32), mix(np.array([spec.seed], np.uint64))
    drawn = disk((mix(view[:, 0] ^ seed) for view in dedup.numbers(rows["words"], "<u8")), np.uint64)
    ranks = np.array([source.rank for source in sources])
    by_draw = disk(places[np.argsort(keys, kind="stable")] for places, keys in dedup.buckets(drawn))
    order = disk(by_draw[(ranks == rank)[source_of[by_draw]]] for rank in np.unique(ranks))  # strongest first
    uses = np.zeros(len(order), np.int32)  # of each row; below zero: it repeats another
    shortfalls, unmet = {}, {}
    for reason in ("exact_duplicate", "near_duplicate") if spec.near_duplicates else ("exact_duplicate",):
        if reason == "exact_duplicate":
            repeats = _copies(rows["hash"], order, disk)
        else:
            repeats = dedup.near_duplicates(rows["signature"], order, spec.near_duplicates, row_at, disk)
        for some in batched(repeats, dedup.BLOCK):
            removed, others, alikes = zip(*some, strict=True)
            shown = ("".join(f", {part} {value:.2f}" for part, value in alike.items()) for alike in alikes)
            others = zip(*named.take(others).columns, shown, strict=True)
            leave_out(f"dedup/{reason}", removed, [f"of {other} in {source}{parts}" for other, source, parts in others])
            uses[list(removed)] = -1
        order = disk([order[uses[order] == 0]])

    budgets = spec.budgets()
    for code, name in enumerate(names):
        pool = disk([order[category_of[order] == code]])
        if not (budget := budgets.get(name)):
            uses[pool] = 1
            continue
        codes, lengths = disk([source_of[pool]], np.int16), disk([tokens[pool]], np.int32)
        own = {i: sources[i] for i in np.unique(codes)}
        uses[pool] = used = _fill(lengths, budget, codes, own)
        for part in np.array_split(pool[used == 0], 1 + len(pool) // dedup.BLOCK):
            leave_out("budget/over_budget", part, [f"{name} has its {budget:,} tokens"] * len(part))
        have, longest = int((lengths * used).sum()), lengths[used > 0].max(initial=0)
        if budget - have > lengths.max(initial=0):
            repeat = max((source.max_repeat for source in own.values()), default=1)
            remedy = f"raise max_repeat to {-(-budget * repeat // have)} or add a source" if have else "add a source"
            shortfalls[name] = f"{have / 1e6:.4g} of {budget / 1e6:.4g} M tokens available; {remedy}"
        declared = spec.categories[name].sources
        total = sum(source.weight or 0 for source in declared) or 1
        for source in declared:
            wanted = budget * (source.weight or 0) / total
            filled = (lengths * used)[codes == sources.index(source)].sum()
            if wanted - filled > longest:
                sentence = f"its weight asks for {wanted / 1e6:.4g} M tokens, it has {filled / 1e6:.4g}"
                unmet[source.name] = f"{sentence}; raise its max_repeat or lower its weight"
    most = max(1, uses.max(initial=0))
    every = disk(np.flatnonzero(uses > use) * most + use for use in range(most))  # each use has a place of its own
    place = disk((mix(drawn[i // most] + (i % most).astype(np.uint64)) for i in np.array_split(every, 256)), np.uint64)
    final = disk(every[places[np.lexsort((every[places], keys))]] for places, keys in dedup.buckets(place))
    return Choice(disk([final // most]), disk([final % most]), shortfalls, unmet)


def _fill(tokens: np.ndarray, budget: int, source_of: np.ndarray, sources: dict[int, Source]) -> np.ndarray:
    """How often each row of a category, best first, is used to fill its budget: int32[n_rows]."""
    uses, total = np.zeros(len(tokens), np.int32), sum(source.weight or 0 for source in sources.values())
    for code, source in sources.items():  # each source's share by weight; what one cannot fill, the others do
        if source.weight:
            own = source_of == code
            uses[own & (np.cumsum(tokens * own) <= budget * source.weight / total)] = 1
    for use in range(1, 1 + max((source.max_repeat for source in sources.values()), default=1)):
        may = (uses < use) & np.isin(source_of, [code for code, source in sources.items() if source.max_repeat >= use])
        before = int((tokens * uses).sum())
        ends = before + np.cumsum(tokens * may)
        n = int(np.searchsorted(ends, budget))  # rows that fit whole; one more if that ends nearer to the budget
        nearer = n < len(ends) and ends[n] - budget <= budget - (ends[n - 1] if n else before)
        uses[: n + nearer][may[: n + nearer]] = use
        if n < len(ends):
            break
    return uses


def _copies(hashes: pa.ChunkedArray, order: np.ndarray, disk: Callable) -> Iterator[dedup.Repeat]:
    """Rows that say the same as one before them in `order`."""
    first_8 = disk((view[:, 0] for view in dedup.numbers(hashes, "<u8")), np.uint64)
    whole = ds.dataset(pa.table([hashes], ["hash"]))
    for places, keys in dedup.buckets(disk([first_8[order]], np.uint64)):
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        rows = order[places[counts[inverse] > 1]]  # a hash whose first bytes no other has is read no further
        same = dedup.numbers(whole.take(rows)["hash"], "<u8")[0]
        _, first, inverse = np.unique(same, axis=0, return_index=True, return_inverse=True)
        pairs = zip(rows.tolist(), rows[first[inverse.ravel()]].tolist(), strict=True)
        yield from ((row, other, {}) for row, other in pairs if row != other)
