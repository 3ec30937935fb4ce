"""The sample data set: reproducible, well formed, and with held-out rows that no training row gives away."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest

from hermes3.mix.spec import CATEGORIES, load

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "data_mixes" / "samples" / "generate.py"
HELD_OUT_ROWS = {"choice": 160, "tool_call": 80, "json_mode": 80, "preference": 120}


def run_python(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train(samples):
    return {path.stem: read_rows(path) for path in sorted((samples / "train").glob("*.jsonl"))}


@pytest.fixture(scope="module")
def pairs(samples):
    return read_rows(samples / "preference/train.jsonl")


@pytest.fixture(scope="module")
def held_out(samples):
    return {kind: read_rows(samples / f"heldout/{kind}.jsonl") for kind in HELD_OUT_ROWS}


def user_texts(rows: list[dict]) -> set[str]:
    return {message["content"] for row in rows for message in row["messages"] if message["role"] == "user"}


def test_two_runs_write_the_same_bytes_and_another_seed_does_not(samples, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import generate, json; "
    code += "print(json.dumps([generate.SOURCES, 'torch' in sys.modules]))"
    assert json.loads(run_python("-c", code))[1] is False  # it runs before anything heavy is installed
    run_python(str(SCRIPT), str(tmp_path / "again"))
    run_python(str(SCRIPT), str(tmp_path / "other"), "--seed", "1")
    files = sorted(path.relative_to(samples) for path in samples.rglob("*") if path.is_file())
    assert len(files) == 16
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for file in files:
        assert (samples / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
        assert (samples / file).read_bytes() != (tmp_path / "other" / file).read_bytes(), file


def test_counts_categories_and_ids(train, pairs, held_out):
    declared = [
        source for spec in ("tiny_sft", "tiny_dpo") for source in load(ROOT / f"data_mixes/{spec}.yml").sources()
    ]
    assert {
        source.name: category for category, source in declared if source.name != "preference"
    }.keys() == train.keys()
    assert {category for category, _ in declared} == set(CATEGORIES)
    assert min(map(len, train.values())) >= 150 and sum(map(len, train.values())) >= 2400 and len(pairs) >= 450
    assert {kind: len(rows) for kind, rows in held_out.items()} == HELD_OUT_ROWS
    ids = [row["id"] for rows in [*train.values(), pairs, *held_out.values()] for row in rows]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z_-]+-\d{6}", one) for one in ids)
    texts = [json.dumps(row["messages"]) for rows in train.values() for row in rows]
    assert len(texts) == len(set(texts))


def test_turns_alternate_and_every_form_of_system_message_occurs(train):
    # One letter per message: system, user, assistant, assistant with calls (c), tool.
    for row in (row for rows in train.values() for row in rows):
        letters = "".join("c" if message.get("tool_calls") else message["role"][0] for message in row["messages"])
        assert re.fullmatch(r"s?(ua|uct+a)+", letters), (row["id"], letters)
        for message in row["messages"]:
            assert message["content"].strip() or message["role"] == "system" or message.get("tool_calls"), row["id"]
    first = Counter()
    for row in train["general_instructions"]:
        message = row["messages"][0]
        first["none" if message["role"] != "system" else "empty" if message["content"] == "" else "text"] += 1
    assert min(first[form] for form in ("none", "empty", "text")) >= 50


def test_tool_calls_fit_the_schemas_on_offer(train, held_out):
    n_calls = Counter()
    for row in train["tool_calls"]:
        calls = [call for message in row["messages"] for call in message.get("tool_calls", [])]
        answers = [message for message in row["messages"] if message["role"] == "tool"]
        assert [call["function"]["name"] for call in calls] == [answer["name"] for answer in answers]
        assert_fit([call["function"] for call in calls], row["tools"])
        assert all(isinstance(json.loads(answer["content"]), dict) for answer in answers)
        n_calls[len(calls)] += 1
    assert min(n_calls[n] for n in (0, 1, 2)) >= 40
    for row in held_out["tool_call"]:
        assert_fit(row["expected"], row["tools"])
        values = [str(value) for call in row["expected"] for value in call["arguments"].values()]
        assert all(value in row["messages"][-1]["content"] for value in values)


def assert_fit(calls: list[dict], tools: list[dict]) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in calls:
        jsonschema.validate(call["arguments"], schemas[call["name"]])


def test_json_answers_fit_their_schema(train, held_out):
    for row in train["json_mode"]:
        schema = json.loads(re.search(r"<schema>\n(.*)\n</schema>", row["messages"][0]["content"])[1])
        jsonschema.validate(json.loads(row["messages"][-1]["content"]), schema)
    for row in held_out["json_mode"]:
        jsonschema.validate(row["expected"], row["schema"])
        assert json.dumps(row["schema"]) in row["messages"][0]["content"]
        assert all(str(value) in row["messages"][1]["content"] for value in row["expected"].values())


def test_citations_name_the_document_that_holds_the_value(train):
    for row in train["rag"]:
        question, *lines = row["messages"][1]["content"].splitlines()
        number, cited, listed = re.fullmatch(
            r"<co: (\d)>(.+)</co>\nCited Documents: (\d)", row["messages"][-1]["content"]
        ).groups()
        assert number == listed
        assert lines[1 + int(number)].endswith(f" Text: {cited}")
        assert re.search(r"of (\w+)\?", question)[1] in cited


def test_code_answers_run(train):
    n_asserts = 0
    for row in train["coding"]:
        blocks = re.findall(r"```python\n(.*?)\n```", row["messages"][-1]["content"], re.DOTALL)
        exec("\n".join(blocks), {})
        n_asserts += sum(block.startswith("assert") for block in blocks)
    assert n_asserts >= 40


def test_held_out_questions_are_in_no_training_row(train, pairs, held_out):
    supervised = user_texts([row for rows in train.values() for row in rows])
    for kind, rows in held_out.items():
        assert len({row["messages"][-1]["content"] for row in rows}) == len(rows), kind
        assert not user_texts(rows) & supervised, kind
    assert not user_texts(pairs) & supervised
    assert not user_texts(pairs) & user_texts(held_out["preference"])


def test_choices_are_trained_answers_with_the_right_one_evenly_placed(train, held_out):
    rows = held_out["choice"]
    answers = {row["messages"][-1]["content"] for source in train.values() for row in source}
    assert Counter(row["answer"] for row in rows) == {place: 40 for place in range(4)}
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert [choice in answers for choice in row["choices"]] == [place == row["answer"] for place in range(4)]


def test_pairs_differ_in_the_opening_alone_and_training_uses_both_equally(train, pairs, held_out):
    openings = Counter(" ".join(row["messages"][-1]["content"].split()[:2]) for row in train["openings"])
    assert len(openings) == 8
    assert len(set(openings.values())) == 1
    chosen, rejected = set(), set()
    for row in [*pairs, *held_out["preference"]]:
        assert row["messages"][-1]["role"] == "user"
        assert row["chosen"]["role"] == row["rejected"]["role"] == "assistant"
        warm, grumpy = (row[side]["content"].split(" ", 2) for side in ("chosen", "rejected"))
        assert warm[2] == grumpy[2]
        chosen.add(" ".join(warm[:2]))
        rejected.add(" ".join(grumpy[:2]))
    assert not chosen & rejected
    assert chosen | rejected == set(openings)
