"""`hermes3 chat`: what each side of the conversation holds, and what the terminal shows."""

import json

import pytest
import torch
import transformers

from hermes3.chat.talk import Speaker, chat, read_tools
from hermes3.files import UserError

TOOLS = [{"name": "weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def typed(monkeypatch):
    """Types the lines that a test gives, then ends the input; returns the prompts before which each was typed."""

    def type_lines(*lines: str) -> list[str]:
        waiting, prompts = list(lines), []

        def read(prompt: str) -> str:
            prompts.append(prompt.strip())
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", read)
        return prompts

    return type_lines


@pytest.fixture
def scripted(monkeypatch):
    """Models that say what a test gives, one text per turn; returns the conversations that they answered."""

    def script(*texts: str | None) -> list[str]:
        waiting, prompts = list(texts), []

        def generate(self, input_ids, **settings):
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name_or_path)
            prompts.append(tokenizer.decode(input_ids[0]))
            if (text := waiting.pop(0)) is None:
                raise KeyboardInterrupt
            answer = tokenizer(text + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
            return torch.cat([input_ids, answer], dim=1)

        monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", generate)
        return prompts

    return script


def test_an_answer_streams_and_two_models_stand_side_by_side(base, typed, capsys):
    speaker = Speaker(str(base), [{"role": "user", "content": "Hello"}], None, "cpu")
    text = speaker.answer({"max_new_tokens": 4, "do_sample": False}, stream=True)
    assert speaker.messages[-1] == {"role": "assistant", "content": text}
    assert text in capsys.readouterr().out
    prompts = typed("Hello", "", "Again")
    chat(str(base), compare=[str(base)], device="cpu", max_tokens=4, temperature=0)
    assert capsys.readouterr().out.count("┏") == 2 and prompts == ["you>"] * 4


def test_a_tool_that_is_called_is_answered_by_the_user(base, typed, scripted, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    asked, answered = typed("Weather in Rome?", "sunny"), scripted(CALL, "It is sunny.")
    chat(str(base), system="Be brief.", tools=tmp_path / "tools.json", device="cpu")
    assert asked == ["you>", 'answer of weather(city="Rome")>', "you>"]
    assert "Be brief.<|im_end|>" in answered[0] and '"name": "weather"' in answered[0]
    assert CALL + "<|im_end|>" in answered[1]
    assert '<tool_response>\n{"name": "weather", "content": "sunny"}\n</tool_response><|im_end|>' in answered[1]


def test_a_stopped_answer_leaves_the_conversation_as_it_was(base, typed, scripted, capsys):
    typed("One", "Two", "Three")
    prompts = scripted("first", None, "third")
    chat(str(base), device="cpu")
    assert "stopped" in capsys.readouterr().out
    assert "One" in prompts[2] and "Two" not in prompts[2] and "Three" in prompts[2]


@pytest.mark.parametrize("text", ["{", "3", "[]", '[{"name": 3}]', '[{"function": null}]', '["weather"]'])
def test_what_is_no_list_of_tools_is_refused(text, tmp_path):
    (tmp_path / "tools.json").write_text(text)
    with pytest.raises(UserError, match="tools.json: not a list of tool schemas"):
        read_tools(tmp_path / "tools.json")
