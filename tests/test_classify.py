"""The rules that sort conversations: written examples, recall on real files, and the table's arithmetic."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from hermes3.messages import BadRow
from hermes3.mix import spec
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.mix.classify import RULES, classify, rule_of, view
from hermes3.mix.spec import CATEGORIES

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared/data/train"
FILES = {
    "gpteacher_roleplay.json": ("instruction", "roleplaying"),
    "gpteacher_codegen.json": ("instruction", "coding"),
    "gsm8k_train.jsonl": ("question_answer", "math"),
    "glaive_toolcall.json": ("sharegpt", "tool_use_agentic_rag"),
}
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real training files are not beside the repository")


def example(ask: str, system: str = "", answer: str = "Certainly.", tools: bool = False) -> Example:
    opening = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return {"messages": [*opening, *turns], "tools": [{"type": "function", "function": {"name": "weather"}}] * tools}


EXAMPLES = yaml.safe_load((ROOT / "tests/classify_examples.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("true", "given"), [(true, given) for true, rows in EXAMPLES.items() for given in rows])
def test_a_written_example_is_sorted_as_a_reader_would(true: str, given: dict):
    row = example(**given)
    rule = rule_of(row)
    assert classify(row) == rule.category == true, rule.reason


def test_the_first_rule_that_matches_decides():
    both = example("Write a Python function that counts the words of a poem.")
    matching = [rule.category for rule in RULES if rule.matches(view(both))]
    assert matching == ["coding", "content_generation", "general_instructions"]
    assert classify(both) == "coding"


def test_the_first_ask_decides_before_the_answer_and_later_turns():
    row = example("Write a poem about rain.", answer="```python\nprint('rain')\n```")
    row["messages"] += [{"role": "user", "content": "Solve 3x = 9."}, {"role": "assistant", "content": "x = 3"}]
    assert classify(row) == "content_generation"
    assert classify({"messages": [], "tools": []}) == "general_instructions"


@pytest.mark.parametrize(
    "text", ["a) ", "12 + ", "*as ", "you are A ", "write a ", "$x ", "<plan>", "\n\n", "how many "]
)
def test_a_long_monotonous_row_takes_no_longer_than_the_characters_read(text: str):
    row = example(text * 30_000, system=text * 30_000, answer=text * 30_000)
    start = time.process_time()
    for _ in range(20):
        classify(row)
    assert (time.process_time() - start) / 20 < 0.02


def held_out(name: str) -> Iterator[Example]:
    """Odd rows: the rules were tuned on the even ones."""
    text = (REAL / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    for row in rows[1::2]:
        try:
            yield ADAPTERS[FILES[name][0]](row)
        except BadRow:
            continue


def confusion(rows: Iterable[tuple[str, Example]]) -> dict[str, dict[str, int]]:
    """{true category: {predicted: rows}}, printed with recall as docs/classification.md has it."""
    counts: dict[str, dict[str, int]] = {}
    for true, row in rows:
        counts.setdefault(true, dict.fromkeys(CATEGORIES, 0))[classify(row)] += 1
    for true, row in counts.items():
        print(f"\n{true}: recall {100 * row[true] / sum(row.values()):.1f} %, {row}")
    return counts


FLOORS = {"roleplaying": 0.92, "coding": 0.99, "math": 0.99, "tool_use_agentic_rag": 0.59}


@needs_real_data
def test_held_out_rows_of_real_files_are_found():
    counts = confusion((true, row) for name, (_, true) in FILES.items() for row in held_out(name))
    recall = {true: row[true] / sum(row.values()) for true, row in counts.items()}
    assert {true: round(share, 3) for true, share in recall.items() if share < FLOORS[true]} == {}


@needs_real_data
def test_every_real_row_that_offers_tools_is_tool_use():
    offering = [row for row in held_out("glaive_toolcall.json") if row["tools"]]
    assert len(offering) > 80
    assert {classify(row) for row in offering} == {"tool_use_agentic_rag"}


@needs_real_data
def test_word_problems_are_found_without_their_answers():
    rows = list(held_out("gsm8k_train.jsonl"))
    for row in rows:
        row["messages"][-1]["content"] = "Let me think."
    assert sum(classify(row) == "math" for row in rows) / len(rows) > 0.95


MT_BENCH = {  # our reading of its eight kinds
    "writing": "content_generation",
    "roleplay": "roleplaying",
    "reasoning": "general_instructions",
    "math": "math",
    "coding": "coding",
    "extraction": "general_instructions",
    "stem": "domain_expert",
    "humanities": "domain_expert",
}


@needs_real_data
def test_questions_of_another_origin_are_mostly_found():
    """MT-Bench's first turns without an answer: free wording, never used for tuning."""
    lines = (REAL.parent / "eval/mt_bench_question.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    counts = confusion((MT_BENCH[q["category"]], example(q["turns"][0], answer=".")) for q in questions)
    assert sum(row[true] for true, row in counts.items()) / len(questions) > 0.5


def test_the_page_lists_every_rule_in_order():
    page = (ROOT / "docs/classification.md").read_text(encoding="utf-8")
    listed = [line.strip("|").split("|") for line in page.splitlines() if line[:3].strip("| ").isdigit()]
    assert [(category.strip(), reason.strip()) for _, category, reason in listed] == [
        (rule.category, rule.reason) for rule in RULES
    ]


def test_the_released_dataset_is_taken_whole():
    mix = spec.load(ROOT / "data_mixes/hermes3_dataset.yml")
    assert set(mix.categories) == set(CATEGORIES)
    assert mix.budgets() == {}
    assert [(category, source.repo) for category, source in mix.sources()] == [(None, "NousResearch/Hermes-3-Dataset")]
