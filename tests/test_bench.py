"""The benchmark's generated mix at toy size. Nothing here is timed."""

import json
from collections import Counter

import pytest
import yaml

from bench.generate import DATA, generate
from hermes3.messages import BadRow
from hermes3.mix import lock, read, spec
from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.spec import CATEGORIES

TOKENS = 200_000


@pytest.fixture(scope="module")
def generated(hermes_llama, tmp_path_factory):
    """The spec, its folder and its file."""
    folder = tmp_path_factory.mktemp("generated")
    path = generate(TOKENS, folder, hermes_llama)
    return spec.load(path), folder, path


def lines_of(source, folder, path) -> list[bytes]:
    chunks = read.chunks(source.name, lock.files_of(source, folder, None, path))
    return [line for chunk in chunks for line in chunk.lines]


def test_the_spec_has_every_stage_on_and_the_paper_s_shares(generated):
    made, _, _ = generated
    assert made.near_duplicates and made.decontaminate and made.tokens == TOKENS
    assert {name: category.percent for name, category in made.categories.items()} == {
        key: percent for key, (_, percent) in CATEGORIES.items()
    }


def test_rows_are_of_their_declared_shape_but_for_the_broken(generated):
    made, folder, path = generated
    broken = total = 0
    for _, source in made.sources():
        for line in lines_of(source, folder, path):
            total += 1
            try:
                ADAPTERS[source.adapter](read.parse(line))
            except BadRow as bad:
                assert bad.reason == "not_json"
                broken += 1
    assert total > 300
    assert broken <= made.max_bad_rows * total


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: without it words are drawn, of more letters a token")
def test_there_is_more_than_the_budgets_take_and_copies_are_few(generated, hermes_llama):
    from hermes3.chat.render import Renderer

    made, folder, path = generated
    renderer, said = Renderer(hermes_llama), Counter()
    for name, source in made.sources():
        rows = []
        for line in lines_of(source, folder, path):
            try:
                rows.append(ADAPTERS[source.adapter](read.parse(line)))
            except BadRow:
                continue
        n_tokens = renderer.batch([(row["messages"], row["tools"]) for row in rows]).offsets[-1]
        assert n_tokens > made.budgets()[name], name
        said.update(json.dumps(row["messages"]) for row in rows)
    assert sum(n - 1 for n in said.values()) < 0.06 * said.total()  # 2 % by design; few rows here


def test_a_second_run_writes_the_same_bytes(generated, hermes_llama, tmp_path):
    _, folder, path = generated
    again = generate(TOKENS, tmp_path, hermes_llama)
    first, second = (sorted(each.glob("*.jsonl")) for each in (folder, tmp_path))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(again.read_text())
