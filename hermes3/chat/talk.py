"""A conversation in the terminal: the model's own chat template, and transformers' own generation and streaming."""

import json
import logging
from pathlib import Path
from typing import Any

from hermes3.chat.prompts import parse_tool_calls
from hermes3.files import UserError, not_fetched, read_text
from hermes3.messages import Message
from hermes3.model_folder import check_model


class Speaker:
    """One model and its own copy of the conversation."""

    def __init__(self, name: str, messages: list[Message], tools: list[Message] | None, device: str | None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if Path(name).is_dir():
            check_model(Path(name))
        elif name.count("/") != 1 or name.startswith((".", "/")):
            raise UserError(f"{name}: no such folder, and not a Hub id (OWNER/NAME)")
        self.name, self.messages, self.tools = name, messages, tools
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except OSError as error:
            raise not_fetched(name, error) from None
        if not self.tokenizer.chat_template:
            raise UserError(f"{name}: no chat template; give it one with `hermes3 tokenizer build {name} FOLDER`")
        place = device or ("auto" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", device_map=place).eval()

    def answer(self, settings: dict[str, Any], stream: bool) -> str:
        """The next assistant message, which joins the conversation; `stream`: printed while it is generated.

        `settings`: those of transformers' `generate`; `max_new_tokens` is cut to the room that the model has.
        """
        from transformers import TextStreamer

        prompt = self.tokenizer.apply_chat_template(
            self.messages, tools=self.tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        n_prompt = prompt["input_ids"].shape[1]
        room = self.model.config.max_position_embeddings - n_prompt
        if room < 1:
            raise UserError(
                f"{self.name}: the conversation has {n_prompt:,} tokens, the model's limit; begin a new one"
            )
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        limit = {"max_new_tokens": min(settings["max_new_tokens"], room), "pad_token_id": self.tokenizer.pad_token_id}
        ids = self.model.generate(**prompt, **settings | limit, streamer=streamer)
        text = self.tokenizer.decode(ids[0, n_prompt:], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text


def talk(
    names: list[str], system: str | None, tools: Path | None, device: str | None, seed: int, settings: dict[str, Any]
) -> None:
    """Read prompts from the terminal or a pipe, and print the answers of each model, until the input ends."""
    import readline  # noqa: F401, `input` then edits lines and keeps a history

    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao's enums
    offered = read_tools(tools) if tools else None
    first = [] if system is None else [{"role": "system", "content": system}]
    speakers = [Speaker(name, [*first], offered, device) for name in names]
    torch.manual_seed(seed)
    print(f"{' | '.join(names)}, on {speakers[0].model.device}. Ctrl-D ends, Ctrl-C stops an answer.")
    while (prompt := _ask("you")) is not None:
        before = [[*speaker.messages] for speaker in speakers]
        for speaker in speakers:
            speaker.messages.append({"role": "user", "content": prompt})
        try:
            _alone(speakers[0], settings) if len(speakers) == 1 else _side_by_side(speakers, settings)
        except KeyboardInterrupt:
            for speaker, messages in zip(speakers, before, strict=True):
                speaker.messages = messages
            print("\nstopped; this prompt and its answer are left out of the conversation")


def _ask(who: str) -> str | None:
    """A line that is not blank; None at the end of the input."""
    try:
        while not (line := input(f"\n{who}> ").strip()):
            pass
        return line
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _alone(speaker: Speaker, settings: dict[str, Any]) -> None:
    """Stream an answer; for each tool that it calls, ask for the tool's answer, and go on."""
    text = speaker.answer(settings, stream=True)
    while speaker.tools and (calls := parse_tool_calls(text)):
        for call in calls:
            if (response := _ask(f"answer of {_as_text(call)}")) is None:
                return
            speaker.messages.append({"role": "tool", "name": call["name"], "content": response})
        text = speaker.answer(settings, stream=True)


def _side_by_side(speakers: list[Speaker], settings: dict[str, Any]) -> None:
    """One column per model. Tools that are called are shown, not answered."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(speaker.name, overflow="fold", ratio=1) for speaker in speakers), expand=True)
    answers = [speaker.answer(settings, stream=False) for speaker in speakers]
    table.add_row(*map(Text, answers))
    Console().print(table)


def _as_text(call: dict[str, Any]) -> str:
    return f"{call['name']}({', '.join(f'{key}={json.dumps(value)}' for key, value in call['arguments'].items())})"


def read_tools(path: Path) -> list[Message]:
    """Tool schemas of a JSON file: a list, each in OpenAI's form or its `function` alone."""
    try:
        tools = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give a list of tool schemas") from None
    listed = tools if isinstance(tools, list) else []
    bare = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in listed]
    if not bare or not all(isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in bare):
        raise UserError(f'{path}: not a list of tool schemas; write [{{"name": ..., "parameters": ...}}, ...]')
    return [{"type": "function", "function": tool} for tool in bare]
