"""Which rows make the mix: no duplicates, each category's budget met to within one conversation, in a drawn order.

Everything here depends on the rows' content and the seed alone: not on chunks, workers or a library's random stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hermes3.mix import dedup
from hermes3.mix.ngrams import mix
from hermes3.mix.spec import CATEGORIES, Source, Spec


@dataclass(frozen=True)
class Choice:
    """`rows`: int64[n_kept], numbers of the rows to write, in order; `uses`: int64[n_kept], 0 for a row's first use.

    `rejected`: {stage/reason: (rows, details)} of rows left out; `shortfalls`: {category: sentence};
    `unmet_weights`: {source: sentence}.
    """

    rows: np.ndarray
    uses: np.ndarray
    rejected: dict[str, tuple[np.ndarray, list[str]]]
    shortfalls: dict[str, str]
    unmet_weights: dict[str, str]


def choose(rows: pa.Table, spec: Spec, row_at: Callable[[int], dict[str, Any]]) -> Choice:
    """Choose among `rows` (the columns `SHORT` of hermes3/mix/shard.py); `row_at` gives what a row says."""
    sources = [source for _, source in spec.sources()]
    source_of = _index(rows["source"], [source.name for source in sources])
    category_of = _index(rows["category"], list(CATEGORIES))
    tokens = rows["n_tokens"].to_numpy()
    drawn = _drawn(rows["words"], spec.seed)
    ids = rows["id"]
    rejected: dict[str, tuple[np.ndarray, list[str]]] = {}

    def without(reason: str, repeats: dict[int, tuple[int, dict[str, float]]], order: np.ndarray) -> np.ndarray:
        """`order` without the rows that repeat another; each reject names the row that it repeats, and how alike."""
        if not repeats:
            return order
        removed, details = np.array(sorted(repeats), np.int64), []
        for other, alike in map(repeats.get, removed.tolist()):
            parts = "".join(f", {part} {value:.2f}" for part, value in alike.items())
            details.append(f"of {ids[other].as_py()} in {sources[source_of[other]].name}{parts}")
        rejected[f"dedup/{reason}"] = (removed, details)
        return order[~np.isin(order, removed)]

    rank = np.array([source.rank for source in sources])[source_of]
    order = np.lexsort((np.arange(len(drawn)), drawn, rank))  # strongest first, then as drawn, then as read
    order = without("exact_duplicate", _copies(rows["hash"], order), order)
    if spec.near_duplicates and len(order):
        signed = _bytes(rows["signature"]).view("<u4")
        compare = dedup.comparer(row_at, spec.near_duplicates.ngram)
        repeats = dedup.near_duplicates(signed, order, spec.near_duplicates.threshold, compare)
        order = without("near_duplicate", repeats, order)

    budgets, shortfalls, unmet = spec.budgets(), {}, {}
    kept, uses = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    over, details = [], []
    for code, name in enumerate(CATEGORIES):
        pool = order[category_of[order] == code]
        if name not in budgets:
            kept.append(pool)
            uses.append(np.zeros(len(pool), np.int64))
            continue
        own = {i: source for i, source in enumerate(sources) if (source_of[pool] == i).any()}
        taken, use = _fill(pool, tokens, budgets[name], source_of, own)
        kept.append(taken)
        uses.append(use)
        left = np.setdiff1d(pool, taken)
        over.append(left)
        details += [f"{name} has its {budgets[name]:,} tokens"] * len(left)
        have = int(tokens[taken].sum())
        if budgets[name] - have > (tokens[pool].max() if len(pool) else 0):
            shortfalls[name] = _shortfall(budgets[name], have, own)
        unmet |= _unmet(spec.categories[name].sources, sources, source_of[taken], tokens[taken], budgets[name])
    if details:
        rejected["budget/over_budget"] = (np.concatenate(over), details)
    chosen, use = np.concatenate(kept), np.concatenate(uses)
    with np.errstate(over="ignore"):
        place = mix(drawn[chosen] + use.astype(np.uint64))  # a repeated row stands elsewhere than its first use
    final = np.lexsort((chosen, place))
    return Choice(chosen[final], use[final], rejected, shortfalls, unmet)


def _fill(
    pool: np.ndarray, tokens: np.ndarray, budget: int, source_of: np.ndarray, sources: dict[int, Source]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `pool` (best first) up to `budget` tokens, and their use: 0, or 1, 2.. for a row that is used again.

    With weights, each source first has its share of the budget; what a source cannot fill, the others do.
    """
    total = sum(source.weight or 0 for source in sources.values())
    first = np.empty(0, np.int64)
    for code, source in sources.items():
        if source.weight:
            own = pool[source_of[pool] == code]
            first = np.append(first, own[np.cumsum(tokens[own]) <= budget * source.weight / total])
    queue = [(first, 0), (pool[~np.isin(pool, first)], 0)]  # (rows, use) in the order in which they are taken
    for use in range(1, max((source.max_repeat for source in sources.values()), default=1)):
        again = [code for code, source in sources.items() if source.max_repeat > use]
        queue.append((pool[np.isin(source_of[pool], again)], use))
    rows = np.concatenate([rows for rows, _ in queue])
    uses = np.concatenate([np.full(len(rows), use) for rows, use in queue])
    ends = np.cumsum(tokens[rows])
    n = int(np.searchsorted(ends, budget))  # rows that fit whole; one more if that ends nearer to the budget
    if n < len(rows) and ends[n] - budget <= budget - (ends[n - 1] if n else 0):
        n += 1
    return rows[:n], uses[:n]


