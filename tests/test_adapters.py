"""Adapters: every shape that data comes in, to one message form; what is refused, what is left unread, and why."""

import json
import sys
from typing import get_args

import pytest
import yaml
from conftest import ROOT, real_rows

from hermes3.chat.prompts import rag_system, tools_system
from hermes3.chat.render import turns
from hermes3.messages import BadRow, tool_call
from hermes3.mix.adapt import ADAPTERS, ROLE_OF, SHAPE
from hermes3.mix.columns import Row
from hermes3.mix.spec import Adapter

REAL = ROOT.parent / "shared/data/train"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
SAID = [USER, ANSWER]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "its 'name'"}}}
TOOL = {"type": "function", "function": {"name": "sky", "description": "The sky.", "parameters": PARAMETERS}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [tool_call("sky", {"city": "Ulm"})]}
RESPONSE = {"role": "tool", "name": "sky", "content": '{"sky": "grey"}'}


def written_out(value, keys=("role", "content")):
    """`value` of adapters.yml with its turns, {user: q}, as the data has them."""
    if isinstance(value, list):
        return [written_out(one, keys) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and {key.lower() for key in value} & (set(ROLE_OF) - {"function"} | {"alien"}):
        return dict(zip(keys, *value.items(), strict=True))
    sharegpt = {"conversations": ("from", "value"), "conversation": ("from", "value")}
    return {key: written_out(one, sharegpt.get(key, keys)) for key, one in value.items()}


DATA = written_out(yaml.safe_load((ROOT / "tests/adapters.yml").read_text(encoding="utf-8")))


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def sharegpt(*turns, **columns) -> dict:
    """A ShareGPT row of (from, value) pairs."""
    return {"conversations": [{"from": kind, "value": value} for kind, value in turns], **columns}


def reason(adapter, row) -> str:
    with pytest.raises(BadRow) as caught:
        ADAPTERS[adapter](row)
    return caught.value.reason


def test_the_spec_and_the_adapters_name_the_same_shapes():
    assert set(get_args(Adapter)) == set(ADAPTERS)


@pytest.mark.parametrize("case", DATA["become"])
def test_every_shape_becomes_messages(case):
    assert ADAPTERS[case["adapter"]](case["row"]) == {"messages": case["messages"], "tools": []}


@pytest.mark.parametrize("case", DATA["prompts"] + DATA["repeated"])
def test_a_preference_s_prompt_comes_in_every_form_and_is_compared_with_what_both_sides_repeat(case):
    chosen, rejected = ANSWER, {**ANSWER, "content": "b"}
    sides = {"chosen": "a", "rejected": "b"}
    if shared := case.get("shared"):
        sides = {"chosen": [*shared, chosen], "rejected": [*shared, rejected]}
    expected = {"messages": case["messages"], "tools": [], "chosen": chosen, "rejected": rejected}
    assert ADAPTERS["preference"](case["row"] | sides) == expected


@pytest.mark.parametrize("case", DATA["unread"])
def test_columns_and_fields_that_are_not_read_are_named(case):
    answer = ANSWER | case.get("turn", {})
    turns = {"messages": [USER, answer]} if case["adapter"] in ("messages", "sharegpt") else {}
    row = Row(turns | case.get("row", {}))
    ADAPTERS[case["adapter"]](row)
    names = {what: {name for kind, name in row.account() if kind == what} for what in ("unread", "unread, may train")}
    assert names == {"unread": set(case.get("describes", [])), "unread, may train": set(case.get("stops", []))}


def test_a_column_may_be_read_as_another():
    row = Row({"question": "q", "answer": "a", "passage": "p"}, {"passage": "context"})
    assert ADAPTERS["question_answer"](row)["messages"][0] == user("q\n\np")
    assert ("unread, may train", "passage") not in set(row.account())
    with pytest.raises(BadRow, match="passage is to be read as context"):
        Row({"passage": "p", "context": "c"}, {"passage": "context"})


@pytest.mark.parametrize(
    ("marks", "trains"), [(one, i) for i in (0, 1) for one in DATA["marks"][["untrained", "trained"][i]]]
)
def test_a_mark_says_whether_a_turn_is_trained(marks, trains):
    for column in ("messages", "conversations"):
        got = ADAPTERS["messages"]({column: [USER, ANSWER | marks]})["messages"][1]
        assert got == (ANSWER if trains else {**ANSWER, "train": False})


@pytest.mark.parametrize("marks", DATA["marks"]["refused"])
def test_a_mark_that_is_not_understood_is_named(marks):
    with pytest.raises(BadRow, match=next(iter(marks))) as caught:
        ADAPTERS["messages"]({"messages": [USER, ANSWER | marks]})
    assert caught.value.reason == "mark_not_understood"


@pytest.mark.parametrize("case", DATA["nulls"])
def test_nulls_that_a_schema_does_not_allow_are_no_arguments(case):
    declared = {"type": "object", "properties": case["properties"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": declared, "strict": None}}]
    call = {"type": "function", "function": {"name": "f", "arguments": case["arguments"]}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": tools}
    got = ADAPTERS["messages"](row)
    assert got["messages"][1]["tool_calls"] == [tool_call("f", case["remain"])]
    kept = {"type": "object", "properties": case.get("schema", case["properties"])}
    assert got["tools"] == [{"type": "function", "function": {"name": "f", "parameters": kept}}]
    call["function"]["arguments"] = json.dumps(case["arguments"])  # text is the writer's own
    assert ADAPTERS["messages"](row)["messages"][1]["tool_calls"] == [tool_call("f", case["arguments"])]


@pytest.mark.parametrize("ids", [("c1", "c2"), (1, 2), ("1", 2), (1.0, "2")])
def test_openai_s_calls_are_read_in_both_forms_and_responses_named_by_id(ids):
    calls = [{"id": i, "function": {"name": n, "arguments": '{"x": 1}'}} for i, n in zip(ids, "fg", strict=True)]
    as_stated = [int(i) if isinstance(i, float) else i for i in ids]
    out_of_order = [{"role": "tool", "tool_call_id": i, "content": str(i)} for i in reversed(as_stated)]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    got = ADAPTERS["messages"]({"messages": [USER, called, *out_of_order, ANSWER], "tools": tools})
    assert got["messages"][1]["tool_calls"] == [tool_call("f", {"x": 1}), tool_call("g", {"x": 1})]
    assert [(m["name"], m["content"]) for m in got["messages"][2:4]] == [
        ("f", str(as_stated[0])),
        ("g", str(as_stated[1])),
    ]
    out_of_order[0]["tool_call_id"] = 7
    with pytest.raises(BadRow, match="no open call has its tool_call_id, 7"):
        ADAPTERS["messages"]({"messages": [USER, called, *out_of_order, ANSWER], "tools": tools})


def test_openai_s_older_form_of_a_call():
    older = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    answered = {"role": "function", "name": "f", "content": "1"}
    got = ADAPTERS["messages"]({"messages": [USER, older, answered, ANSWER], "functions": [{"name": "f"}]})
    assert got["messages"][1]["tool_calls"] == [tool_call("f", {})]
    assert got["tools"] == [{"type": "function", "function": {"name": "f"}}]


def test_a_number_is_trained_as_it_stands_or_refused():
    from hermes3.mix.read import parse

    row = {"messages": [USER, {**CALLS, "tool_calls": [tool_call("sky", {"n": 2**64 - 1})]}], "tools": [TOOL]}
    assert ADAPTERS["messages"](parse(json.dumps(row).encode()))["messages"][1:] == row["messages"][1:]
    too_long = json.dumps(row).replace(str(2**64 - 1), "123456789012345678901234")
    with pytest.raises(BadRow, match="tool_call_not_json: .* an integer beyond 64 bits"):
        ADAPTERS["messages"](parse(too_long.encode()))


@pytest.mark.parametrize("role", ["observation", "tool", "function_response"])
def test_sharegpt_calls_as_turns_of_their_own(role):
    call = ("function_call", '[{"name": "sky", "arguments": {"city": "Ulm"}}]')
    turns = ("human", "q"), call, (role, '{"sky": "grey"}'), ("gpt", "a")
    row = sharegpt(*turns, tools=json.dumps([TOOL["function"]]))
    assert ADAPTERS["sharegpt"](row) == {"messages": [USER, CALLS, RESPONSE, ANSWER], "tools": [TOOL]}


WORDINGS = {
    name: text.replace("@json", json.dumps([TOOL])).replace("@python", str([TOOL]))
    for name, text in yaml.safe_load((ROOT / "tests/tool_prompts.yml").read_text(encoding="utf-8")).items()
}
NEWEST, OLDER, COMMON = tools_system([TOOL]), WORDINGS["older"], WORDINGS["common"]
CALLED = '<tool_call>\n{"name": "sky", "arguments": {"city": "Ulm"}}\n</tool_call>'


@pytest.mark.parametrize("prompt", [NEWEST, *WORDINGS.values(), COMMON.replace(". ", ".\n")])
@pytest.mark.parametrize(
    "call",
    [
        CALLED,
        "<tool_call>\n{'arguments': {'city': 'Ulm'}, 'name': 'sky'}\n</tool_call>\n",
        '<tool_call>{"arguments": "{\\"city\\": \\"Ulm\\"}", "name": "sky"}</tool_call>',
    ],
)
@pytest.mark.parametrize(
    "response",
    [
        '<tool_response>\n{"name": "sky", "content": {"sky": "grey"}}\n</tool_response>\n',
        "<tool_response>\n{'sky': 'grey'}\n</tool_response>",
        '{"sky": "grey"}',
    ],
)
def test_hermes_text_becomes_structured(prompt, call, response):
    row = sharegpt(("system", prompt), ("human", "q"), ("gpt", call), ("tool", response), ("gpt", "a"))
    assert ADAPTERS["sharegpt"](row) == {"messages": [USER, CALLS, RESPONSE, ANSWER], "tools": [TOOL]}


def test_hermes_text_is_rendered_as_it_stood():
    system = tools_system([TOOL, {"type": "function", "function": {"name": "g"}}], "Be brief.")
    contents = '{"sky": "grey"}', '"not \\"known\\""'
    blocks = [f'<tool_response>\n{{"name": "sky", "content": {text}}}\n</tool_response>' for text in contents]
    calls = ("gpt", f"Let me look.\n{CALLED}\n{CALLED}"), ("tool", "\n".join(blocks))
    said = sharegpt(("system", system), ("human", "q"), *calls, ("gpt", "a"))
    got = ADAPTERS["sharegpt"](said)
    assert got["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in got["messages"]].count("tool") == 2
    assert [turn.text for turn in turns(**got)] == [turn["value"] for turn in said["conversations"]]


def test_what_a_system_message_says_beyond_the_standard_stays():
    extract = "You extract facts. "
    for system, own in [
        (f"{extract}{OLDER}", "You extract facts."),
        (f"{NEWEST}\n\nSpeak like a pirate.", "Speak like a pirate."),
        (f"{COMMON}\nBe brief.", "Be brief."),
        (f"First.\n<tools>{json.dumps(TOOL)}</tools>\nLast.", "First.\n\nLast."),
    ]:
        got = ADAPTERS["sharegpt"](sharegpt(("system", system), ("human", "q"), ("gpt", CALLED)))
        assert got == {"messages": [{"role": "system", "content": own}, USER, CALLS], "tools": [TOOL]}


def test_a_tools_column_goes_before_the_prompt_s_schemas():
    column = {**TOOL, "function": {**TOOL["function"], "description": "column"}}
    row = sharegpt(("system", NEWEST), ("human", "q"), ("gpt", CALLED), tools=json.dumps([column]))
    assert ADAPTERS["sharegpt"](row) == {"messages": [USER, CALLS], "tools": [column]}


def test_tags_in_prose_stay_text_where_no_tools_are_declared():
    asked = ("human", "How do I write <tool_call>?"), ("gpt", f"So:\n```\n{CALLED}\n```")
    examples = "Schemas stand in <tools> and </tools>.", "E.g. <tools>[{name}]</tools>, <tools>[]</tools>"
    for system in ("Explain.", *examples):
        row = sharegpt(("system", system), *asked)
        got = ADAPTERS["sharegpt"](row)
        assert [m["content"] for m in got["messages"]] == [turn["value"] for turn in row["conversations"]]
        assert got["tools"] == [] and "tool_calls" not in got["messages"][2]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("gpt", "<tool_call>{sky}</tool_call>")], "tool_call_not_json"),
        ([("gpt", "<tool_call></tool_call>")], "tool_call_not_json"),
        ([("gpt", CALLED.replace('"Ulm"', "NaN"))], "tool_call_not_json"),
        ([("gpt", CALLED.replace("sky", "sea"))], "undeclared_tool"),
        ([("gpt", f"{CALLED} There.")], "text_after_tool_call"),
        ([("tool", "x")], "response_without_call"),
        ([("gpt", CALLED), ("tool", "x<tool_response>1</tool_response>")], "tool_response_not_json"),
    ],
)
def test_hermes_text_that_cannot_be_read_is_refused(turns, expected):
    strange = COMMON.replace("return a JSON object", "give back an object")
    assert reason("sharegpt", sharegpt(("system", strange), ("human", "q"), ("gpt", "a"))) == "tools_prompt_not_known"
    assert reason("sharegpt", sharegpt(("system", NEWEST), ("human", "q"), *turns)) == expected
    broken = NEWEST.replace('"type"', "type", 1)
    assert reason("sharegpt", sharegpt(("system", broken), ("human", "q"), ("gpt", "a"))) == "tools_not_json"


RAG = {
    "documents": "Document:0\nTitle: Fair\nText: In May.\n\nDocument:1\nTitle: Market\nText: On Monday.\nOr Friday.",
    "question": "When?",
    "answer": "Cited Documents: 1\nIt is on <co: 1>Monday</co: 1>, the fair <co:0,1>in May</co>.",
    "system_prompt": None,
    "answer_mode": "Grounded",
}


def test_rag_takes_the_paper_s_form():
    got = ADAPTERS["glaive_rag"](RAG)["messages"]
    documents = "Document:0 Title: Fair Text: In May.\nDocument:1 Title: Market Text: On Monday.\nOr Friday."
    answer = "It is on <co:1>Monday</co>, the fair <co:0,1>in May</co>.\nCited Documents: 0, 1"
    assert [message["role"] for message in got] == ["system", "user", "assistant"]
    assert [message["content"] for message in got] == [rag_system(), f"When?\nCONTEXT:\n{documents}", answer]
    listed = [{"title": "Fair", "text": "In May."}, {"title": "Market", "text": "On Monday.\nOr Friday."}]
    assert ADAPTERS["glaive_rag"]({**RAG, "documents": listed})["messages"] == got


def test_rag_keeps_its_own_system_message_and_asks_for_citations_once():
    own = {"system_prompt": "Be brief."}
    assert ADAPTERS["glaive_rag"](RAG | own)["messages"][0]["content"] == f"Be brief.\n\n{rag_system()}"
    mixed = ADAPTERS["glaive_rag"](RAG | own | {"answer_mode": "Mixed"})["messages"][0]["content"]
    assert mixed.startswith("Be brief.\n\n") and "from what you know" in mixed and "<co: doc_id></co>" in mixed
    own = {"system_prompt": "Cite as <co: doc_id></co>."}
    assert ADAPTERS["glaive_rag"](RAG | own)["messages"][0]["content"] == "Cite as <co: doc_id></co>."


def test_rag_documents_are_numbered_from_0_and_citations_with_them():
    one = {"documents": RAG["documents"].replace("Document:1", "Document:2").replace("Document:0", "Document:1")}
    answer = ADAPTERS["glaive_rag"](RAG | one | {"answer": "<co:2>Monday</co>"})["messages"][2]["content"]
    assert answer == "<co:1>Monday</co>\nCited Documents: 1"
    assert ADAPTERS["glaive_rag"](RAG | {"answer": "Not said."})["messages"][2]["content"] == "Not said."


def test_a_preference_s_answers_come_in_every_form():
    other = {**ANSWER, "content": "b"}
    answers = [
        {"chosen": "a", "rejected": {"content": "b"}},
        {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"value": "b"}},
        {"chosen": [ANSWER], "rejected": [{"from": "gpt", "value": "b", "weight": 0}]},
        # ultrafeedback_binarized: both sides whole, a `messages` column that already holds the chosen answer
        {"chosen": [USER, ANSWER], "rejected": [USER, other], "messages": [USER, ANSWER], "score_chosen": 8.5},
    ]
    for columns in answers:
        got = ADAPTERS["preference"]({"prompt": "q"} | columns)
        assert got == {"messages": [USER], "tools": [], "chosen": ANSWER, "rejected": other}, columns


