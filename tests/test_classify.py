"""The rules that sort conversations: written examples, recall on real files, and the table's arithmetic."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

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


def said(ask: str, system: str = "", answer: str = "Certainly.", tools: list | None = None) -> Example:
    opening = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return {"messages": [*opening, *turns], "tools": tools or []}


WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
EXAMPLES = {
    "tool_use_agentic_rag": [
        said("Will it rain in Bergen?", tools=WEATHER),
        said("Solve 3x = 9 with the calculator.", tools=WEATHER),
        said("Book me a table.", answer='<tool_call>\n{"name": "book", "arguments": {}}\n</tool_call>'),
        said("Ann is 33.", system="Reply in JSON. The JSON schema:\n<schema>{}</schema>"),
        said("Who rules Oslo?\nCONTEXT:\nDocument:0 Title: Oslo Text: A mayor.", answer="<co: 0>A mayor.</co>"),
        said("Sort a list in Python.", system="Think in <SCRATCHPAD>, then <PLAN>, then <SOLUTION>."),
        said("What is 5 + 5?", system="You have access to the following functions. Use them if needed: add(a, b)"),
    ],
    "coding": [
        said("Write a Python function that reverses a list."),
        said("Why does this fail?\n\ndef f(x):\n    retrun x"),
        said("How do I centre a div in CSS?"),
        said("What does a KeyError mean in Python?"),
        said("Explain the time complexity of merge sort."),
        said("You are a senior engineer. Fix this: console.log(x", system="You are a helpful assistant."),
        said("Reverse the words of a sentence, please.", answer="```python\ndef f(s):\n    return s[::-1]\n```"),
        said("Calculate the area of a circle in a C program."),
        said("Translate this to Rust:\n\n#include <stdio.h>\nint main() { return 0; }"),
    ],
    "math": [
        said("Solve x^2 - 5x + 6 = 0."),
        said("Solve 3x = 9."),
        said("What is 17 * 23?"),
        said("Tom has 3 boxes of 12 eggs and drops 5. How many eggs are left?"),
        said("Prove that the square root of two is not a fraction of integers."),
        said("Evaluate $\\int_0^1 x^2 dx$."),
        said("Ruby reads six pages a day. How many pages does she read in two weeks?"),
        said("A dress costs $40 and is a quarter off. What is the price after the discount?"),
        said("Find the remainder when the number is split.", answer="So it is \\boxed{4}."),
    ],
    "roleplaying": [
        said("Where were you last night?", system="You are Captain Hale, a smuggler. Stay in character."),
        said("Good evening.", system="You are Mira, who keeps a lighthouse."),
        said("Imagine you are a medieval baker. How do you start your day?"),
        said("Let's roleplay: I enter the tavern and look around."),
        said("You are Marie Curie. Tell a student about your first years in Paris."),
        said("Act as a travel guide. I will name cities."),
        said("As a weary detective, describe the room."),
        said("I open the door.", answer="*slowly turns around* I was waiting for you."),
        said("Pretend you're a vending machine. Write a poem about your day."),
    ],
    "content_generation": [
        said("Write a short poem about rain."),
        said("Please draft an email to my landlord about the heating."),
        said("Can you come up with a slogan for a bicycle shop?"),
        said("Tell me a bedtime story about two otters."),
        said("I need a product description for a steel kettle."),
        said("Write a blog post on the history of tea.", system="You are a helpful assistant."),
        said("Write an essay about the French Revolution."),
    ],
    "steering_alignment": [
        said("Which is better, tea or coffee?", system="Begin every answer with the word Note."),
        said("What is your favourite food?", system="Your favourite food is cake."),
        said("How is the sea?", system="Never use the letter e. You must not apologise."),
        said("Are you conscious?"),
        said("Who created you, and do you have feelings?"),
        said("What should I cook tonight?", system="Speak like an old sailor."),
        said("Tell me tomorrow's lottery result.", answer="I cannot know what has not happened yet."),
    ],
    "domain_expert": [
        said("How does photosynthesis store energy?"),
        said("What must a plaintiff prove to win a negligence claim?"),
        said("Which gas do plants take in?\nA) Oxygen\nB) Carbon dioxide\nC) Helium\nD) Neon"),
        said("What led to the fall of the Byzantine empire?"),
        said("Explain the difference between monetary and fiscal policy."),
        said("What is the capital of Norway?"),
        said("What helps against a headache?", system="You are an expert in neurology."),
        said("A 2 kg mass moves with a velocity of 3 m/s. What is its momentum?"),
    ],
    "general_instructions": [
        said("Give me three tips for a tidy desk."),
        said("Summarise this article:\n\nThe parliament met on Monday to discuss inflation and the treaty."),
        said("Translate into French: the patient took the medicine."),
        said("You are given a sentence. Say whether it is happy or sad.\n\nI lost my keys."),
        said("What is a good gift for a neighbour?", system="You are an AI assistant. Give a detailed answer."),
        said("Name some words that rhyme with blue.", system="You are Hermes, a helpful AI."),
        said("Which python can one keep as a pet?"),
        said("Was ist ein guter Name für eine Katze?"),
        said("Plan a weekend in Lisbon for two."),
    ],
}


@pytest.mark.parametrize(("true", "row"), [(true, row) for true, rows in EXAMPLES.items() for row in rows])
def test_a_written_example_is_sorted_as_a_reader_would(true: str, row: Example):
    rule = rule_of(row)
    assert classify(row) == rule.category == true, rule.reason


def test_the_first_rule_that_matches_decides():
    both = said("Write a Python function that counts the words of a poem.")
    assert [rule.category for rule in RULES if rule.matches(view(both))] == [
        "coding",
        "content_generation",
        "general_instructions",
    ]
    assert classify(both) == "coding"


def test_the_ask_decides_before_the_answer_does():
    assert classify(said("Write a poem about rain.", answer="```python\nprint('rain')\n```")) == "content_generation"


def test_only_the_first_user_message_is_the_ask():
    row = said("Give me three tips for a tidy desk.")
    row["messages"] += [{"role": "user", "content": "Solve 3x = 9."}, {"role": "assistant", "content": "x = 3"}]
    assert classify(row) == "general_instructions"


def test_a_row_with_nothing_to_read_is_general():
    assert classify({"messages": [], "tools": []}) == "general_instructions"


@pytest.mark.parametrize(
    "text", ["a) ", "12 + ", "*as ", "you are A ", "write a ", "$x ", "<plan>", "\n\n", "how many "]
)
def test_a_long_monotonous_row_takes_no_longer_than_the_characters_read(text: str):
    row = said(text * 30_000, system=text * 30_000, answer=text * 30_000)
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
    counts = confusion((MT_BENCH[q["category"]], said(q["turns"][0], answer=".")) for q in questions)
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
