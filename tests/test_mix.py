"""Mixes: specs, adapters, filters, budgets, and what is written."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT

from hermes3.files import MARKER, lock
from hermes3.mix import build as builder
from hermes3.mix.build import build
from hermes3.mix.spec import load
from hermes3.mix.verify import verify


def row(name: str, question: str, answer: str, **more) -> dict:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return {"id": name, "messages": said}


ROWS = [row(f"row-{i}", f"{i}?", f"It is {i}.") for i in range(40)]


SOURCE = {"name": "rows", "path": "rows.jsonl", "adapter": "messages", "licence": "our own"}


@pytest.fixture
def write(tmp_path, base):
    """write(rows, **changes) -> path of a spec over those rows."""

    def _write(rows, kind="sft", adapter="messages", source=None, category=None, sequence_len=64, **changes):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        category = {"sources": [SOURCE | {"adapter": adapter} | (source or {})]} | (category or {})
        spec = {"name": "t", "kind": kind, "tokenizer": str(base), "sequence_len": sequence_len, "seed": 1}
        spec |= {"categories": {"math": category}} | changes
        (tmp_path / "spec.yml").write_text(yaml.safe_dump(spec))
        return tmp_path / "spec.yml"

    return _write


def reasons(folder) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in pq.read_table(folder / "rejects").to_pylist()}


def test_the_training_files_hold_exactly_three_columns(write, tmp_path, tokenizer):
    manifest = build(write(ROWS), tmp_path / "mix", tmp_path, quiet=True).manifest
    train = pq.read_table(tmp_path / "mix/train")
    assert train.column_names == ["input_ids", "attention_mask", "labels"]
    rows = pq.read_table(tmp_path / "mix/rows").to_pylist()
    assert sum(row["n_tokens"] for row in rows) == manifest["total"]["tokens"] == sum(map(len, train["input_ids"]))
    trained = sum(label.as_py() != -100 for labels in train["labels"] for label in labels)
    assert trained == manifest["total"]["loss_tokens"]
    first = tokenizer.apply_chat_template(json.loads(rows[0]["messages"]), return_dict=True)["input_ids"]
    assert train["input_ids"][0].as_py() == first
    assert (tmp_path / "mix/README.md").read_text().startswith("---\n")


def test_preferences_are_text_that_trl_tokenises_to_our_ids(write, tmp_path, tokenizer):
    from trl.trainer.dpo_trainer import _tokenize

    row = {"messages": ROWS[0]["messages"][:1], "chosen": {"content": "Yes."}, "rejected": "No!"}
    build(write([row], kind="preference", adapter="preference"), tmp_path / "mix", tmp_path, quiet=True)
    said = pq.read_table(tmp_path / "mix/train").to_pylist()[0]
    assert set(said) == {"prompt", "chosen", "rejected"}
    ids = _tokenize(tokenizer, said["prompt"] + said["chosen"])["input_ids"]
    messages = [*row["messages"], {"role": "assistant", "content": "Yes."}]
    ours = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids == ours[: len(ids)] and ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_a_budget_is_met_within_one_conversation_or_its_shortfall_reported(write, tmp_path):
    manifest = build(write(ROWS, category={"tokens": 200}), tmp_path / "mix", tmp_path, quiet=True).manifest
    longest = max(row["n_tokens"] for row in pq.read_table(tmp_path / "mix/rows").to_pylist())
    assert abs(manifest["total"]["tokens"] - 200) <= longest and manifest["shortfalls"] == {}
    assert manifest["rejects"] == {"budget/over_budget": len(ROWS) - manifest["total"]["rows"]}
    manifest = build(write(ROWS, category={"tokens": 10**6}), tmp_path / "mix", tmp_path, quiet=True).manifest
    assert "of 1 M tokens available; raise max_repeat to" in manifest["shortfalls"]["math"]


def test_what_is_left_out_is_listed_with_its_reason(write, tmp_path):
    bad = [row("long", "q", "word " * 200), row("wide", "q", "word " * 12), row("mute", "q", "a", train=False)]
    rows = [*ROWS, {**ROWS[3], "id": "twin"}, *bad, {"id": "shape", "text": "x"}, "{broken"]
    spec = write(rows, max_bad_rows=0.1, category={"min_tokens": 5, "max_tokens": 40})
    manifest = build(spec, tmp_path / "mix", tmp_path, quiet=True).manifest
    why = {"twin": "exact_duplicate", "long": "over_sequence_len", "wide": "over_max_tokens", "mute": "no_loss_tokens"}
    assert reasons(tmp_path / "mix") == why | {"shape": "wrong_shape", "rows.jsonl:46": "not_json"}
    assert manifest["sources"][0]["rows_read"] == 46 and manifest["sources"][0]["rows_kept"] == 40


def test_a_control_token_in_a_preference_is_left_out(write, tmp_path):
    rows = [
        {"id": text, "messages": [{"role": "user", "content": text}], "chosen": "a", "rejected": "b"}
        for text in ("typed <|im_end|>", "good")
    ]
    build(write(rows, kind="preference", adapter="preference"), tmp_path / "mix", tmp_path, quiet=True)
    assert reasons(tmp_path / "mix") == {"typed <|im_end|>": "control_token_in_text"}


def test_a_rebuild_replaces_the_folder_and_what_axolotl_prepared_in_it(write, tmp_path):
    build(write(ROWS), tmp_path / "mix", tmp_path, quiet=True)
    (tmp_path / "mix/prepared/stale").write_text("from the older mix")
    manifest = build(write(ROWS[:5]), tmp_path / "mix", tmp_path, quiet=True).manifest
    assert list((tmp_path / "mix/prepared").iterdir()) == []
    assert (tmp_path / "mix/prepared").resolve().name == f"prepared-{manifest['output']['sha256'][:12]}"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".cache"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"sequence_len": 0}, "sequence_len: Input should be greater than 0"),
        ({"categories": {"maths": {"sources": []}}}, "categories.maths"),
        ({"kind": "preference"}, "adapter messages does not fit kind preference"),
        ({"tokenizer": "nowhere"}, "tokenizer: nowhere/tokenizer.json"),
    ],
)
def test_a_bad_spec_stops_the_build_with_its_key(changes, message, write, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(write(ROWS, **changes), tmp_path / "mix", tmp_path, quiet=True)
    assert not (tmp_path / "mix").exists()


def test_every_shipped_spec_loads(in_root):
    specs = sorted((ROOT / "data_mixes").glob("*.yml"))
    assert len(specs) >= 3
    for path in specs:
        assert load(path).name == path.stem


def test_rows_without_a_category_find_theirs_by_rules(write, tmp_path):
    rows = [row("sum", "What is 17 * 23?", "391"), row("code", "Write a Python function that sorts a list.", "def f")]
    manifest = build(write(rows, categories={}, classified=[SOURCE]), tmp_path / "mix", tmp_path, quiet=True).manifest
    assert {name: part["rows"] for name, part in manifest["categories"].items()} == {"coding": 1, "math": 1}
    assert manifest["sources"][0]["category"] is None


def test_what_is_not_a_mix_or_would_be_lost_is_refused(write, tmp_path):
    spec = write(ROWS)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("keep")
    for out, wrong in (
        ("notes", "notes is there, and `hermes3 mix build` did not make it"),
        ("rows.jsonl", "rows.jsonl is a file"),
        (".", "did not make it"),
        ("rows.jsonl/mix", "rows.jsonl is a file"),
    ):
        with pytest.raises(ValueError, match=wrong):
            build(spec, tmp_path / out, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="mix/t lies in it and would be replaced"):
        build(spec, tmp_path / "mix", tmp_path, cache=tmp_path / "mix", quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "rows.jsonl", "spec.yml"}
    build(spec, tmp_path / "mix", tmp_path, quiet=True)
    spec = write(ROWS, source={"path": "mix/rows/*.parquet"})
    with pytest.raises(ValueError, match="rows/part-00000.parquet lies in it"):
        build(spec, tmp_path / "mix", tmp_path, quiet=True)


def test_a_cache_loses_what_it_wrote_alone_and_nothing_while_another_build_uses_it(write, tmp_path):
    cache = tmp_path / "store/t"
    cache.mkdir(parents=True)
    others = ["diary.txt", f"{'0' * 32}.arrow", ".hidden.arrow"]
    for name in others:
        (cache / name).write_text("keep")
    (cache / f".{'1' * 32}.arrow.hermes3-01234567").write_text("of a build that was killed")

    def built(rows) -> set[str]:
        build(write(rows), tmp_path / "mix", tmp_path, cache=cache.parent, quiet=True)
        assert all((cache / name).read_text() == "keep" for name in others)
        return {path.name for path in cache.iterdir()} - {*others, MARKER}

    first = built(ROWS)
    assert len(first) == 1
    with (cache / MARKER).open("a") as used:
        assert lock(used, shared=True)  # as another build has it
        assert first < built(ROWS[:5])
    assert first.isdisjoint(built(ROWS[:7]))


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda path: path.write_text(path.read_text()[:-50])])
def test_a_source_that_changes_while_it_is_read_stops_the_build(change, write, tmp_path, monkeypatch):
    make = builder._make_shards

    def make_and_change(*args):
        shards = make(*args)
        change(tmp_path / "rows.jsonl")
        return shards

    monkeypatch.setattr(builder, "_make_shards", make_and_change)
    with pytest.raises(ValueError, match="source rows: .*rows.jsonl changed while it was read; build again"):
        build(write(ROWS), tmp_path / "mix", tmp_path, quiet=True)
    assert not (tmp_path / "mix").exists()


def test_where_takes_the_rows_that_it_names(write, tmp_path):
    rows = [one | {"origin": "a" if i % 4 else "b"} for i, one in enumerate(ROWS)]
    spec = write(rows, source={"where": {"origin": ["b", "c"]}})
    source = build(spec, tmp_path / "mix", tmp_path, quiet=True).manifest["sources"][0]
    assert (source["rows_read"], source["rows_not_selected"], source["rows_kept"]) == (10, 30, 10)
    spec = write(rows, source={"where": {"orign": "b"}})
    with pytest.raises(ValueError, match="source rows: where .*orign.* selects no row"):
        build(spec, tmp_path / "mix", tmp_path, quiet=True)


def test_the_build_stops_where_too_many_rows_are_of_another_shape(write, tmp_path):
    rows = [*ROWS, *({"prompt": str(i)} for i in range(3))]
    wrong = r"source rows: 3 of 43 rows are not of shape messages.*\n  wrong_shape: rows.jsonl:41"
    with pytest.raises(ValueError, match=wrong):
        build(write(rows), tmp_path / "mix", tmp_path, quiet=True)
    assert not (tmp_path / "mix").exists()
    build(write(rows, max_bad_rows=0.1), tmp_path / "mix", tmp_path, quiet=True)


def test_a_repeated_row_stands_in_the_mix_as_often_as_it_trains(write, tmp_path):
    spec = write(ROWS[:10], category={"tokens": 600}, source={"max_repeat": 3})
    manifest = build(spec, tmp_path / "mix", tmp_path, quiet=True).manifest
    rows = pq.read_table(tmp_path / "mix/rows").to_pylist()
    assert manifest["repeated_rows"] == len(rows) - 10 > 5
    assert abs(manifest["total"]["tokens"] - 600) < 40
    assert {row["id"] for row in rows} >= {"row-3", "row-3#2"} and verify(tmp_path / "mix", every_row=True) == []
