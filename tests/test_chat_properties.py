"""Random and real conversations: our ids and mask against the template's, and Axolotl's and TRL's view of it."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, real_rows
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_chat import CASES

from hermes3.chat.prompts import parse_tool_calls
from hermes3.chat.render import IGNORE, Renderer, assistant_text, prompt_text
from hermes3.messages import BadRow, check, clean, tool_call

# what people type: any Unicode but lone surrogates, blank lines, code, markup, and tags of the format itself
PIECES = st.sampled_from(["\n", "\n\n", " ", "  \n", "\t", "```", "<tool_call>", "</tool_call>", "<SCRATCHPAD>", "a"])
TYPED = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | PIECES
TEXT = st.lists(TYPED, max_size=6).map("".join)
SAID = TEXT.filter(str.strip)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# what only looks like JSON, and what is JSON in every way that a number or a string may be written
ATOMS = [*"{}[],: \nsv", *r"""1 -0.5e+3 01 1. NaN true None "a" 'a' "\n" "\u00e9" "\u0g" "\x" """.split(), '"\t"']  # noqa: SIM905
BRACKETED = st.lists(st.sampled_from(ATOMS), max_size=9).map(lambda atoms: f"[{''.join(atoms)}]")
BRACKETED |= JSON.map(lambda value: json.dumps([value], indent=1)) | JSON.map(lambda value: str({"a": value}))
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=3)
many = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    tools = [{"type": "function", "function": {"name": "f", "description": draw(TEXT), "parameters": {}}}]
    tools = tools if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        if tools and draw(st.booleans()):
            calls = [tool_call("f", draw(ARGUMENTS)) for _ in range(draw(st.integers(1, 2)))]
            messages.append({"role": "assistant", "content": draw(TEXT), "tool_calls": calls})
            for _ in calls:
                content = draw(st.one_of(SAID, JSON.map(json.dumps), BRACKETED))
                messages.append({"role": "tool", "name": "f", "content": content})
        messages.append({"role": "assistant", "content": draw(SAID)})
    return [clean(message) for message in messages], tools


@pytest.fixture(scope="module")
def renderer(tokenizer) -> Renderer:
    return Renderer(Path(tokenizer.name_or_path))


@pytest.fixture(scope="module")
def axolotl_strategy(tokenizer):
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault({"chat_template": "tokenizer_default", "sequence_len": 4096, "train_on_inputs": False})
    ds_cfg = {"field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
    return load(tokenizer, cfg, ds_cfg=DictDefault(ds_cfg))


def compare(messages, tools, renderer, tokenizer, strategy=None) -> None:
    """Ours with the template's ids and mask, and with Axolotl's ids and labels."""
    ours = renderer.render([(messages, tools)])[0]
    theirs = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert [int(label != IGNORE) for label in ours.labels] == theirs["assistant_masks"]
    if strategy:
        theirs = strategy.tokenize_prompt({"messages": messages, **({"tools": tools} if tools else {})})
        assert ours.input_ids.tolist() == theirs["input_ids"]
        assert ours.labels.tolist() == theirs["labels"]


@many
@given(conversation=conversations())
def test_ids_and_mask_equal_the_template_s(conversation, renderer, tokenizer):
    # tokenised as one text, the template makes a special token of one that is typed: the one difference, tested below
    assume("<|" not in json.dumps(conversation))
    try:
        check(*conversation)
    except BadRow:
        return
    compare(*conversation, renderer, tokenizer)


@many
@given(pieces=st.lists(st.one_of(TEXT, st.sampled_from(SPECIAL)), min_size=1, max_size=5), role=st.integers(0, 2))
def test_special_tokens_in_content_never_become_special_ids(pieces, role, renderer, tokenizer):
    contents = ["be kind", "hi", "hello"]
    contents[role] = "".join(pieces).strip() or "x"
    roles = ("system", "user", "assistant")
    messages = [{"role": r, "content": content} for r, content in zip(roles, contents, strict=True)]
    ids = renderer.render([(messages, None)])[0].input_ids.tolist()
    assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL] == [3, 3, 1, 0, 0]
    assert contents[role] in tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@many
@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_rendered_calls_parse_back(arguments):
    message = {"role": "assistant", "content": "", "tool_calls": [tool_call("f", one) for one in arguments]}
    if "</tool_call>" not in json.dumps(arguments):  # vLLM's grammar cannot carry its closing tag inside a string
        assert parse_tool_calls(assistant_text(message)) == [{"name": "f", "arguments": one} for one in arguments]


def test_axolotl_drops_nulls_from_arguments_and_we_do_not(renderer, tokenizer, axolotl_strategy):
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("f", {"a": None, "b": 1})]}
    messages = [{"role": "user", "content": "q"}, call]
    theirs = tokenizer.decode(axolotl_strategy.tokenize_prompt({"messages": messages})["input_ids"])
    ours = tokenizer.decode(renderer.render([(messages, None)])[0].input_ids)
    assert '"arguments": {"b": 1}' in theirs
    assert '"arguments": {"a": null, "b": 1}' in ours


@pytest.mark.skipif(not (ROOT.parent / "shared/data/train").is_dir(), reason="the files of open_small.yml are not here")
def test_real_rows_equal_the_template_s_and_axolotl_s(renderer, tokenizer, axolotl_strategy):
    rows = real_rows()[::12]
    assert len(rows) >= 1100
    for at, row in enumerate(rows):
        compare(row["messages"], row["tools"], renderer, tokenizer, None if at % 10 else axolotl_strategy)


def test_trl_s_checks_of_a_training_template(tokenizer):
    from trl import chat_template_utils as trl

    assert trl.has_generation_markers(tokenizer.chat_template)
    assert trl.is_chat_template_prefix_preserving(tokenizer)
    assert trl.is_chat_template_stop_token_trained(tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_every_form_is_rendered_as_its_golden_file_and_has_axolotl_s_labels(
    case, renderer, tokenizer, axolotl_strategy
):
    messages, tools = CASES[case]
    compare(messages, tools, renderer, tokenizer, axolotl_strategy)
    golden = ROOT / "tests/golden/hermes3" / f"{case.replace(' ', '_')}.txt"
    assert golden.read_text(encoding="utf-8") == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer.bos_token + prompt_text(messages[:-1], tools)


def test_every_example_in_the_docs_is_part_of_a_golden_file():
    page = (ROOT / "docs/chat_format.md").read_text(encoding="utf-8")
    examples = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    rendered = [file.read_text(encoding="utf-8") for file in (ROOT / "tests/golden/hermes3").glob("*.txt")]
    assert len(examples) >= 4
    assert [example for example in examples if not any(example in text for text in rendered)] == []
