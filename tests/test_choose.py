"""Which rows make a mix: rank, copies, budgets, weights, repeats, order."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from hermes3.mix import dedup
from hermes3.mix.choose import choose
from hermes3.mix.spec import CATEGORIES, Spec

ROW_AT = dict.__getitem__  # of no use without near-duplicates
SOURCE = {"path": "x.jsonl", "adapter": "messages", "licence": "x"}
FIXED = {"name": "t", "kind": "sft", "tokenizer": "t", "sequence_len": 99, "seed": 1}


def rows(**sources: list[int]) -> pa.Table:
    """A table of rows: {source: lengths in tokens}, each saying something else."""
    every = [(source, i, n) for source, lengths in sources.items() for i, n in enumerate(lengths)]
    hashes = [hashlib.sha256(f"{source}{i}".encode()).digest() for source, i, _ in every]
    columns = {"id": [f"{source}-{i}" for source, i, _ in every], "source": [source for source, _, _ in every]}
    columns |= {"category": ["math"] * len(every), "n_tokens": pa.array([n for _, _, n in every], pa.int32())}
    return pa.table(columns | dict.fromkeys(("hash", "words"), pa.array(hashes, pa.binary(32))))


def spec(names: dict[str, dict], tokens: int | None = None, seed: int = 1) -> Spec:
    sources = [SOURCE | {"name": name} | more for name, more in names.items()]
    category = {"sources": sources} | ({"tokens": tokens} if tokens else {})
    return Spec.model_validate(FIXED | {"seed": seed, "categories": {"math": category}})


LENGTHS = np.random.default_rng(0).integers(1, 2000, 5000).tolist()


@pytest.mark.parametrize("budget", [1, 10_000, 123_456, 4_000_000])
def test_a_budget_is_met_within_one_conversation(budget):
    table = rows(a=LENGTHS)
    left_out = []
    choice = choose(table, spec({"a": {}}, budget), ROW_AT, left_out.append)
    tokens = table["n_tokens"].to_numpy()[choice.rows].sum()
    assert abs(tokens - budget) <= max(LENGTHS) / 2 and choice.shortfalls == {}
    left = {row["id"] for row in pa.concat_tables(left_out).to_pylist() if row["reason"] == "over_budget"}
    assert left | set(table["id"].take(choice.rows).to_pylist()) == set(table["id"].to_pylist())
    assert len(left) + len(choice.rows) == len(LENGTHS)


def test_the_better_ranked_source_is_taken_first_and_of_copies_stays():
    table, ranked = rows(weak=[10] * 100, strong=[10] * 100), {"weak": {"rank": 2}, "strong": {"rank": 1}}
    choice = choose(table, spec(ranked, 1200), ROW_AT)
    taken = [table["source"][i].as_py() for i in choice.rows]
    assert (taken.count("strong"), taken.count("weak")) == (100, 20)
    table = rows(weak=[10], strong=[10]).set_column(4, "hash", pa.array([b"x" * 32] * 2, pa.binary(32)))
    left_out = []
    choice = choose(table, spec(ranked), ROW_AT, left_out.append)
    why = {"id": "weak-0", "source": "weak", "stage": "dedup", "reason": "exact_duplicate"}
    assert choice.rows.tolist() == [1]
    assert pa.concat_tables(left_out).to_pylist() == [why | {"detail": "of strong-0 in strong"}]


def test_weights_share_a_budget_and_what_one_cannot_fill_the_others_do():
    table = rows(a=[10] * 1000, b=[10] * 1000, c=[10] * 5)
    weights = {"a": {"weight": 3}, "b": {"weight": 1}, "c": {"weight": 4}}
    choice = choose(table, spec(weights, 8000), ROW_AT)
    taken = [table["source"][i].as_py() for i in choice.rows]
    assert len(taken) == 800 and taken.count("c") == 5
    assert taken.count("a") >= 300 and taken.count("b") >= 100  # their shares; the 395 rows that c lacks come on top
    wanted = "its weight asks for 0.004 M tokens, it has 5e-05; raise its max_repeat or lower its weight"
    assert choice.unmet_weights == {"c": wanted}


def test_a_row_is_repeated_only_where_allowed_after_all_were_used_and_a_shortfall_says_so():
    table = rows(a=[10] * 10, b=[10] * 10)
    choice = choose(table, spec({"a": {"max_repeat": 3}, "b": {}}, 350), ROW_AT)
    uses = np.bincount(choice.rows, minlength=20)
    assert uses[:10].sum() == 25 and set(uses[:10]) == {2, 3} and set(uses[10:]) == {1}
    assert np.count_nonzero(choice.uses) == 15
    choice = choose(rows(a=[100] * 192), spec({"a": {}}, 26_000), ROW_AT)
    assert choice.shortfalls == {"math": "0.0192 of 0.026 M tokens available; raise max_repeat to 2 or add a source"}


def test_order_depends_on_the_seed_and_not_on_the_order_of_reading():
    table = rows(a=[10] * 500)
    shuffled = np.random.default_rng(1).permutation(500)
    one = choose(table, spec({"a": {}}, 3000), ROW_AT)
    other = choose(table.take(shuffled), spec({"a": {}}, 3000), ROW_AT)
    assert one.rows.tolist() == shuffled[other.rows].tolist()
    assert one.rows.tolist() != choose(table, spec({"a": {}}, 3000, seed=2), ROW_AT).rows.tolist()
    assert one.rows.tolist() != sorted(one.rows)


def test_sorting_by_buckets_changes_nothing(monkeypatch):
    table, choices = pa.concat_tables([rows(a=LENGTHS, b=LENGTHS)] * 2), []
    settings = spec({"a": {"weight": 1, "max_repeat": 2, "rank": 2}, "b": {"weight": 2}}, 12_000_000)
    for size in (1 << 20, 64):
        monkeypatch.setattr(dedup, "BUCKET", size)
        monkeypatch.setattr(dedup, "BLOCK", size)
        left_out = []
        choice = choose(table, settings, ROW_AT, left_out.append)
        left = sorted(row["id"] + row["detail"] for row in pa.concat_tables(left_out).to_pylist())
        choices.append((choice.rows.tolist(), choice.uses.tolist(), left))
    assert choices[0] == choices[1] and len(left) == 10_000 and 1 in choice.uses


def test_percentages_are_scaled_and_a_bad_sum_is_refused():
    categories = {
        key: {"percent": percent, "sources": [SOURCE | {"name": key}]} for key, (_, percent) in CATEGORIES.items()
    }
    whole = FIXED | {"tokens": 390_000_000}
    budgets = Spec.model_validate(whole | {"categories": categories}).budgets()
    assert abs(sum(budgets.values()) - 390_000_000) <= len(budgets)
    assert budgets["general_instructions"] == round(390e6 * 60.6 / 100.5)
    categories["math"]["percent"] = 16.7
    with pytest.raises(ValueError, match="percentages sum to 110.5, not to 100"):
        Spec.model_validate(whole | {"categories": categories})
