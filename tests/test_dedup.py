"""Copies and near-copies are found, the better one stays, and what only looks alike is kept."""

import json
import random
from collections import defaultdict
from itertools import combinations, product

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import ROOT, real_rows

from hermes3.mix import dedup
from hermes3.mix.dedup import bands, content_hashes, near_duplicates, shingles, signatures
from hermes3.mix.spec import NearDuplicates

VOCABULARY = [f"w{i}" for i in range(5000)]
CASES = yaml.safe_load((ROOT / "tests/dedup.yml").read_text(encoding="utf-8"))


def row(asked: str, answer: str = "Yes.", call: dict | None = None, rejected: str | None = None, **more) -> dict:
    question, reply = {"role": "user", "content": asked}, {"role": "assistant", "content": answer, **more}
    if call:
        calls = [{"type": "function", "function": {"name": "look_up", "arguments": call}}]
        reply |= {"content": "", "tool_calls": calls}
    if rejected:
        return {"messages": [question], "chosen": reply, "rejected": {"role": "assistant", "content": rejected}}
    return {"messages": [question, reply]}


def repeats(rows: list[dict], threshold: float = 0.8, order: np.ndarray | None = None) -> dict[int, tuple]:
    settings = NearDuplicates(threshold=threshold)
    order = np.arange(len(rows)) if order is None else order
    signed = [one.tobytes() for one in signatures(rows, settings)]
    chunks = [pa.array(part, pa.binary(512)) for part in (signed[:1], signed[1:])]
    found = near_duplicates(pa.chunked_array(chunks), order, settings, rows.__getitem__)
    return {row: (other, alike) for row, other, alike in found}


def changed(text: str, n: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), n):
        words[place] = rng.choice(VOCABULARY)
    return " ".join(words)


def jaccard(a: str, b: str) -> float:
    """Of texts without signs, by sets of tuples."""
    one, other = ({tuple(text.split()[i : i + 5]) for i in range(len(text.split()) - 4)} for text in (a, b))
    return len(one & other) / len(one | other)


def test_similarity_is_counted_and_signatures_estimate_it():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=300)) for _ in range(40)]
    others = [changed(text, rng.randint(0, 40), rng) for text in texts]
    true = [jaccard(a, b) for a, b in zip(texts, others, strict=True)]
    for a, b, value in zip(texts, others, true, strict=True):
        for _, alike in repeats([row(a), row(b)], 0.3).values():
            assert alike == {"asked": pytest.approx(value), "trained": 1}
    signed = [signatures([row(text) for text in some], NearDuplicates()) for some in (texts, others)]
    # 128 slots: a standard deviation of at most sqrt(0.25 / 128) = 0.044
    assert np.abs((signed[0] == signed[1]).mean(1) - true).max() < 0.15


@pytest.mark.parametrize("script", ["words", "letters"])
def test_near_copies_are_found_and_half_alike_stays(script, monkeypatch):
    """In words, and in a script without blanks; sorted at once, and by buckets."""
    rng, glue = random.Random(1), " " if script == "words" else ""
    alphabet = VOCABULARY if glue else [chr(0x4E00 + i) for i in range(3000)]
    texts = [rng.choices(alphabet, k=200) for _ in range(300)]
    near = [[*text[:100], rng.choice(alphabet), *text[101:]] for text in texts[:100]]
    half = [[*text[:130], *rng.choices(alphabet, k=70)] for text in texts[100:]]
    rows = [row("So?", glue.join(text)) for text in texts + near + half]
    removed = repeats(rows)
    monkeypatch.setattr(dedup, "BUCKET", 50)
    monkeypatch.setattr(dedup, "BLOCK", 7)
    assert repeats(rows) == removed
    assert removed.keys() == set(range(300, 400)) and all(other == copy - 300 for copy, (other, _) in removed.items())
    assert all(alike["asked"] == 1 and 0.9 < alike["trained"] < 1 for _, alike in removed.values())


