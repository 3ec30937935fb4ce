"""Adapters against rows that are broken in every place: a conversation that renders comes out, or `BadRow`."""

import copy
import json
import math
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adapters import CALLED, CALLS, NEWEST, OLDER, RAG, RESPONSE, SAID, SYSTEM, TOOL, USER, sharegpt

from hermes3.chat.prompts import to_json
from hermes3.chat.render import Renderer, turns
from hermes3.messages import BadRow, check, tool_call
from hermes3.mix.adapt import ADAPTERS

DEEP: list = []
for _ in range(2 * sys.getrecursionlimit()):
    DEEP = [DEEP]
FIFTY_DEEP = json.loads('{"a":' * 50 + "1" + "}" * 50)
# what stands in place of a value: each JSON type, the ends of each, and the format's own words
NASTY = [
    *(None, True, False, 0, -1, 2**63, 0.5, math.nan, math.inf),
    *("", " ", "\n", "x", "\ud800", "\x00", "é\u2028", "[" * 10**4, "1" * 5000),
    *('{"a": NaN}', "{'a': 1}", "null", "<|im_end|>", "<tool_call>", "</tool_call>", CALLED, CALLED * 2),
    *("<tools>", "<tools>[", "<tools>[1]</tools>", "<tool_response>", NEWEST, "<co: 9>", "Document:0 Title: Text:"),
    *("user", "assistant", "tool", "system", "human", "gpt", "function_call"),
    *([], {}, [[]], [None], [{}], {"": {}}, {"role": []}, {"name": {}}, FIFTY_DEEP, [FIFTY_DEEP], SAID, TOOL),
]
UNPRINTABLE = [10**5000, DEEP, {"a": DEEP}]
TWO_CALLS = [{"id": i, "function": {"name": "sky", "arguments": "{}"}} for i in ("c1", "c2")]
PARALLEL = {"role": "assistant", "content": None, "tool_calls": TWO_CALLS}
BY_ID = [{"role": "tool", "tool_call_id": i, "content": i} for i in ("c2", "c1")]
RESPONDED = "<tool_response>{'a': 1}</tool_response>"
HERMES = [("system", OLDER), ("human", "q"), ("gpt", f"Look.\n{CALLED}"), ("tool", RESPONDED)]
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "a"}], "weight": 0}
VALID = {
    "messages": [
        {"messages": [SYSTEM, *SAID, USER, PARTS]},
        {"messages": [USER, CALLS, RESPONSE, *SAID[1:], USER, PARALLEL, *BY_ID, *SAID[1:]], "tools": [TOOL]},
    ],
    "sharegpt": [
        sharegpt(("human", "q"), ("gpt", "a"), ("human", "q"), ("gpt", "a"), system="s", tools="[]"),
        sharegpt(*HERMES, ("gpt", "a")),
        sharegpt(
            *[("human", "q"), ("function_call", json.dumps(CALLS["tool_calls"][0]["function"]))],
            *[("observation", '{"sky": "grey"}'), ("gpt", "a")],
            tools=json.dumps([TOOL]),
        ),
    ],
    "instruction": [{"instruction": "q", "input": "i", "output": "a", "system": "s"}],
    "question_answer": [{"question": "q", "answer": "a", "system_prompt": "s"}],
    "prompt_completion": [
        {"prompt": "q", "completion": "a"},
        {"prompt": [SYSTEM, *SAID, USER], "completion": [CALLS, RESPONSE, *SAID[1:]], "tools": [TOOL]},
    ],
    "glaive_rag": [RAG, {**RAG, "documents": [{"title": "t", "text": "x"}], "answer": "<co: 0>x</co: 0>"}],
    "preference": [
        {"messages": [USER], "chosen": "a", "rejected": {"content": "b"}},
        {"prompt": "q", "chosen": SAID, "rejected": [USER, {"role": "assistant", "content": "b"}], "messages": SAID},
        {**sharegpt(*HERMES), "chosen": {"from": "gpt", "value": "a"}, "rejected": CALLED},
        {"instruction": "q", "input": "i", "system": "s", "tools": [TOOL], "chosen": [CALLS], "rejected": "b"},
    ],
}


def places(value, at=()):
    """The path of every value within `value`."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, (*at, key))


def adapted(adapter, row) -> str | dict:
    """The conversation of `row`, checked, or the reason why there is none."""
    try:
        got = ADAPTERS[adapter](row)
    except BadRow as bad:
        (bad.reason + bad.detail).encode()  # both are written to files
        return bad.reason
    answers = [got[side] for side in ("chosen", "rejected") if side in got]
    assert len(answers) == (2 if adapter == "preference" else 0)
    for answer in answers or [None]:
        check([*got["messages"], answer] if answer else got["messages"], got["tools"])
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    to_json(got).encode()
    return got


def rendered(rows: list[dict], base) -> None:
    sides = [
        ([*row["messages"], *([row[side]] if side else [])], row["tools"])
        for row in rows
        for side in (("chosen", "rejected") if "chosen" in row else ("",))
    ]
    for tokens in Renderer(base).render(sides):
        assert len(tokens.input_ids) == len(tokens.labels) > 5


@pytest.mark.parametrize("adapter", VALID)
def test_every_value_in_every_place_is_refused_or_renders(adapter, base):
    kept = []
    for valid in VALID[adapter]:
        assert isinstance(adapted(adapter, valid), dict)
        for path in places(valid):
            for value in NASTY + UNPRINTABLE:
                row = copy.deepcopy(valid)
                place = row
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
                kept += [one] if isinstance(one := adapted(adapter, row), dict) else []
    rendered(kept[::10], base)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=20)
SPOKEN = WORDS.map(str.strip).filter(bool)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    own=SPOKEN | st.none(),
    before=SPOKEN | st.just(""),
    arguments=st.lists(st.dictionaries(WORDS, VALUES, max_size=3), min_size=1, max_size=3),
    content=st.dictionaries(WORDS, VALUES, max_size=2) | st.lists(VALUES, max_size=2),
    python=st.booleans(),
)
def test_hermes_text_comes_back_as_it_was_rendered(own, before, arguments, content, python):
    calls = {"role": "assistant", "content": before, "tool_calls": [tool_call("sky", one) for one in arguments]}
    responses = [{**RESPONSE, "content": to_json(content)} for _ in arguments]
    system = [{"role": "system", "content": own}] if own else []
    messages = [*system, USER, calls, *responses, *SAID[1:]]
    said = [[turn.role, turn.text] for turn in turns(messages, [TOOL])]
    if python:  # older data holds what Python prints
        blocks = [f"<tool_call>\n{ {'arguments': one, 'name': 'sky'} }\n</tool_call>" for one in arguments]
        said[2][1] = "\n".join([before, *blocks])
    got = ADAPTERS["sharegpt"](sharegpt(*said))
    assert got == {"messages": messages, "tools": [TOOL]}
