"""lm-eval tasks whose rows are whole conversations, and checks of what a model generates.

lm-eval builds every prompt from one user text; a row here brings its own system message and tools, and goes through the
model's chat template as it is. Rows are jsonl: `messages` ending with the user, and what the task's check needs.
"""

import json
from pathlib import Path

from datasets import Dataset
from jsonschema import ValidationError, validate
from lm_eval.api.task import ConfigurableTask

from hermes3.chat.prompts import parse_tool_calls, tools_system

END = "<|im_end|>"
CUT = "\0"  # token 188 of Llama 3's vocabulary, and of any byte-level BPE whose first 256 tokens are the bytes


class ChatTask(ConfigurableTask):
    """A task whose prompt is the row's conversation, rendered by the model's chat template."""

    def __init__(self, config: dict):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, doc, num_fewshot, *args, chat_template=None, **kwargs):
        if chat_template is None:
            raise ValueError(f"{self.config.task}: run lm_eval with --apply_chat_template")
        if num_fewshot:
            raise ValueError(f"{self.config.task}: rows are whole conversations, examples have no place in them")
        return chat_template(prompt(doc))


class EndOfTurnTask(ChatTask):
    """Whether answers end within `max_gen_toks`, told by their tokens: no backend of lm-eval says why it stopped.

    ended: something is said, in fewer than nine tenths of the tokens allowed. A cut answer encodes anew to about as
    many as it was made of; a tenth is room for those that merge.
    """

    def fewshot_context(self, doc, num_fewshot, *args, chat_template=None, **kwargs):
        text = super().fewshot_context(doc, num_fewshot, *args, chat_template=chat_template, **kwargs)
        self.encode = chat_template.__self__.tok_encode
        return text

    def process_results(self, doc, results):
        tokens = len(self.encode(results[0], add_special_tokens=False))
        return {"ended": int(0 < tokens < 0.9 * self.config.generation_kwargs["max_gen_toks"])}


def prompt(doc: dict) -> list[dict]:
    """The row's messages; its tools are offered by the system message, since lm-eval hands no tools to a template."""
    row = json.loads(doc["row"])
    messages, tools = row["messages"], row.get("tools")
    if not tools:
        return messages
    own = messages[0]["content"] if messages[0]["role"] == "system" else None
    rest = messages if own is None else messages[1:]
    return [{"role": "system", "content": tools_system(tools, own)}, *rest]


def load(path: str, **_) -> dict[str, Dataset]:
    """Rows as JSON text: a table's columns would fill the objects of one row with the keys of all others."""
    if not Path(path).is_file():
        raise ValueError(f"no {path}; `make demo` writes it with data_mixes/samples/generate.py")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([{"row": line} for line in lines])}


def question(doc: dict) -> str:
    return json.loads(doc["row"])["messages"][-1]["content"]


def choices(doc: dict) -> list[str]:
    """Whole answers with their end of turn: a model must also prefer to stop there."""
    return [choice + END for choice in json.loads(doc["row"])["choices"]]


def answer(doc: dict) -> int:
    return json.loads(doc["row"])["answer"]


def pair(doc: dict) -> list[str]:
    """Chosen first: accuracy is the share of pairs whose chosen answer has the higher log-probability."""
    row = json.loads(doc["row"])
    return [row[side]["content"] + END for side in ("chosen", "rejected")]


def score_tool_call(doc: dict, results: list[str]) -> dict[str, int]:
    """valid: every call parses, names a tool on offer, and its arguments fit that tool's schema; exact: as expected."""
    row = json.loads(doc["row"])
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
    calls = parse_tool_calls(results[0])
    valid = bool(calls) and all(c["name"] in schemas and fits(c["arguments"], schemas[c["name"]]) for c in calls)
    return {"valid": int(valid), "exact": int(valid and calls == row["expected"])}


def score_json(doc: dict, results: list[str]) -> dict[str, int]:
    """valid: the whole answer is one JSON value that fits the schema; exact: it equals the expected one."""
    row = json.loads(doc["row"])
    try:
        value = json.loads(results[0].removesuffix(END))
    except json.JSONDecodeError:
        return {"valid": 0, "exact": 0}
    return {"valid": int(fits(value, row["schema"])), "exact": int(value == row["expected"])}


def score_end(doc: dict, results: list[str]) -> dict[str, int]:
    """ended: the model ended its turn within the limit of tokens; at the limit the task forces the byte `CUT`."""
    return {"ended": int(not results[0].endswith(CUT))}


def fits(value: object, schema: dict) -> bool:
    try:
        validate(value, schema)
    except ValidationError:
        return False
    return True
