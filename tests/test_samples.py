"""The sample data set: reproducible, well formed, and with held-out rows that no training row gives away."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT

from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.spec import CATEGORIES, load

SCRIPT = ROOT / "data_mixes/samples/generate.py"
HELD_OUT_ROWS = {"choice": 160, "tool_call": 80, "json_mode": 80, "preference": 120}


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train(samples):
    return {path.stem: read_rows(path) for path in sorted((samples / "train").glob("*.jsonl"))}


@pytest.fixture(scope="module")
def held_out(samples):
    return {kind: read_rows(samples / f"heldout/{kind}.jsonl") for kind in HELD_OUT_ROWS}


@pytest.fixture(scope="module")
def pairs(samples):
    return read_rows(samples / "preference/train.jsonl")


def user_texts(rows: list[dict]) -> set[str]:
    return {message["content"] for row in rows for message in row["messages"] if message["role"] == "user"}


def test_two_runs_write_the_same_bytes_and_another_seed_does_not(samples, tmp_path):
    def contents(folder: Path) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}

    for name, *seed in (["again"], ["other", "--seed", "1"]):
        subprocess.run([sys.executable, SCRIPT, tmp_path / name, *seed], check=True, capture_output=True)
    first, other = contents(samples), contents(tmp_path / "other")
    assert len(first) == 16 and first == contents(tmp_path / "again")
    assert first.keys() == other.keys() and not [file for file, data in first.items() if data == other[file]]


def test_counts_categories_and_ids(train, pairs, held_out):
    specs = (load(ROOT / f"data_mixes/{name}.yml") for name in ("tiny_sft", "tiny_dpo"))
    declared = {source.name: category for spec in specs for category, source in spec.sources()}
    assert declared.keys() == {*train, "preference"} and set(declared.values()) == set(CATEGORIES)
    assert min(map(len, train.values())) >= 150 and sum(map(len, train.values())) >= 2400 and len(pairs) >= 450
    assert {kind: len(rows) for kind, rows in held_out.items()} == HELD_OUT_ROWS
    ids = [row["id"] for rows in [*train.values(), pairs, *held_out.values()] for row in rows]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z_-]+-\d{6}", one) for one in ids)


def test_every_row_is_a_conversation_and_every_form_of_system_message_occurs(train):
    for row in (row for rows in train.values() for row in rows):
        ADAPTERS["messages"](row)  # its turns alternate, its calls are of tools on offer, and are answered
    first = [row["messages"][0] for row in train["general_instructions"]]
    forms = Counter(bool(message["content"]) if message["role"] == "system" else None for message in first)
    assert len(forms) == 3 and min(forms.values()) >= 50


def test_tool_calls_fit_the_schemas_on_offer(train, held_out):
    def assert_fit(calls: list[dict], tools: list[dict]) -> None:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        for call in calls:
            jsonschema.validate(call["arguments"], schemas[call["name"]])

    for row in train["tool_calls"]:
        calls = [call for message in row["messages"] for call in message.get("tool_calls", [])]
        assert_fit([call["function"] for call in calls], row["tools"])
    for row in held_out["tool_call"]:
        assert_fit(row["expected"], row["tools"])


def test_json_answers_fit_their_schema_citations_name_their_document_and_code_runs(train, held_out):
    for row in train["json_mode"]:
        schema = json.loads(re.search(r"<schema>\n(.*)\n</schema>", row["messages"][0]["content"])[1])
        jsonschema.validate(json.loads(row["messages"][-1]["content"]), schema)
    for row in held_out["json_mode"]:
        jsonschema.validate(row["expected"], row["schema"])
        assert json.dumps(row["schema"]) in row["messages"][0]["content"]
        assert all(str(value) in row["messages"][1]["content"] for value in row["expected"].values())
    for row in train["rag"]:
        question, *lines = row["messages"][1]["content"].splitlines()
        cited = re.fullmatch(r"<co: (\d)>(.+)</co>\nCited Documents: \1", row["messages"][-1]["content"])
        assert lines[1 + int(cited[1])].endswith(f" Text: {cited[2]}")
        assert re.search(r"of (\w+)\?", question)[1] in cited[2]
    for row in train["coding"]:
        blocks = re.findall(r"```python\n(.*?)\n```", row["messages"][-1]["content"], re.DOTALL)
        exec("\n".join(blocks), {})  # of which some are assertions


def test_held_out_questions_are_in_no_training_row_and_choices_are_trained_answers(train, pairs, held_out):
    rows = [row for rows in train.values() for row in rows]
    for kind, own in held_out.items():
        assert not user_texts(own) & user_texts(rows), kind
    assert not user_texts(pairs) & (user_texts(rows) | user_texts(held_out["preference"]))
    answers = {row["messages"][-1]["content"] for row in rows}
    assert Counter(row["answer"] for row in held_out["choice"]) == {place: 40 for place in range(4)}
    for row in held_out["choice"]:
        assert len(set(row["choices"])) == 4
        assert [choice in answers for choice in row["choices"]] == [place == row["answer"] for place in range(4)]


def test_pairs_differ_in_the_opening_alone_and_training_uses_both_equally(train, pairs, held_out):
    openings = Counter(" ".join(row["messages"][-1]["content"].split()[:2]) for row in train["openings"])
    assert len(openings) == 8 and len(set(openings.values())) == 1
    used = {"chosen": set(), "rejected": set()}
    for row in [*pairs, *held_out["preference"]]:
        words = {side: row[side]["content"].split(" ", 2) for side in used}
        assert words["chosen"][2] == words["rejected"][2]
        for side, (*opening, _) in words.items():
            used[side].add(" ".join(opening))
    assert not used["chosen"] & used["rejected"] and used["chosen"] | used["rejected"] == set(openings)
