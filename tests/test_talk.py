"""`hermes3 chat`: what each side of the conversation holds, and what the terminal shows."""

import json

import pytest
import torch
import transformers

from hermes3.chat.talk import Speaker, chat

TOOLS = [{"name": "weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def terminal(monkeypatch):
    """Types lines, then ends the input; the models say `texts`, one per turn, None: Ctrl-C.

    It returns the prompts before which each line was typed, and the conversations that were answered.
    """

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
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    asked, answered = terminal("Weather in Rome?", "sunny", "Two", "Three", texts=(CALL, "It is sunny.", None, "third"))
    chat(str(base), system="Be brief.", tools=tmp_path / "tools.json", device="cpu")
    assert asked == ["you>", 'answer of weather(city="Rome")>', "you>", "you>", "you>"]
    assert "Be brief.<|im_end|>" in answered[0] and '"name": "weather"' in answered[0]
    assert CALL + "<|im_end|>" in answered[1]
    assert '<tool_response>\n{"name": "weather", "content": "sunny"}\n</tool_response><|im_end|>' in answered[1]
    assert "stopped" in capsys.readouterr().out
    assert "It is sunny" in answered[3] and "Two" not in answered[3] and "Three" in answered[3]
