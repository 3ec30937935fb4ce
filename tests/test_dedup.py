"""Copies and near-copies are found, the better one stays."""

import random

import numpy as np
import pytest

from hermes3.mix.dedup import bands, content_hash, near_duplicates, signatures
from hermes3.mix.ngrams import Words
from hermes3.mix.spec import NearDuplicates

VOCABULARY = [f"w{i}" for i in range(5000)]


def signed(texts: list[str], **settings) -> np.ndarray:
    return signatures(Words(texts), np.arange(len(texts)), len(texts), NearDuplicates(**settings))


def found_in(texts: list[str]) -> dict[int, int]:
    return near_duplicates(signed(texts), np.arange(len(texts)), 0.8)


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def changed(text: str, n: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), n):
        words[place] = rng.choice(VOCABULARY)
    return " ".join(words)


def test_signatures_estimate_the_similarity_of_5_grams():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=300)) for _ in range(40)]
    others = [changed(text, rng.randint(0, 40), rng) for text in texts]
    estimates = (signed(texts) == signed(others)).mean(1)
    true = np.array([jaccard(a, b) for a, b in zip(texts, others, strict=True)])
    # 128 slots: a standard deviation of at most sqrt(0.25 / 128) = 0.044
    assert np.abs(estimates - true).max() < 0.15 and np.abs((estimates - true).mean()) < 0.02


def test_near_copies_are_found_and_strangers_are_not():
    rng = random.Random(1)
    texts = [" ".join(rng.choices(VOCABULARY, k=200)) for _ in range(1000)]
    near = [changed(text, 2, rng) for text in texts[:300]]  # two words of 200: 0.90 or more in common
    assert min(map(jaccard, texts, near)) > 0.88
    found = found_in(texts + near)
    assert found.keys() <= set(range(1000, 1300)) and len(found) >= 295
    assert all(first == copy - 1000 for copy, first in found.items())


def test_half_alike_stays_and_so_do_rows_too_short_for_a_shingle():
    rng = random.Random(2)
    texts = [" ".join(rng.choices(VOCABULARY, k=200)) for _ in range(200)]
    half = [" ".join(text.split()[:130] + rng.choices(VOCABULARY, k=70)) for text in texts]
    assert max(map(jaccard, texts, half)) < 0.6
    assert found_in(texts + half) == {}
    assert found_in(["yes", "yes", "no", ""]) == {}


@pytest.mark.parametrize("permutations", [64, 128, 256])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_a_pair_at_the_threshold_shares_a_band_with_probability_95_percent(permutations, threshold):
    b = bands(threshold, permutations)
    assert permutations % b == 0 and 1 - (1 - threshold ** (permutations // b)) ** b >= 0.95


def test_letter_case_and_blanks_do_not_make_another_row():
    one = content_hash(b'[{"role":"user","content":"What  is\\n\\nIT?"}]')
    assert one == content_hash(b'[{"role":"user","content":"what is it?"}]')
    assert one != content_hash(b'[{"role":"user","content":"what is that?"}]')


def test_of_a_hundred_versions_the_best_stays_and_so_does_what_repeats_a_removed_row_alone():
    rng = random.Random(3)
    text = " ".join(rng.choices(VOCABULARY, k=400))
    texts = [changed(text, 1, rng) for _ in range(100)]
    order = np.random.default_rng(0).permutation(100)
    found = near_duplicates(signed(texts), order, 0.8)
    assert found.keys() == set(range(100)) - {order[0]} and set(found.values()) == {order[0]}
    rng = random.Random(4)
    a = " ".join(rng.choices(VOCABULARY, k=400))
    b = changed(a, 6, rng)  # like a
    c = changed(b, 8, rng)  # like b, less like a
    assert jaccard(a, b) > 0.83 and jaccard(b, c) > 0.8 and jaccard(a, c) < 0.75
    assert found_in([a, b, c]) == {1: 0}
