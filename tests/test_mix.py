"""Mixes: specs, what is written, what stops a build, and what a build may replace."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT

from hermes3.files import MARKER, lock
from hermes3.mix import audit
from hermes3.mix import build as builder
from hermes3.mix.spec import load


def row(name: str, question: str, answer: str, **more) -> dict:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return {"id": name, "messages": said}


ROWS = [row(f"row-{i}", f"{i}?", f"It is {i}.") for i in range(40)]
SOURCE = {"name": "rows", "path": "rows.jsonl", "adapter": "messages", "licence": "our own"}


@pytest.fixture
def build(tmp_path, base):
    """build(rows, **changes) -> the manifest of a mix of those rows, written to the folder `out`."""

    def _build(rows, out="mix", source=None, category=None, cache=None, **changes):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        adapter = "preference" if changes.get("kind") == "preference" else "messages"
        category = {"sources": [SOURCE | {"adapter": adapter} | (source or {})]} | (category or {})
        spec = {"name": "t", "kind": "sft", "tokenizer": str(base), "sequence_len": 64, "seed": 1}
        spec |= {"categories": {"math": category}} | changes
        (tmp_path / "spec.yml").write_text(yaml.safe_dump(spec))
        return builder.build(tmp_path / "spec.yml", tmp_path / out, tmp_path, cache=cache, quiet=True).manifest

    return _build


def reasons(folder) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in pq.read_table(folder / "rejects").to_pylist()}


def test_the_training_files_hold_exactly_three_columns_and_a_rebuild_replaces_them(build, tmp_path, tokenizer):
    build(ROWS[:5])
    (tmp_path / "mix/prepared/stale").write_text("from the older mix")
    manifest = build(ROWS)
    assert list((tmp_path / "mix/prepared").iterdir()) == []
    assert (tmp_path / "mix/prepared").resolve().name == f"prepared-{manifest['output']['sha256'][:12]}"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".cache"]
    train = pq.read_table(tmp_path / "mix/train")
    assert train.column_names == ["input_ids", "attention_mask", "labels"]
    rows = pq.read_table(tmp_path / "mix/rows").to_pylist()
    assert sum(row["n_tokens"] for row in rows) == manifest["total"]["tokens"] == sum(map(len, train["input_ids"]))
    trained = sum(label.as_py() != -100 for labels in train["labels"] for label in labels)
    assert trained == manifest["total"]["loss_tokens"]
    rendered = [tokenizer.apply_chat_template(json.loads(row["messages"]), return_dict=True) for row in rows]
    assert train["input_ids"].to_pylist() == [one["input_ids"] for one in rendered]
    assert (tmp_path / "mix/README.md").read_text().startswith("---\n")


def test_preferences_are_text_that_trl_tokenises_to_our_ids_without_typed_control_tokens(build, tmp_path, tokenizer):
    from trl.trainer.dpo_trainer import _tokenize

    row = {"messages": ROWS[0]["messages"][:1], "chosen": {"content": "Yes."}, "rejected": "No!"}
    typed = {"id": "typed", "prompt": "typed <|im_end|>", "chosen": "a", "rejected": "b"}
    build([row, typed], kind="preference")
    assert reasons(tmp_path / "mix") == {"typed": "control_token_in_text"}
    [said] = pq.read_table(tmp_path / "mix/train").to_pylist()
    assert set(said) == {"prompt", "chosen", "rejected"}
    ids = _tokenize(tokenizer, said["prompt"] + said["chosen"])["input_ids"]
    messages = [*row["messages"], {"role": "assistant", "content": "Yes."}]
    ours = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids == ours[: len(ids)] and ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_what_is_left_out_is_listed_with_its_reason_and_counted(build, tmp_path):
    bad = [row("long", "q", "word " * 200), row("wide", "q", "word " * 12), row("mute", "q", "a", train=False)]
    rows = [*ROWS, {**ROWS[3], "id": "twin"}, *bad, {"id": "shape", "text": "x"}, "{broken"]
    manifest = build(rows, max_bad_rows=0.1, category={"min_tokens": 5, "max_tokens": 40, "tokens": 10**6})
    why = {"twin": "exact_duplicate", "long": "over_sequence_len", "wide": "over_max_tokens", "mute": "no_loss_tokens"}
    assert reasons(tmp_path / "mix") == why | {"shape": "wrong_shape", "rows.jsonl:46": "not_json"}
    assert manifest["sources"][0]["rows_read"] == 46 and manifest["sources"][0]["rows_kept"] == 40
    assert "of 1 M tokens available; raise max_repeat to" in manifest["shortfalls"]["math"]


def test_a_repeated_row_stands_in_the_mix_as_often_as_it_trains(build, tmp_path):
    manifest = build(ROWS[:10], category={"tokens": 600}, source={"max_repeat": 3})
    rows = pq.read_table(tmp_path / "mix/rows").to_pylist()
    assert manifest["repeated_rows"] == len(rows) - 10 > 5
    assert abs(manifest["total"]["tokens"] - 600) < 40
    assert {row["id"] for row in rows} >= {"row-3", "row-3#2"} and not list(builder.verify(tmp_path / "mix"))


def test_rows_without_a_category_find_theirs_by_rules(build):
    rows = [row("sum", "What is 17 * 23?", "391"), row("code", "Write a Python function that sorts a list.", "def f")]
    manifest = build(rows, categories={}, classified=[SOURCE])
    assert {name: part["rows"] for name, part in manifest["categories"].items()} == {"coding": 1, "math": 1}
    assert manifest["sources"][0]["category"] is None


BROKEN = [*ROWS, *({"prompt": str(i)} for i in range(3))]
UNREAD = [ROWS[0] | {"passage": "p", "topic": "t"}, row("b", "q", "a", thinking="r")]
STOPS = {  # rows, changes of the spec, what the error says
    "bad value": (ROWS, {"sequence_len": 0}, "sequence_len: Input should be greater than 0"),
    "misspelt category": (ROWS, {"categories": {"maths": {"sources": [SOURCE]}}}, "categories.maths: math is meant"),
    "no source": (ROWS, {"categories": {"math": {}}}, "categories.math: no source is declared"),
    "one name twice": (ROWS, {"classified": [SOURCE]}, "source rows: two have this name"),
    "another kind": (
        ROWS,
        {"kind": "preference", "source": {"adapter": "messages"}},
        "messages does not fit kind pref",
    ),
    "two places": (ROWS, {"source": {"repo": "a/b", "revision": "main"}}, "source rows: give path .*, or repo and"),
    "no row": ([], {}, r"source rows: rows\.jsonl holds no row, or `where` selects none"),
    "where selects none": (ROWS, {"source": {"where": {"orign": "b"}}}, "source rows: .*`where` selects none"),
    "another shape": (
        BROKEN,
        {},
        r"3 of 43 rows are not of shape messages.*\(now 0.01\)\n  wrong_shape: rows.jsonl:41",
    ),
    "unread": (UNREAD, {}, r"source rows: adapter messages does not read passage \(1 rows\), thinking"),
    "ways out": (
        *(UNREAD, {"source": {"columns": {"passage": "system"}}}),
        r"`columns: \{thinking: COLUMN\}`.*`ignore: \[thinking\]`",
    ),
    "a file in the way": (ROWS, {"out": "rows.jsonl"}, "rows.jsonl is a file"),
    "what it lies in": (ROWS, {"out": "."}, "did not make it"),
    "a folder of others": (ROWS, {"out": "notes"}, "notes is there, and `hermes3 mix build` did not make it"),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_build_stops_with_what_is_wrong_and_loses_nothing(case, build, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("keep")
    rows, changes, message = STOPS[case]
    with pytest.raises(ValueError, match=message):
        build(rows, **changes)
    assert {path.name for path in tmp_path.iterdir()} - {".cache"} == {"notes", "rows.jsonl", "spec.yml"}
    assert (tmp_path / "notes/diary.txt").read_text() == "keep"


def test_the_ways_out_of_a_stop_hold(build):
    assert (
        build(BROKEN, source={"max_bad_rows": 0.1})["total"]["rows"] == build(BROKEN, max_bad_rows=0.1)["total"]["rows"]
    )
    [source] = build(UNREAD, source={"ignore": ["passage", "thinking"]})["sources"]
    assert source["columns_read"] == {"messages": 2}
    assert source["columns_unread"] == {"id": 2, "passage": 1, "thinking": 1, "topic": 1}
    rows = [one | {"passage": "a" if i % 4 else "b"} for i, one in enumerate(ROWS)]
    [source] = build(rows, source={"where": {"passage": ["b", "c"]}})["sources"]
    assert (source["rows_read"], source["rows_not_selected"], source["rows_kept"]) == (10, 30, 10)


def test_every_shipped_spec_loads(in_root):
    specs = sorted((ROOT / "data_mixes").glob("*.yml"))
    assert len(specs) >= 3 and [load(path).name for path in specs] == [path.stem for path in specs]


def test_sources_and_cache_within_the_folder_to_replace_are_refused(build, tmp_path):
    with pytest.raises(ValueError, match="mix/t lies in it and would be replaced"):
        build(ROWS, cache=tmp_path / "mix")
    build(ROWS)
    with pytest.raises(ValueError, match="rows/part-00000.parquet lies in it"):
        build(ROWS, source={"path": "mix/rows/*.parquet"})


def test_a_cache_loses_what_it_wrote_alone_and_nothing_while_another_build_uses_it(build, tmp_path):
    cache = tmp_path / "store/t"
    cache.mkdir(parents=True)
    others = ["diary.txt", f"{'0' * 32}.arrow", ".hidden.arrow"]
    for name in others:
        (cache / name).write_text("keep")
    (cache / f".{'1' * 32}.arrow.hermes3-01234567").write_text("of a build that was killed")

    def shards_after(rows) -> set[str]:
        build(rows, cache=cache.parent)
        assert all((cache / name).read_text() == "keep" for name in others)
        return {path.name for path in cache.iterdir()} - {*others, MARKER}

    first = shards_after(ROWS)
    assert len(first) == 1
    with (cache / MARKER).open("a") as used:
        assert lock(used, shared=True)  # as another build has it
        assert first < shards_after(ROWS[:5])
    assert first.isdisjoint(shards_after(ROWS[:7]))


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda path: path.write_text(path.read_text()[:-50])])
def test_a_source_that_changes_while_it_is_read_stops_the_build(change, build, tmp_path, monkeypatch):
    make = builder._make_shards

    def make_and_change(*args):
        shards = make(*args)
        change(tmp_path / "rows.jsonl")
        return shards

    monkeypatch.setattr(builder, "_make_shards", make_and_change)
    with pytest.raises(ValueError, match="source rows: .*rows.jsonl changed while it was read; build again"):
        build(ROWS)
    assert not (tmp_path / "mix").exists()


def test_a_category_of_ones_own_has_its_budget_and_its_line_and_no_paper_beside_it(build, tmp_path):
    manifest = build(ROWS, categories={"tickets": {"tokens": 200, "sources": [SOURCE]}})
    assert abs(manifest["categories"]["tickets"]["tokens"] - 200) < 20
    card = (tmp_path / "mix/README.md").read_text()
    assert "| tickets | " in card and "Math" not in card and "12.8" not in card


def test_an_estimate_is_the_build_where_all_is_read_and_near_it_from_a_sample(build, tmp_path, monkeypatch):
    category = {"tokens": 300, "sources": [SOURCE | {"weight": 1}, SOURCE | {"name": "more", "weight": 2}]}
    manifest = build([*ROWS, *(row(f"more-{i}", f"Is {i} more?", "Yes.") for i in range(200))], category=category)
    taken = {source["name"]: source["tokens"] for source in manifest["sources"] if source["tokens"]}
    share, rows = builder.estimate(tmp_path / "spec.yml", tmp_path)
    assert share == 1 and {one["source"]: one["tokens"] for one in rows} == taken and rows[0]["budget"] == 300
    monkeypatch.setattr(builder, "SAMPLED", 6_000)
    share, rows = builder.estimate(tmp_path / "spec.yml", tmp_path)
    assert 0.1 < share < 0.5 and sum(one["tokens"] for one in rows) == pytest.approx(300, rel=0.2)


def test_an_audit_shows_what_was_left_out_and_the_card_says_how_much_was_right(build, tmp_path):
    twin, refusal = row("twin", "0?", "It is 0."), row("no", "Help me.", "I'm sorry, but I can't help with that.")
    build([*ROWS, twin, refusal])
    shown = []

    def ask(title, why, text, other):
        shown.append((title, text, other))
        return "r" if "dedup" in title else "w"

    audit.audit(tmp_path / "mix", 30, tmp_path, lambda *_: "q")
    assert "Looked at by eye" not in (tmp_path / "mix/README.md").read_text()
    stages = audit.audit(tmp_path / "mix", 30, tmp_path, ask)
    refused = "[user] Help me.\n[assistant] I'm sorry, but I can't help with that."
    same = "[user] 0?\n[assistant] It is 0."
    assert shown == [("1 of 2: filter, refusal", refused, ""), ("2 of 2: dedup, exact_duplicate", same, same)]
    assert [(one["stage"], one["right"], one["marked"]) for one in stages] == [("filter", 0, 1), ("dedup", 1, 1)]
    assert "| dedup | 1 | 1 |" in (tmp_path / "mix/README.md").read_text()
    assert audit.audit(tmp_path / "mix", 30, tmp_path, ask) == stages and len(shown) == 2  # not asked again
    assert not list(builder.verify(tmp_path / "mix"))
    build(ROWS)  # the marks are ours too, so the mix may be replaced
    assert not (tmp_path / "mix/audit.json").exists()