def test_a_preference_may_be_between_calls():
    prompt = [("system", NEWEST), ("human", "q"), ("gpt", CALLED), ("tool", "<tool_response>\n1\n</tool_response>")]
    row = {**sharegpt(*prompt, ("gpt", "a"), ("human", "q")), "chosen": CALLED, "rejected": {"value": "no"}}
    got = ADAPTERS["preference"](row)
    assert got["messages"] == [USER, CALLS, {**RESPONSE, "content": "1"}, ANSWER, USER] and got["tools"] == [TOOL]
    assert got["chosen"] == CALLS and got["rejected"]["content"] == "no"


@pytest.mark.parametrize("case", DATA["refused"])
def test_a_row_of_the_wrong_shape_is_refused(case):
    assert reason(case["adapter"], case["row"]) == case["reason"]


def test_a_response_answers_a_call_that_is_open():
    of_no_call = {"role": "tool", "tool_call_id": "c9", "content": "x"}
    assert reason("messages", {"messages": [USER, CALLS, of_no_call], "tools": [TOOL]}) == "tool_response_unnamed"
    late = [USER, CALLS, USER, RESPONSE]
    assert reason("messages", {"messages": late, "tools": [TOOL]}) == "response_without_call"
    assert reason("sharegpt", sharegpt(("function_call", "[" * 10**5))) == "tool_call_not_json"


