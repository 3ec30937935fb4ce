"""Conversations, written, random and typed: our ids and mask, the template's and Axolotl's, and `hermes3 chat`."""

import json
import re

import pytest
import torch
import transformers
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hermes3.chat.prompts import json_system, parse_tool_calls, rag_system, rag_user
from hermes3.chat.render import IGNORE, as_text, assistant_text, prompt_text, turns
from hermes3.chat.talk import Speaker, chat
from hermes3.messages import BadRow, check, clean, tool_call

DATA = yaml.safe_load((ROOT / "tests/chat_cases.yml").read_text(encoding="utf-8"))
TOOLS = [DATA["tool"]]
CASES = {
    name: (case["messages"], TOOLS * case["tools"] if "tools" in case else None)
    for name, case in DATA["conversations"].items()
}
USER, CALL, _, ANSWER = CASES["tools"][0]

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
    tools *= draw(st.integers(0, 1))
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        if tools and draw(st.booleans()):
            calls = [tool_call("f", draw(ARGUMENTS)) for _ in range(draw(st.integers(1, 2)))]
            messages.append({"role": "assistant", "content": draw(TEXT), "tool_calls": calls})
            contents = [draw(st.one_of(SAID, JSON.map(json.dumps), BRACKETED)) for _ in calls]
            messages += [{"role": "tool", "name": "f", "content": content} for content in contents]
        messages.append({"role": "assistant", "content": draw(SAID)})
    return [clean(message) for message in messages], tools


@pytest.fixture(scope="module")
def axolotl_strategy(tokenizer):
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault({"chat_template": "tokenizer_default", "sequence_len": 4096, "train_on_inputs": False})
    ds_cfg = {"field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
    return load(tokenizer, cfg, ds_cfg=DictDefault(ds_cfg))


def compare(messages, tools, renderer, tokenizer):
    """Ours, which has the template's ids and mask."""
    ours = renderer.render([(messages, tools)])[0]
    theirs = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert [int(label != IGNORE) for label in ours.labels] == theirs["assistant_masks"]
    return ours


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
    messages = [{"role": one, "content": "hi"} for one in ("system", "user", "assistant")]
    messages[role]["content"] = content = "".join(pieces).strip() or "x"
    ids = renderer.render([(messages, None)])[0].input_ids.tolist()
    assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL] == [3, 3, 1, 0, 0]
    assert content in tokenizer.decode(ids, clean_up_tokenization_spaces=False)


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


@pytest.mark.parametrize("case", CASES)
def test_every_form_is_rendered_as_its_golden_file_and_has_axolotl_s_labels(
    case, renderer, tokenizer, axolotl_strategy
):
    messages, tools = CASES[case]
    ours = compare(messages, tools, renderer, tokenizer)
    theirs = axolotl_strategy.tokenize_prompt({"messages": messages} | ({"tools": tools} if tools else {}))
    assert (ours.input_ids.tolist(), ours.labels.tolist()) == (theirs["input_ids"], theirs["labels"])
    golden = ROOT / "tests/golden/hermes3" / f"{case.replace(' ', '_')}.txt"
    assert golden.read_text(encoding="utf-8") == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer.bos_token + prompt_text(messages[:-1], tools)


def test_every_example_in_the_docs_is_part_of_a_golden_file():
    page = (ROOT / "docs/chat_format.md").read_text(encoding="utf-8")
    examples = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    rendered = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests/golden/hermes3").glob("*.txt"))
    assert len(examples) >= 4 and [example for example in examples if example not in rendered] == []


def test_the_system_and_user_messages_of_the_forms_are_those_of_the_cases():
    system, *_ = CASES["json mode"][0]
    assert json_system({"type": "object", "properties": {"city": {"type": "string"}}}) == system["content"]
    system, user, _ = CASES["citations"][0]
    documents = [("Fair", "In May."), ("Market", "On Monday.")]
    assert (rag_system(), rag_user("When is the market?", documents)) == (system["content"], user["content"])


@pytest.mark.parametrize("text", DATA["broken_calls"])
def test_a_broken_call_is_no_call(text):
    assert parse_tool_calls(text) is None


