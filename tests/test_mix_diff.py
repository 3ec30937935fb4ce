"""The diff of two mixes: rows matched by hash, and what became of those that are in one of them alone."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hermes3.mix.diff import as_text, diff

REJECT = pa.schema([(name, pa.string()) for name in ("id", "source", "stage", "reason", "detail")])


def write_mix(folder: Path, rows: list[tuple], rejects: list[tuple] = (), seed: int = 1, **files: str) -> Path:
    """`rows`: (source, id, category, tokens, what it says); `rejects`: (source, id, stage, reason)."""
    for name in ("rows", "rejects"):
        (folder / name).mkdir(parents=True)
    names = ("source", "id", "category", "n_tokens", "hash")
    table = [dict(zip(names, row, strict=True)) | {"n_loss_tokens": row[3] // 2} for row in rows]
    table = [row | {"hash": f"{row['hash']:>064}"} for row in table]
    pq.write_table(pa.Table.from_pylist(table), folder / "rows/part-00000.parquet")
    left = [dict(zip(("source", "id", "stage", "reason"), one, strict=True), detail="") for one in rejects]
    pq.write_table(pa.Table.from_pylist(left, schema=REJECT), folder / "rejects/part-00000.parquet")
    categories = sorted({row[2] for row in rows})
    manifest = {
        "name": folder.name,
        "spec": {"seed": seed, "categories": {"math": {"sources": [{"name": name} for name in files]}}},
        "tokenizer": {"sha256": "ab" * 32},
        "template": {"sha256": "cd" * 32},
        "versions": {"pyarrow": "26"},
        "sources": [{"name": name, "rows_read": 9, "files": {f"{name}.jsonl": sha}} for name, sha in files.items()],
        "categories": {name: {"tokens": sum(row[3] for row in rows if row[2] == name)} for name in categories},
        "total": {"rows": len(rows), "tokens": sum(row[3] for row in rows), "loss_tokens": 0},
        "output": {"sha256": f"{seed:064}"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    a = write_mix(
        tmp_path / "a",
        [
            ("sums", "1", "math", 100, "one"),
            ("sums", "2", "math", 200, "two"),
            ("sums", "3", "math", 300, "three"),
            ("sums", "4", "math", 400, "four"),
            ("sums", "5", "math", 10, "thrice"),
            ("sums", "5#2", "math", 10, "thrice"),
            ("sums", "5#3", "math", 10, "thrice"),
            ("sums", "6", "math", 5, "twice in a"),
            ("sums", "6#2", "math", 5, "twice in a"),
            ("plays", "1", "roleplaying", 50, "scene"),
            ("gone", "1", "coding", 70, "code"),
        ],
        sums="s" * 64,
        plays="p" * 64,
        gone="g" * 64,
    )
    b = write_mix(
        tmp_path / "b",
        [
            ("sums", "1", "math", 101, "one"),
            ("sums", "3", "math", 300, "three, said in another way"),
            ("sums", "5", "math", 10, "thrice"),
            ("sums", "5#2", "math", 10, "thrice"),
            ("plays", "1", "domain_expert", 50, "scene"),
            ("new", "1", "coding", 80, "other code"),
        ],
        [
            ("sums", "2", "filter", "refusal"),
            ("sums", "6", "filter", "refusal"),
            ("plays", "2", "filter", "refusal"),
            ("plays", "4", "dedup", "exact"),
        ],
        seed=2,
        sums="t" * 64,
        plays="p" * 64,
        new="n" * 64,
    )
    return a, b


def test_rows_are_matched_by_what_they_say_and_as_often_as_they_are_used(two):
    rows = diff(*two)["rows"]
    sums = rows["source"]["sums"]
    assert sums["both"] == {"rows": 3, "tokens": 101 + 20, "loss_tokens": 50 + 10}  # as b counts them
    assert sums["only_a"] == {"rows": 6, "tokens": 200 + 300 + 400 + 10 + 5 + 5, "loss_tokens": 455 + 4}
    assert sums["only_b"] == {"rows": 1, "tokens": 300, "loss_tokens": 150}
    assert rows["source"]["gone"]["only_a"]["rows"] == 1 and rows["source"]["gone"]["both"]["rows"] == 0
    assert rows["category"]["domain_expert"]["both"]["rows"] == 1
    counted = {side: sum(part[side]["rows"] for part in rows["category"].values()) for side in sums}
    assert counted["only_a"] + counted["both"] == 11 and counted["only_b"] + counted["both"] == 6


def test_what_became_of_rows_that_one_mix_has_alone(two):
    why = diff(*two)["why"]
    assert why["only_a"] == {
        "filter/refusal": 3,  # one of them twice
        "no trace: its source holds other rows": 1,
        "its source is not read": 1,
        "kept under the same id with other words": 1,
        "used less often": 1,
    }
    assert why["only_b"] == {
        "its source is not read": 1,
        "kept under the same id with other words": 1,
    }


def test_settings_sources_and_tokens_that_differ_are_named(two):
    found = diff(*two)
    assert found["settings"]["spec.seed"] == [1, 2]
    assert set(found["settings"]) == {"spec.seed", *(f"spec.categories.math.sources.{n}.name" for n in ("gone", "new"))}
    assert found["sources"] == {
        "sums": "changed, 9 -> 9 rows read: sums.jsonl",
        "gone": "removed, 9 rows read",
        "new": "added, 9 rows read",
    }
    assert found["tokens"]["math"] == [1040, 421] and found["tokens"]["domain_expert"] == [0, 50]
    assert found["moved"] == {"roleplaying to domain_expert": 1}


def test_the_text_says_what_the_data_says(two):
    text = as_text(diff(*two))
    for line in ("spec.seed: 1 -> 2", "gone: removed, 9 rows read", "1 from roleplaying to domain_expert"):
        assert f"  {line}\n" in text
    assert "filter/refusal" in text and "-619" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_mix_does_not_differ_from_itself(two):
    found = diff(two[0], two[0])
    assert not (found["settings"] or found["sources"] or found["moved"])
    assert found["why"] == {"only_a": {}, "only_b": {}}
    assert "byte for byte" in as_text(found)


def test_a_folder_that_is_no_mix_is_named(two, tmp_path):
    with pytest.raises(ValueError, match="empty/manifest.json: no such file"):
        diff(two[0], tmp_path / "empty")


def test_a_hundred_thousand_rows_take_no_time(tmp_path):
    rows = [("sums", str(i), "math", 10, str(i)) for i in range(100_000)]
    a = write_mix(tmp_path / "a", rows[:90_000], sums="s" * 64)
    left = [("sums", str(i), "budget", "over_budget") for i in range(50_000)]
    b = write_mix(tmp_path / "b", rows[50_000:], left, sums="s" * 64)
    start = time.perf_counter()
    found = diff(a, b)
    assert time.perf_counter() - start < 10  # 0.3 s on two idle cores
    assert found["why"] == {
        "only_a": {"budget/over_budget": 50_000},
        "only_b": {"no trace: its source holds other rows": 10_000},
    }
    assert found["rows"]["category"]["math"]["both"]["rows"] == 40_000