def _shortfall(budget: int, have: int, sources: dict[int, Source]) -> str:
    """What is missing, and what would fill it."""
    now = max((source.max_repeat for source in sources.values()), default=1)
    remedy = f"raise max_repeat to {-(-budget * now // have)} or add a source" if have else "add a source"
    return f"{have / 1e6:.4g} of {budget / 1e6:.4g} M tokens available; {remedy}"


def _unmet(
    weighted: list[Source], sources: list[Source], source_of: np.ndarray, tokens: np.ndarray, budget: int
) -> dict[str, str]:
    """{source: sentence} for each of a category's sources that fills less of the budget than its weight says."""
    total, unmet = sum(source.weight or 0 for source in weighted), {}
    for source in weighted:
        wanted = budget * (source.weight or 0) / (total or 1)
        have = int(tokens[source_of == sources.index(source)].sum())
        if wanted - have > tokens.max(initial=0):
            sentence = f"its weight asks for {wanted / 1e6:.4g} M tokens, it has {have / 1e6:.4g}"
            unmet[source.name] = f"{sentence}; raise its max_repeat or lower its weight"
    return unmet


def _index(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    return pc.index_in(column, value_set=pa.array(names)).to_numpy()


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """uint8[n_rows, width] of a fixed-size binary column."""
    whole, width = column.combine_chunks(), column.type.byte_width
    data = np.frombuffer(whole.buffers()[1] or b"", np.uint8)
    return data[whole.offset * width : (whole.offset + len(whole)) * width].reshape(-1, width)


def _drawn(hashes: pa.ChunkedArray, seed: int) -> np.ndarray:
    """A number drawn for each row by its content and the seed, uint64[n_rows]."""
    first = np.ascontiguousarray(_bytes(hashes)[:, :8]).view("<u8")[:, 0]
    return mix(first ^ mix(np.array([seed], np.uint64)))


def _copies(hashes: pa.ChunkedArray, order: np.ndarray) -> dict[int, tuple[int, dict[str, float]]]:
    """{row: (the row before it in `order` that says the same, nothing to add)}."""
    codes = hashes.combine_chunks().dictionary_encode().indices.to_numpy()[order]
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    kept = first[inverse]
    again = np.flatnonzero(kept != np.arange(len(codes)))
    return {row: (other, {}) for row, other in zip(order[again].tolist(), order[kept[again]].tolist(), strict=True)}