@pytest.mark.parametrize("case", DATA["refused"])
def test_the_template_refuses_what_it_cannot_say(case, tokenizer):
    with pytest.raises(Exception, match=case["says"]):
        tokenizer.apply_chat_template(case["messages"], tokenize=False)


@pytest.mark.parametrize("content", DATA["tool_text"])
def test_tool_text_that_is_no_json_stands_as_a_string(content, tokenizer):
    written = DATA["tool_text"][content]
    messages = [USER, CALL, {"role": "tool", "content": content, "name": "get_weather"}]
    ours = list(turns(messages, TOOLS))[-1].text
    assert ours == f'<tool_response>\n{{"name": "get_weather", "content": {written}}}\n</tool_response>'
    messages[1] = CALL | {"content": None}  # a call needs none
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert ours in text and "<|im_start|>assistant\n<tool_call>\n" in text


def test_a_row_is_shown_with_what_bears_loss(renderer, tokenizer):
    tokens = renderer.render([CASES["tools"]])[0]
    text = as_text(tokens, tokenizer)
    assert text.plain.startswith(tokenizer.decode(tokens.input_ids))
    spans = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    trained = "".join(piece for piece, style in spans if "green" in style)
    assert trained.startswith("<tool_call>") and trained.endswith("It is grey.<|im_end|>")
    assert {"<tool_call>", "<|im_end|>"} <= {piece for piece, style in spans if "bold" in style}
    assert (renderer.render([([USER, ANSWER | {"train": False}], None)])[0].labels == IGNORE).all()


@pytest.fixture
def terminal(monkeypatch):
    """Types lines, then ends the input; models say `texts`, None: Ctrl-C. Returns the prompts, and what was read."""

    def script(*lines: str, texts: tuple[str | None, ...] = ()) -> tuple[list[str], list[str]]:
        typing, speaking, asked, answered = iter(lines), iter(texts), [], []

        def read(prompt: str) -> str:
            asked.append(prompt.strip())
            if (line := next(typing, None)) is None:
                raise EOFError
            return line

        def generate(self, input_ids, **settings):
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name_or_path)
            answered.append(tokenizer.decode(input_ids[0]))
            if (text := next(speaking)) is None:
                raise KeyboardInterrupt
            answer = tokenizer(text + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
            return torch.cat([input_ids, answer], dim=1)

        monkeypatch.setattr("builtins.input", read)
        if texts:
            monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", generate)
        return asked, answered

    return script


def test_an_answer_streams_and_two_models_stand_side_by_side(base, terminal, capsys):
    speaker = Speaker(str(base), [{"role": "user", "content": "Hello"}], None, "cpu", max_new_tokens=4)
    text = speaker.answer(stream=True)
    assert speaker.messages[-1] == {"role": "assistant", "content": text}
    assert text in capsys.readouterr().out
    asked, _ = terminal("Hello", "", "Again")
    chat(str(base), compare=[str(base)], device="cpu", max_tokens=4, temperature=0)
    assert capsys.readouterr().out.count("┏") == 2 and asked == ["you>"] * 4


def test_a_tool_is_answered_by_the_user_and_a_stopped_answer_leaves_nothing(base, terminal, tmp_path, capsys):
    (tmp_path / "tools.json").write_text(json.dumps([DATA["tool"]["function"]]))
    call = assistant_text(CALL).replace("Köln", "Rome")
    asked, answered = terminal("Weather?", "sunny", "Two", "Three", texts=(call, "It is sunny.", None, "third"))
    chat(str(base), system="Be brief.", tools=tmp_path / "tools.json", device="cpu")
    assert asked == ["you>", 'answer of get_weather(city="Rome")>', "you>", "you>", "you>"]
    assert "Be brief.<|im_end|>" in answered[0] and '"name": "get_weather"' in answered[0]
    assert call + "<|im_end|>" in answered[1]
    assert '<tool_response>\n{"name": "get_weather", "content": "sunny"}\n</tool_response><|im_end|>' in answered[1]
    assert "stopped" in capsys.readouterr().out
    assert "It is sunny" in answered[3] and "Two" not in answered[3] and "Three" in answered[3]
