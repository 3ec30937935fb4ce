"""Which rows make the mix: no duplicates, each category's budget met to within one conversation, in a drawn order.

Everything here depends on the rows' content and the seed alone: not on chunks, workers or a library's random stream.
"""

from collections.abc import Callable, Sequence
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
    rows: np.ndarray  # int64[n_kept], numbers of the rows to write, in order
    uses: np.ndarray  # int64[n_kept], 0 for a row's first use
    rejected: dict[str, tuple[Sequence[int], list[str]]]  # {stage/reason: (rows, details)} of rows left out
    shortfalls: dict[str, str]  # {category: sentence}
    unmet_weights: dict[str, str]  # {source: sentence}


def choose(rows: pa.Table, spec: Spec, row_at: Callable[[int], dict[str, Any]]) -> Choice:
    """Choose among `rows` (the columns `SHORT` of hermes3/mix/shard.py); `row_at` gives what a row says."""
    sources = [source for _, source in spec.sources()]
    source_of = pc.index_in(rows["source"], value_set=pa.array([source.name for source in sources])).to_numpy()
    names = list(dict.fromkeys([*CATEGORIES, *spec.categories]))
    category_of = pc.index_in(rows["category"], value_set=pa.array(names)).to_numpy()
    tokens = rows["n_tokens"].to_numpy()
    drawn = mix(_first_8(rows["words"]) ^ mix(np.array([spec.seed], np.uint64)))
    rank = np.array([source.rank for source in sources])[source_of]
    order = np.lexsort((np.arange(len(drawn)), drawn, rank))  # strongest first, then as drawn, then as read
    rejected, shortfalls, unmet = {}, {}, {}
    for reason in ("exact_duplicate", "near_duplicate") if spec.near_duplicates else ("exact_duplicate",):
        if reason == "exact_duplicate":
            repeats = _copies(rows["hash"], order)
        else:
            repeats = dedup.near_duplicates(rows["signature"], order, spec.near_duplicates, row_at)
        removed, details = sorted(repeats), []
        for other, alike in map(repeats.__getitem__, removed):
            parts = "".join(f", {part} {value:.2f}" for part, value in alike.items())
            details.append(f"of {rows['id'][other]} in {sources[source_of[other]].name}{parts}")
        if removed:
            rejected[f"dedup/{reason}"] = removed, details
            order = order[~np.isin(order, removed)]

    budgets, kept, over = spec.budgets(), [], []
    for code, name in enumerate(names):
        pool = order[category_of[order] == code]
        if not (budget := budgets.get(name)):
            kept.append((pool, np.zeros(len(pool), np.int64)))
            continue
        own = {i: sources[i] for i in np.unique(source_of[pool])}
        taken, uses = _fill(pool, tokens, budget, source_of, own)
        kept.append((taken, uses))
        over.append((np.setdiff1d(pool, taken), f"{name} has its {budget:,} tokens"))
        have = int(tokens[taken].sum())
        if budget - have > tokens[pool].max(initial=0):
            repeat = max((source.max_repeat for source in own.values()), default=1)
            remedy = f"raise max_repeat to {-(-budget * repeat // have)} or add a source" if have else "add a source"
            shortfalls[name] = f"{have / 1e6:.4g} of {budget / 1e6:.4g} M tokens available; {remedy}"
        declared = spec.categories[name].sources
        total = sum(source.weight or 0 for source in declared) or 1
        for source in declared:
            wanted, longest = budget * (source.weight or 0) / total, tokens[taken].max(initial=0)
            filled = tokens[taken[source_of[taken] == sources.index(source)]].sum()
            if wanted - filled > longest:
                sentence = f"its weight asks for {wanted / 1e6:.4g} M tokens, it has {filled / 1e6:.4g}"
                unmet[source.name] = f"{sentence}; raise its max_repeat or lower its weight"
    if any(len(left_out) for left_out, _ in over):
        details = [detail for left_out, detail in over for _ in left_out]
        rejected["budget/over_budget"] = np.concatenate([left_out for left_out, _ in over]), details
    chosen, uses = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    place = mix(drawn[chosen] + uses.astype(np.uint64))  # a repeated row stands elsewhere than its first use
    final = np.lexsort((chosen, place))
    return Choice(chosen[final], uses[final], rejected, shortfalls, unmet)


def _fill(
    pool: np.ndarray, tokens: np.ndarray, budget: int, source_of: np.ndarray, sources: dict[int, Source]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `pool` (best first) up to `budget` tokens, and their use: 0, or 1, 2.. for a row that is used again."""
    total = sum(source.weight or 0 for source in sources.values())
    first = pool[:0]  # each source's share by weight; what one cannot fill, the others do
    for code, source in sources.items():
        if source.weight:
            own = pool[source_of[pool] == code]
            first = np.append(first, own[np.cumsum(tokens[own]) <= budget * source.weight / total])
    most = max((source.max_repeat for source in sources.values()), default=1)
    again = [[code for code, source in sources.items() if source.max_repeat > use] for use in range(1, most)]
    queue = [first, pool[~np.isin(pool, first)], *(pool[np.isin(source_of[pool], codes)] for codes in again)]
    rows, uses = np.concatenate(queue), np.repeat([0, *range(most)], [len(part) for part in queue])
    ends = np.cumsum(tokens[rows])
    n = int(np.searchsorted(ends, budget))  # rows that fit whole; one more if that ends nearer to the budget
    if n < len(rows) and ends[n] - budget <= budget - (ends[n - 1] if n else 0):
        n += 1
    return rows[:n], uses[:n]


def _first_8(column: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of each value, as numbers: uint64[n_rows]."""
    return np.concatenate([view[:, 0] for view in dedup.numbers(column, "<u8")])


def _copies(hashes: pa.ChunkedArray, order: np.ndarray) -> dict[int, tuple[int, dedup.Alike]]:
    """{row: (the row before it in `order` that says the same, nothing to add)}."""
    _, inverse, counts = np.unique(_first_8(hashes)[order], return_inverse=True, return_counts=True)
    order = order[counts[inverse] > 1]  # a hash whose first bytes no other has is read no further
    whole = dedup.rows_of(dedup.numbers(hashes, "<u8"), order)
    _, first, inverse = np.unique(whole, axis=0, return_index=True, return_inverse=True)
    pairs = zip(order.tolist(), order[first[inverse.ravel()]].tolist(), strict=True)
    return {row: (other, {}) for row, other in pairs if row != other}
