"""The benchmark's generated mix at toy size. Nothing here is timed."""

import json

import yaml

from bench.generate import generate
from hermes3.messages import BadRow
from hermes3.mix import lock, read, spec
from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.spec import CATEGORIES

TOKENS = 200_000


def test_the_generated_mix_is_declared_whole_and_the_same_every_time(hermes_llama, tmp_path):
    """The paper's shares, every stage on; rows that can be read but for a few, which are no JSON."""
    path, again = (generate(TOKENS, tmp_path / name, hermes_llama) for name in ("one", "two"))
    declared = spec.load(path)
    assert declared.near_duplicates and declared.decontaminate and declared.tokens == TOKENS
    shares = {name: category.percent for name, category in declared.categories.items()}
    assert shares == {key: percent for key, (_, percent) in CATEGORIES.items()}
    rows, broken = [], 0
    for _, source in declared.sources():
        for chunk in read.chunks(source.name, lock.files_of(source, path.parent, None, path)):
            for line in chunk.lines:
                try:
                    rows.append(json.dumps(ADAPTERS[source.adapter](read.parse(line))["messages"]))
                except BadRow as bad:
                    assert bad.reason == "not_json"
                    broken += 1
    assert len(rows) > 300 and broken <= declared.max_bad_rows * len(rows)
    first, second = (sorted(each.parent.glob("*.jsonl")) for each in (path, again))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(again.read_text())