def test_what_asks_or_trains_another_thing_stays_and_what_repeats_all_of_a_short_row_goes():
    assert [pair for pair in CASES["stays"] if repeats([row(**one) for one in pair])] == []
    for one in CASES["goes"]:
        other = row(**one)
        other["messages"].insert(0, {"role": "system", "content": "Other prompts do not make another row."})
        assert [first for first, _ in repeats([row(**one), other]).values()] == [0], one


def test_a_pair_at_the_threshold_shares_a_band_with_probability_95_percent():
    for permutations, threshold in product((64, 128, 256), (0.3, 0.5, 0.8, 0.9)):
        b = bands(threshold, permutations)
        assert permutations % b == 0 and 1 - (1 - threshold ** (permutations // b)) ** b >= 0.95
    with pytest.raises(ValueError, match="threshold"):
        NearDuplicates(threshold=0.02)


def test_of_a_hundred_versions_the_best_stays_and_so_does_what_repeats_a_removed_row_alone():
    rng = random.Random(3)
    text = " ".join(rng.choices(VOCABULARY, k=400))
    rows = [row("So?", changed(text, 1, rng)) for _ in range(100)]
    order = np.random.default_rng(0).permutation(100)
    removed = repeats(rows, order=order)
    assert removed.keys() == set(range(100)) - {order[0]} and {other for other, _ in removed.values()} == {order[0]}
    rng = random.Random(4)
    a = " ".join(rng.choices(VOCABULARY, k=400))
    b = changed(a, 6, rng)  # like a
    c = changed(b, 8, rng)  # like b, less like a
    assert jaccard(a, b) > 0.83 and jaccard(b, c) > 0.8 and jaccard(a, c) < 0.75
    assert repeats([row("So?", text) for text in (a, b, c)]).keys() == {1}


@pytest.mark.parametrize(("a", "b", "same"), CASES["copies"])
def test_a_copy_differs_in_line_ends_and_trailing_blanks_alone(a, b, same):
    one, other = (json.dumps(row(text)["messages"], separators=(",", ":")).encode() for text in (a, b))
    assert (len({*content_hashes([one, other])[0]}) == 1) == same
    assert len({*content_hashes([b'["What  is\\n\\nIT?"]', b'["what is it?"]'])[1]}) == 1


@pytest.mark.skipif(not (ROOT.parent / "shared/data").is_dir(), reason="needs the real files")
def test_real_rows_lose_what_brute_force_finds_and_nothing_else():
    """Every eighth real row and a copy of some with changed words; all pairs that share a shingle are compared."""
    rng = random.Random(0)
    rows = real_rows()[::8]
    for one in rng.sample(rows, 300):
        last = one["messages"][-1]
        words = last["content"].split(" ")
        for place in rng.sample(range(len(words)), min(len(words), rng.randint(0, 4))):
            words[place] = "other"
        rows.append(one | {"messages": [*one["messages"][:-1], last | {"content": " ".join(words)}]})
    sets: dict[int, dict[int, set]] = defaultdict(lambda: defaultdict(set))
    holders: dict[int, set[int]] = defaultdict(set)
    for i, part, value in zip(*(array.tolist() for array in shingles(rows, 5)), strict=True):
        sets[i][part].add(value)
        if part == 1:
            holders[value].add(i)
    pairs = {p for some in holders.values() if len(some) < 50 for p in combinations(sorted(some), 2)}

    def alike(a: dict[int, set], b: dict[int, set]) -> bool:
        return all(len(a[part] & b[part]) >= 0.8 * len(a[part] | b[part]) for part in range(4))

    true = {(a, b) for a, b in pairs if alike(sets[a], sets[b])}
    removed = repeats(rows)
    assert all((other, copy) in true for copy, (other, _) in removed.items())
    assert len(true) > 150
    missed = [b for a, b in true if b not in removed and a not in removed]
    assert len(missed) <= 0.05 * len({b for _, b in true})
