"""A conversation in the terminal: the model's own chat template, and transformers' own generation and streaming."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from hermes3.chat.prompts import parse_tool_calls, to_json
from hermes3.files import UserError, read_text
from hermes3.messages import Message
from hermes3.model_folder import check_model, fetch


class Speaker:
    """One model and its own copy of the conversation; `settings` are those of transformers' `generate`."""

    def __init__(self, name: str, messages: list[Message], tools: list[Message] | None, device: str | None, **settings):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = fetch(name)
        if folder == Path(name):
            check_model(folder)
        self.name, self.messages, self.tools, self.settings = name, [*messages], tools, settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if not self.tokenizer.chat_template:
            raise UserError(f"{name}: no chat template; give it one with `hermes3 tokenizer build {name} FOLDER`")
        place = device or ("auto" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=place).eval()

    def answer(self, stream: bool) -> str:
        """The next assistant message, which joins the conversation; `stream`: printed while it is generated."""
        from transformers import TextStreamer

        prompt = self.tokenizer.apply_chat_template(
            self.messages, tools=self.tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        ids = self.model.generate(**prompt, **self.settings, streamer=streamer)[0, prompt["input_ids"].shape[1] :]
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text


def chat(
    model: Annotated[str, typer.Argument(help="folder of a whole model, or a Hub id")],
    compare: Annotated[list[str], typer.Option(help="another model that answers, too; may be repeated")] = [],  # noqa: B006
    system: Annotated[str | None, typer.Option(help="system prompt; the template's by default")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file: a list of tool schemas to offer")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; the GPUs by default, if there are any")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer at most")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.8,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
) -> None:
    """Talk to MODEL in the terminal. Ctrl-D ends; Ctrl-C stops an answer; a tool's answer is typed by you.

    Example: hermes3 chat outputs/tiny/sft/best --compare outputs/tiny/base
    """
    import readline  # noqa: F401, `input` then edits lines and keeps a history

    import rich.table
    import rich.text
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao's enums
    settings = {"max_new_tokens": max_tokens, "do_sample": temperature > 0, "temperature": temperature or None}
    first = [] if system is None else [{"role": "system", "content": system}]
    offered = read_tools(tools) if tools else None
    speakers = [Speaker(name, first, offered, device, **settings) for name in (model, *compare)]
    torch.manual_seed(seed)
    print(f"{' | '.join([model, *compare])}, on {speakers[0].model.device}. Ctrl-D ends, Ctrl-C stops an answer.")
    while (prompt := _ask("you")) is not None:
        n_before = len(speakers[0].messages)
        for speaker in speakers:
            speaker.messages.append({"role": "user", "content": prompt})
        try:
            if compare:  # tools that are called are shown, not answered
                columns = (rich.table.Column(speaker.name, overflow="fold", ratio=1) for speaker in speakers)
                table = rich.table.Table(*columns, expand=True)
                table.add_row(*[rich.text.Text(speaker.answer(stream=False)) for speaker in speakers])
                rich.print(table)
            else:
                _alone(speakers[0])
        except KeyboardInterrupt:
            for speaker in speakers:
                del speaker.messages[n_before:]
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


def _alone(speaker: Speaker) -> None:
    """Stream an answer; for each tool that it calls, ask for the tool's answer, and go on."""
    text = speaker.answer(stream=True)
    while speaker.tools and (calls := parse_tool_calls(text)):
        for call in calls:
            arguments = ", ".join(f"{key}={to_json(value)}" for key, value in call["arguments"].items())
            if (response := _ask(f"answer of {call['name']}({arguments})")) is None:
                return
            speaker.messages.append({"role": "tool", "name": call["name"], "content": response})
        text = speaker.answer(stream=True)


def read_tools(path: Path) -> list[Message]:
    """Tool schemas of a JSON file: a list, each in OpenAI's form or its `function` alone."""
    text = read_text(path)
    try:
        tools = [tool.get("function", tool) for tool in json.loads(text)]
        if not tools or not all(isinstance(tool["name"], str) for tool in tools):
            raise ValueError
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        form = '[{"name": ..., "parameters": ...}, ...]'
        raise UserError(f"{path}: not a list of tool schemas; write {form}") from None
    return [{"type": "function", "function": tool} for tool in tools]