def test_a_reason_is_either_of_shape_or_of_content_and_names_the_columns():
    assert {"wrong_shape", "content_not_text", "tool_call_not_json", "mark_not_understood"} <= SHAPE
    assert not SHAPE & {"role_order", "empty_turn", "undeclared_tool", "no_preference", "citation_without_document"}
    with pytest.raises(BadRow, match=r"no question of type str among \['text', 'meta'\]"):
        ADAPTERS["question_answer"]({"text": "x", "meta": {}})


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_but_bad_row_is_raised_for_a_row_of_another_kind(adapter):
    deep: list = []
    for _ in range(2 * sys.getrecursionlimit()):
        deep = [deep]
    for row in (None, 3, "x", [], {}, deep, {"messages": deep, "conversations": deep, "chosen": deep}, {"tools": deep}):
        with pytest.raises(BadRow):
            ADAPTERS[adapter](row)


@pytest.mark.skipif(not REAL.is_dir(), reason="the files of data_mixes/open_small.yml are not on this machine")
def test_no_row_of_the_real_files_is_refused():
    assert len(real_rows()) == 1923 + 4535 + 7473 + 300
    pairs = json.loads((REAL / "dpo_pairs.json").read_text(encoding="utf-8"))
    assert len([ADAPTERS["preference"](row) for row in pairs]) == 300


