"""The rules that sort conversations: written examples, recall on real files, and the table's arithmetic."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from hermes3.messages import BadRow
from hermes3.mix import read, rules, spec
from hermes3.mix.adapt import ADAPTERS, Example
from hermes3.mix.classify import RULES, classify, view
from hermes3.mix.spec import CATEGORIES

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared/data/train"
REAL_ROWS = yaml.safe_load((ROOT / "tests/classify_files.yml").read_text(encoding="utf-8"))
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real training files are not beside the repository")


def example(ask: str, system: str = "", answer: str = "Certainly.", tools: bool = False) -> Example:
    opening = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return {"messages": [*opening, *turns], "tools": [{"type": "function", "function": {"name": "weather"}}] * tools}


EXAMPLES = yaml.safe_load((ROOT / "tests/classify_examples.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("true", "given"), [(true, given) for true, rows in EXAMPLES.items() for given in rows])
def test_a_written_example_is_sorted_as_a_reader_would(true: str, given: dict):
    assert classify(example(**given)) == true


def test_the_first_rule_that_matches_the_first_ask_decides():
    both = example("Write a Python function that counts the words of a poem.")
    matching = [category for category, matches in RULES if matches(view(both))]
    assert matching == ["coding", "content_generation", "general_instructions"] and classify(both) == "coding"
    row = example("Write a poem about rain.", answer="```python\nprint('rain')\n```")
    row["messages"] += [{"role": "user", "content": "Solve 3x = 9."}, {"role": "assistant", "content": "x = 3"}]
    assert classify(row) == "content_generation"
    assert classify({"messages": [], "tools": []}) == "general_instructions"


def test_a_long_monotonous_row_takes_no_longer_than_the_characters_read():
    for text in ("a) ", "12 + ", "*as ", "you are A ", "write a ", "$x ", "<plan>", "\n\n", "how many "):
        row = example(text * 30_000, system=text * 30_000, answer=text * 30_000)
        start = time.process_time()
        for _ in range(20):
            classify(row)
        assert (time.process_time() - start) / 20 < 0.02, text


def held_out(name: str, adapter: str) -> Iterator[Example]:
    """Odd rows: the rules were tuned on the even ones."""
    lines = [line for chunk in read.chunks(name, [read.File(name, REAL / name)]) for line in chunk.lines]
    for line in lines[1::2]:
        with suppress(BadRow):
            yield ADAPTERS[adapter](read.parse(line))


def recall(true: str, rows: Iterable[Example]) -> float:
    """The share sorted as `true`, printed with what others were taken for, as docs/classification.md has it."""
    counts = Counter(map(classify, rows))
    print(f"\n{true}: recall {100 * counts[true] / counts.total():.1f} %, {dict(counts)}")
    return counts[true] / counts.total()


@needs_real_data
def test_held_out_rows_of_real_files_are_found():
    rows = {name: list(held_out(name, one["adapter"])) for name, one in REAL_ROWS["files"].items()}
    for name, one in REAL_ROWS["files"].items():
        assert recall(one["category"], rows[name]) >= one["recall"]
    offering = [row for row in rows["glaive_toolcall.json"] if row["tools"]]
    assert len(offering) > 80 and {classify(row) for row in offering} == {"tool_use_agentic_rag"}
    for row in rows["gsm8k_train.jsonl"]:  # word problems are found without their answers
        row["messages"][-1]["content"] = "Let me think."
    assert recall("math", rows["gsm8k_train.jsonl"]) > 0.95


@needs_real_data
def test_questions_of_another_origin_are_mostly_found():
    """MT-Bench's first turns without an answer: free wording, never used for tuning."""
    lines = (REAL.parent / "eval/mt_bench_question.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [(REAL_ROWS["mt_bench"][q["category"]], q["turns"][0]) for q in map(json.loads, lines)]
    assert sum(classify(example(ask, answer=".")) == true for true, ask in questions) / len(questions) > 0.5


def test_the_page_lists_every_rule_in_order():
    page = (ROOT / "docs/classification.md").read_text(encoding="utf-8")
    listed = [line.strip("|").split("|") for line in page.splitlines() if line[:3].strip("| ").isdigit()]
    declared = rules.load("classify")["rules"]
    assert [(category.strip(), reason.strip()) for _, category, reason in listed] == [
        (rule["category"], rule["reason"]) for rule in declared
    ]


def test_the_released_dataset_is_taken_whole_and_what_rules_sort_comes_after_the_sets_of_a_category():
    mix = spec.load(ROOT / "data_mixes/hermes3_dataset.yml")
    assert set(mix.categories) == set(CATEGORIES) and mix.budgets() == {}
    assert [(category, source.repo) for category, source in mix.sources()] == [(None, "NousResearch/Hermes-3-Dataset")]
    ranks: dict[bool, set[int]] = {True: set(), False: set()}
    for category, source in spec.load(ROOT / "data_mixes/hermes3_sft.yml").sources():
        ranks[category is None].add(source.rank)
    assert max(ranks[False]) < min(ranks[True])
