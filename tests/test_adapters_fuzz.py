"""Adapters against rows that are broken in every place: a conversation that renders comes out, or `BadRow`."""

import copy
import json
import math
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_adapters import CALLED, DATA, NEWEST, RESPONSE, SAID, TOOL, USER, sharegpt

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
    *("", " ", "\n", "x", "\ud800", "\x00", "é\u2028", "[" * 10**5, "1" * 5000),
    *('{"a": NaN}', "{'a': 1}", "null", "<|im_end|>", "<tool_call>", "</tool_call>", CALLED, CALLED * 2),
    *("<tools>", "<tools>[", "<tools>[1]</tools>", "<tool_response>", NEWEST, "<co: 9>", "Document:0 Title: Text:"),
    *("user", "assistant", "tool", "system", "human", "gpt", "function_call"),
    *([], {}, [[]], [None], [{}], {"": {}}, {"role": []}, {"name": {}}, FIFTY_DEEP, [FIFTY_DEEP], SAID, TOOL),
    *(10**5000, DEEP, {"a": DEEP}),
]
VALID = [(case["adapter"], case["row"]) for case in DATA["become"] + DATA["structured"]]
VALID += [("preference", case["row"] | {"chosen": "a", "rejected": {"content": "b"}}) for case in DATA["prompts"]]
VALID += [("preference", case["row"]) for case in DATA["answers"]]
VALID += [("glaive_rag", DATA["rag"]["row"] | case.get("columns", {})) for case in DATA["rag"]["cases"]]


def places(value, at=()):
    """The path of every value within `value`."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, (*at, key))


def adapted(adapter, row) -> list[tuple]:
    """The conversations of `row`, checked (of a preference both sides), or none."""
    try:
        got = ADAPTERS[adapter](row)
    except BadRow as bad:
        (bad.reason + bad.detail).encode()  # both are written to files
        return []
    answers = [[got[side]] for side in ("chosen", "rejected") if side in got] or [[]]
    for answer in answers:
        check([*got["messages"], *answer], got["tools"])
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    to_json(got).encode()
    return [([*got["messages"], *answer], got["tools"]) for answer in answers]


@pytest.mark.parametrize(("adapter", "valid"), VALID)
def test_every_value_in_every_place_is_refused_or_renders(adapter, valid, base):
    assert adapted(adapter, valid) and not any(adapted(adapter, value) for value in NASTY)
    kept = []
    for path in places(valid):
        for value in NASTY:
            row = place = copy.deepcopy(valid)
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            kept += adapted(adapter, row)
    for tokens in Renderer(base).render(kept[::10]):
        assert len(tokens.input_ids) == len(tokens.labels) > 5


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
    assert ADAPTERS["sharegpt"](sharegpt(*said)) == {"messages": messages, "tools": [TOOL]}
