"""The filters on quality: what each drops, what it leaves, and how well refusals are told from answers."""

import json
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from hermes3.chat.prompts import json_system, tools_system
from hermes3.messages import BadRow
from hermes3.mix import filters
from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.refusals import OPENING, is_refusal
from hermes3.mix.spec import Filter
from hermes3.stats import wilson

LABELLED = ROOT / "tests/refusals.jsonl"
REAL = ROOT.parent / "shared/data/train"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def said(*answers: str, system: str | None = None, tools: list | None = None) -> dict:
    """A conversation in which the assistant says `answers`."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for answer in answers:
        messages += [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": tools or []}


def test_the_filters_are_those_that_a_spec_may_skip():
    assert set(filters.FILTERS) == set(get_args(Filter))


def test_a_bad_row_names_the_filter_and_the_place():
    filters.apply(said("Hello.", "```python\nprint(1)\n```"))
    with pytest.raises(BadRow) as raised:
        filters.apply(said("Sure.", "I'm sorry, but I can't help with that."))
    assert raised.value.reason == "refusal"
    assert raised.value.detail == "message 4: i cannot help"


def test_a_skipped_filter_does_not_judge_and_the_next_one_does():
    row = said("I cannot help with that.\n```")
    filters.apply(row, skip=frozenset({"refusal", "unterminated_code"}))
    with pytest.raises(BadRow, match="unterminated_code"):
        filters.apply(row, skip=frozenset({"refusal"}))


def test_of_a_preference_the_prompt_and_the_chosen_answer_are_judged():
    prompt = [{"role": "user", "content": "Write a limerick."}]
    good, bad = ({"role": "assistant", "content": text} for text in ("A cat...", "I cannot write that."))
    filters.apply({"messages": prompt, "tools": [], "chosen": good, "rejected": bad})
    with pytest.raises(BadRow, match="refusal: chosen: i cannot write"):
        filters.apply({"messages": prompt, "tools": [], "chosen": bad, "rejected": good})


def test_what_a_user_says_is_no_refusal_and_no_open_fence():
    messages = [{"role": "user", "content": "I cannot help with that.\n```"}, {"role": "assistant", "content": "Oh?"}]
    filters.apply({"messages": messages, "tools": []})


JSON = json_system(SCHEMA)
PYTHON = json_system({}).replace("{}", str({"type": "object", "properties": {"age": {"type": "integer"}, "on": True}}))
UNUSABLE = [  # schemas that leave the check that answers are JSON
    json_system({}).replace("{}", schema)
    for schema in (
        '{"type": "strnig"}',
        "{not json",
        '{"$ref": "https://example.invalid/schema.json"}',
        '{"$ref": "#"}',
    )
]
BROKEN = {"nul \0": "0000", "page\f": "000C", "\x7f": "007F", "it\x92s": "0092"}
BROKEN |= {"caf\ufffd": "FFFD", "half \ud83d": "D83D", "\uffff": "FFFF", "\ufffe": "FFFE"}
OBJECTED = [  # filter, the answer, system message, what the detail says
    *[("broken_text", text, None, f"message 2: U+{code}") for text, code in BROKEN.items()],
    *[("broken_text", "Fine.", text, f"message 1: U+{code}") for text, code in BROKEN.items()],
    *[
        ("unterminated_code", text, None, "never closed")
        for text in (
            *("```python\nprint(1)", "Here:\n```\na\n```\nand\n```js\nb", "~~~\ncode", "1. ```sh\n   ls"),
            *("````md\n```py\nx\n```\n", "```\na\n~~~\n"),
        )
    ],
    *[
        ("json_mode", text, JSON, "not JSON")
        for text in ("Sure! The age is 3.", '```json\n{"age": 3}\n```', '{"age": NaN}', '{"age": 3', "[" * 100_000)
    ],
    ("json_mode", '{"age": "three"}', JSON, "$.age: 'three' is not of type 'integer'"),
    ("json_mode", "{}", JSON, "'age' is a required property"),
    ("json_mode", '{"age": "three"}', PYTHON, "$.age: 'three' is not of type 'integer'"),
    *[("json_mode", "Hello.", system, "not JSON") for system in UNUSABLE],
    *[
        ("tool_call_text", text, tools_system([WEATHER]), "")
        for text in (
            *(CALL.removesuffix("</tool_call>"), CALL.removeprefix("<tool_call>"), f"{CALL}\n</tool_call>"),
            *(CALL.replace("get_weather", "get_wether"), CALL.replace('"Oslo"}', '"Oslo"'), CALL.replace('"', "'")),
            *('<tool_call>\n{"name": "get_weather"}\n</tool_call>', "<tool_call></tool_call>"),
            *(CALL.replace('"Oslo"', "9" * 5000), CALL.replace('"Oslo"', "[" * 100_000)),
        )
    ],
    ("tool_call_text", CALL, None, "not among the tools offered"),
]
PASSED = [  # filter, the answer, system message
    *[
        ("broken_text", text, None)
        for text in ("tab\tline\r\nend", "naïve façade\u00a0—", "日本語 😀", "e\u0301 \u200d \u2028 \ufeff", "")
    ],
    *[
        ("unterminated_code", text, None)
        for text in (
            *("```python\nprint(1)\n```", "- ```sh\n  ls\n  ```", "> ```\n> a\n> ```", "````md\n```py\n````"),
            *("```rst\nTitle\n~~~~~\n```", "Write three backticks, ```, at the start.", "~~~\na\n~~~"),
            "```inline code```\nand text",
        )
    ],
    ("json_mode", '{"age": 4, "name": "Bo"}', JSON),
    ("json_mode", '{"age": 4, "name": "Bo"}', PYTHON),
    *[("json_mode", '{"any": 1}', system) for system in UNUSABLE],
    ("json_mode", "Hello.", "You know the <schema>of things</schema>."),
    ("json_mode", "Hello.", "Talk about JSON."),
    ("tool_call_text", f"Let me see.\n{CALL}\n{CALL}", tools_system([WEATHER])),
    ("tool_call_text", CALL, f"Tools: <tools> [{WEATHER!r}] </tools>"),
]


@pytest.mark.parametrize(("name", "answer", "system", "detail"), OBJECTED)
def test_what_a_filter_objects_to(name, answer, system, detail):
    assert detail in filters.FILTERS[name](said(answer, system=system))


@pytest.mark.parametrize(("name", "answer", "system"), PASSED)
def test_what_a_filter_lets_pass(name, answer, system):
    assert filters.FILTERS[name](said(answer, system=system)) is None


def test_calls_and_tools_are_read_too():
    row = said("", tools=[WEATHER])
    row["messages"][-1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"a": "\ufffd"}}}]
    assert "message 2" in filters.broken_text(row)
    assert "tools" in filters.broken_text(said("Fine.", tools=[{"function": {"name": "f", "description": "\ud800"}}]))
    assert filters.tool_call_text(said(CALL, tools=[WEATHER])) is None


def test_a_schema_fetches_nothing_from_elsewhere(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "string"}')
    system = json_system({"$ref": (tmp_path / "schema.json").as_uri()})
    assert filters.json_mode(said('{"any": 1}', system=system)) is None
    assert "message 5" in filters.json_mode(said('{"age": 3}', "{}", system=JSON))


def test_a_refusal_is_sought_in_the_opening_alone():
    assert is_refusal("I cannot help with that.")
    assert is_refusal("a" * (OPENING - 30) + " I cannot help with that.")
    assert is_refusal("a " * OPENING + "I cannot help with that.") is None


@pytest.mark.parametrize(
    ("split", "precision", "recall"),
    # seen: dev 0.992 and 0.992, test 0.957 and 0.882; the rules were made for the dev part
    [("dev", 0.97, 0.95), ("test", 0.9, 0.7)],
)
def test_refusals_are_told_from_answers(split, precision, recall):
    lines = LABELLED.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    found = [row for row in rows if is_refusal(row["text"])]
    right, labelled = sum(row["refusal"] for row in found), sum(row["refusal"] for row in rows)
    print(f"\n{split}: precision {wilson(right, len(found))}, recall {wilson(right, labelled)}")
    assert right / len(found) >= precision and right / labelled >= recall


def test_200_answers_that_only_mention_such_words_pass():
    harmless = yaml.safe_load((ROOT / "tests/harmless.yml").read_text(encoding="utf-8"))
    texts = [frame.format(subject) for frame in harmless["frames"] for subject in harmless["subjects"]]
    assert len(set(texts)) == 200
    assert {text: words for text in texts if (words := is_refusal(text))} == {}


def test_a_choice_that_the_prompt_offers_is_no_refusal():
    quiz = said("I can't answer that.", system="Choose: A) yes, B) no, C) I can't answer that.")
    assert filters.refusal(quiz) is None
    assert filters.refusal(said("I can't answer that.", system="Choose.")) is not None
    assert is_refusal("Can't answer") is None and is_refusal("C) Cannot be determined.") is None


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data of shared/data is not here")
@pytest.mark.parametrize(
    ("file", "adapter", "reasons"),
    [
        ("gpteacher_roleplay.json", "instruction", {}),
        ("glaive_toolcall.json", "sharegpt", {"unterminated_code": 1}),  # 44 more say that a tool is lacking
        ("dpo_pairs.json", "preference", {"refusal": 2, "unterminated_code": 3, "broken_text": 2}),
    ],
)
def test_real_rows_are_dropped_for_the_reasons_that_reading_them_gives(file, adapter, reasons):
    counts: dict[str, int] = {}
    for raw in json.loads((REAL / file).read_text(encoding="utf-8")):
        try:
            filters.apply(ADAPTERS[adapter](raw))
        except BadRow as bad:
            counts[bad.reason] = counts.get(bad.reason, 0) + 1
    assert {name: counts[name] for name in counts if name in filters.FILTERS} == reasons
