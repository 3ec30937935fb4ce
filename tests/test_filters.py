"""The filters on quality: what each drops, what it leaves, and how well refusals are told from answers."""

import json
from collections import Counter
from typing import get_args

import orjson
import pytest
import yaml
from conftest import ROOT

from hermes3.chat.prompts import json_system, tools_system
from hermes3.messages import BadRow, is_text
from hermes3.mix import filters
from hermes3.mix.adapt import ADAPTERS
from hermes3.mix.refusals import OPENING, is_refusal
from hermes3.mix.spec import Filter
from hermes3.stats import wilson

LABELLED = ROOT / "tests/refusals.jsonl"
REAL = ROOT.parent / "shared/data/train"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def said(*answers: str, system: str | None = None, tools: list | None = None) -> dict:
    """A conversation in which the assistant says `answers`."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for answer in answers:
        messages += [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": tools or []}


def test_a_bad_row_names_the_filter_and_the_place_and_a_skipped_filter_does_not_judge():
    assert set(filters.FILTERS) == set(get_args(Filter))  # those that a spec may skip
    filters.apply(said("Hello.", "```python\nprint(1)\n```"))
    with pytest.raises(BadRow, match="^refusal: message 4: i cannot help$"):
        filters.apply(said("Sure.", "I'm sorry, but I can't help with that."))
    row = said("I cannot help with that.\n```")
    filters.apply(row, skip=frozenset({"refusal", "unterminated_code"}))
    with pytest.raises(BadRow, match="unterminated_code"):
        filters.apply(row, skip=frozenset({"refusal"}))


def test_of_a_preference_the_chosen_answer_is_judged_and_of_no_row_what_the_user_says():
    prompt = [{"role": "user", "content": "I cannot help with that.\n```"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("A cat...", "I cannot write that."))
    filters.apply({"messages": prompt, "tools": [], "chosen": good, "rejected": bad})
    with pytest.raises(BadRow, match="refusal: chosen: i cannot write"):
        filters.apply({"messages": prompt, "tools": [], "chosen": bad, "rejected": good})


CASES = yaml.safe_load((ROOT / "tests/filters.yml").read_text(encoding="utf-8"))
SYSTEMS = {name: json_system({}).replace("{}", schema) for name, schema in CASES["schemas"].items()}
SYSTEMS["tools"] = tools_system([WEATHER])
TOO_LONG = [{"answer": CALL.replace('"Oslo"', text), "system": "tools"} for text in ("9" * 5000, "[" * 100_000)]
CASES["objected"]["tool_call_text"] += TOO_LONG
CASES["objected"]["json_mode"].append({"answer": "[" * 100_000, "system": "json", "detail": "not JSON"})
EVERY = [(name, case, what) for what in ("objected", "passed") for name in CASES[what] for case in CASES[what][name]]


@pytest.mark.parametrize(("name", "case", "what"), EVERY)
def test_what_a_filter_objects_to_and_what_it_lets_pass(name, case, what):
    system = SYSTEMS.get(case.get("system"), case.get("system"))
    objection = filters.FILTERS[name](said(case["answer"].replace("@call", CALL), system=system))
    assert (objection is not None) == (what == "objected") and case.get("detail", "") in (objection or "")


def test_a_filter_that_cannot_object_to_a_row_finds_nothing_in_it():
    rows = [said(one["answer"], system=SYSTEMS.get(one.get("system"))) for _, one, _ in EVERY if is_text(one["answer"])]
    rows += [said(json.loads(line)["text"]) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    rows += [said(chr(i)) for i in (*range(0xD800), *range(0xE000, 1 << 16)) if filters.BROKEN.match(chr(i))]
    rows = [row | {"json": {"messages": orjson.dumps(row["messages"])}} for row in rows]
    cannot = filters.cannot_object(rows)
    objections = [filters.FILTERS[name](row) for row, names in zip(rows, cannot, strict=True) for name in names]
    assert max(map(len, cannot)) == 4 and not any(objections)


def test_calls_tools_and_schemas_are_read_too(tmp_path):
    row = said("", tools=[WEATHER])
    row["messages"][-1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"a": "\ufffd"}}}]
    assert "message 2" in filters.broken_text(row)
    assert "tools" in filters.broken_text(said("Fine.", tools=[{"function": {"name": "f", "description": "\ud800"}}]))
    assert filters.tool_call_text(said(CALL, tools=[WEATHER])) is None
    # a schema fetches nothing from elsewhere
    (tmp_path / "schema.json").write_text('{"type": "string"}')
    system = json_system({"$ref": (tmp_path / "schema.json").as_uri()})
    assert filters.json_mode(said('{"any": 1}', system=system)) is None
    assert "message 5" in filters.json_mode(said('{"age": 3}', "{}", system=SYSTEMS["json"]))


# seen: dev 0.993 and 0.987, test 0.969 and 0.877; the rules were made for the dev part
@pytest.mark.parametrize(("split", "precision", "recall"), [("dev", 0.97, 0.95), ("test", 0.9, 0.7)])
def test_refusals_are_told_from_answers(split, precision, recall):
    lines = LABELLED.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    found = [row for row in rows if is_refusal(row["text"])]
    right, labelled = sum(row["refusal"] for row in found), sum(row["refusal"] for row in rows)
    print(f"\n{split}: precision {wilson(right, len(found))}, recall {wilson(right, labelled)}")
    assert right / len(found) >= precision and right / labelled >= recall


def test_what_only_mentions_such_words_stands_late_or_is_a_choice_is_no_refusal():
    harmless = yaml.safe_load((ROOT / "tests/harmless.yml").read_text(encoding="utf-8"))
    texts = [frame.format(subject) for frame in harmless["frames"] for subject in harmless["subjects"]]
    assert len(set(texts)) == 200
    assert {text: words for text in texts if (words := is_refusal(text))} == {}
    assert is_refusal("a" * (OPENING - 30) + " I cannot help with that.")
    assert is_refusal("a " * OPENING + "I cannot help with that.") is None
    assert filters.refusal(said("I can't answer that.", system="A) yes, B) no, C) I can't answer that.")) is None
    assert filters.refusal(said("I can't answer that.", system="Choose.")) is not None
    assert is_refusal("Can't answer") is None and is_refusal("C) Cannot be determined.") is None


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data of shared/data is not here")
def test_real_rows_are_dropped_for_the_reasons_that_reading_them_gives():
    counts = {"roleplay": Counter(), "toolcall": Counter(), "pairs": Counter()}
    files = ("gpteacher_roleplay", "glaive_toolcall", "dpo_pairs")
    for file, adapter, reasons in zip(files, ("instruction", "sharegpt", "preference"), counts.values(), strict=True):
        for raw in json.loads((REAL / f"{file}.json").read_text(encoding="utf-8")):
            try:
                filters.apply(ADAPTERS[adapter](raw))
            except BadRow as bad:
                reasons[bad.reason] += bad.reason in filters.FILTERS
    assert +counts["roleplay"] == {} and +counts["toolcall"] == {"unterminated_code": 1}  # 44 more lack a tool
    assert +counts["pairs"] == {"refusal": 2, "unterminated_code": 3, "broken_text": 2}
