"""The benchmark's generated mix at toy size. Nothing here is timed."""

import json
from collections import Counter

import yaml

from bench.generate import DATA, generate
from hermes3.messages import BadRow
from hermes3.mix import lock, read, spec
from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.spec import CATEGORIES

TOKENS = 200_000


def test_the_generated_mix_is_declared_whole_and_the_same_every_time(hermes_llama, tmp_path):
    """The paper's shares, every stage on; more rows than the budgets take, few broken and few copies."""
    from hermes3.chat.render import Renderer

    path = generate(TOKENS, tmp_path / "one", hermes_llama)
    declared, renderer = spec.load(path), Renderer(hermes_llama)
    assert declared.near_duplicates and declared.decontaminate and declared.tokens == TOKENS
    shares = {name: category.percent for name, category in declared.categories.items()}
    assert shares == {key: percent for key, (_, percent) in CATEGORIES.items()}
    texts, broken, total = Counter(), 0, 0
    for name, source in declared.sources():
        rows = []
        for chunk in read.chunks(source.name, lock.files_of(source, path.parent, None, path)):
            for line in chunk.lines:
                total += 1
                try:
                    rows.append(ADAPTERS[source.adapter](read.parse(line)))
                except BadRow as bad:
                    assert bad.reason == "not_json"
                    broken += 1
        n_tokens = renderer.batch([(row["messages"], row["tools"]) for row in rows]).offsets[-1]
        assert n_tokens > declared.budgets()[name] or not DATA.is_dir(), name  # words that are drawn have more letters
        texts.update(json.dumps(row["messages"]) for row in rows)
    assert total > 300 and broken <= declared.max_bad_rows * total
    assert (
        sum(n - 1 for n in texts.values()) < 0.06 * texts.total() or not DATA.is_dir()
    )  # 2 % by design; few rows here
    again = generate(TOKENS, tmp_path / "two", hermes_llama)
    first, second = (sorted(each.parent.glob("*.jsonl")) for each in (path, again))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(again.read_text())