def build_of(folder, base, rows: dict[str, list[dict]], **keys):
    """Build a mix of sources of adapter messages, `rows` by name; `keys` are of each source."""
    from hermes3.mix.build import build

    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
    own = [{"name": n, "path": f"{n}.jsonl", "adapter": "messages", "licence": "our own", **keys} for n in rows]
    spec = {"name": "m", "kind": "sft", "tokenizer": str(base), "sequence_len": 512, "seed": 1}
    spec |= {"categories": {"math": {"sources": own}}}
    (folder / "m.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return build(folder / "m.yml", folder / "mix", folder, workers=1, quiet=True).manifest


def test_a_build_stops_at_what_its_adapters_do_not_read_and_says_the_ways_out(base, tmp_path):
    rows = {"s": [{"messages": SAID, "passage": "p", "topic": "t"}, {"messages": [USER, {**ANSWER, "thinking": "r"}]}]}
    with pytest.raises(ValueError, match=r"source s: adapter messages does not read passage \(1 rows\), thinking"):
        build_of(tmp_path, base, rows)
    with pytest.raises(ValueError, match=r"`columns: \{thinking: COLUMN\}`.*`ignore: \[thinking\]`"):
        build_of(tmp_path, base, rows, columns={"passage": "system"})
    record = build_of(tmp_path, base, rows, ignore=["passage", "thinking"])
    [source] = record["sources"]
    assert source["columns_read"] == {"messages": 2}
    assert source["columns_unread"] == {"passage": 1, "thinking": 1, "topic": 1}
    selected = {"s": [{"messages": SAID, "passage": "p"}]}
    build_of(tmp_path, base, selected, where={"passage": "p"})


def test_a_source_without_a_row_is_named_and_bad_rows_are_counted_by_source(base, tmp_path):
    for rows in ({"dry": []}, {"full": [{"messages": SAID}], "dry": []}):
        with pytest.raises(ValueError, match=r"source dry: dry\.jsonl holds no row"):
            build_of(tmp_path, base, rows)
    rows = {"s": [{"messages": SAID}, {"messages": "x"}]}
    with pytest.raises(ValueError, match=r"1 of 2 rows are not of shape messages; .*max_bad_rows \(now 0\.01\)"):
        build_of(tmp_path, base, rows)
    assert build_of(tmp_path, base, rows, max_bad_rows=0.5)["total"]["rows"] == 1
