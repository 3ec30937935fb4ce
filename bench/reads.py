"""`make reads`: write hermes3/recipe/reads.json, which says for the installed Axolotl what reads each key of a recipe.

Axolotl takes many keys that nothing reads afterwards, or that only another way through it reads. Two sources tell:
- its text: the lines that read a key, by name (`cfg.key`, `cfg.get("key")`, ...) or by prefix (`wandb_`);
- its run: small recipes are trained for one step on a throw-away model, and each function that is entered is noted.
A line counts for a way through Axolotl if that way enters its function, or if no trial enters it: what needs a GPU,
DeepSpeed or FSDP cannot be tried on a CPU, and gets the benefit of the doubt.
"""

import ast
import gc
import inspect
import json
import os
import re
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "hermes3/recipe/reads.json"
AXOLOTL = Path(find_spec("axolotl").submodule_search_locations[0])

# The ways through Axolotl that are told apart, each with the trials that take it
TRIALS = {
    "SFT": ["tokens", "chat_template", "completion", "not packed"],
    "SFT, adapter": ["adapter"],
    "DPO": ["text pairs", "chat pairs"],
    "DPO, adapter": ["pairs, adapter"],
}
WAYS = tuple(TRIALS)
ENTRY_TYPES = ("tokens", "chat_template", "completion", "text pairs", "chat pairs")
BASE = {
    "seed": 1,
    "attn_implementation": "sdpa",
    "bf16": False,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "max_steps": 1,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch_fused",
    "sequence_len": 256,
    "val_set_size": 0,
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "plugins": ["hermes3.train.plugin.HermesPlugin"],
    "hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": 1},
    "pad_to_sequence_len": True,
    "chat_template": "chatml",
}
PACKED = {"sample_packing": True, "eval_sample_packing": False}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_linear": True} | {
    f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")
}
DPO = {"rl": "dpo", "rl_beta": 0.1}
TEXT = "0 1 2"
ROW_LEN = 120  # two rows fill a sequence, so that packing has something to pack
TALK = [{"role": role, "content": TEXT} for role in ("user", "assistant")]
TOKENS = {"input_ids": list(range(ROW_LEN)), "attention_mask": [1] * ROW_LEN, "labels": list(range(ROW_LEN))}
RECIPES = {  # trial -> keys, type of the entry of `datasets`, a row
    "tokens": (PACKED, None, TOKENS),
    "chat_template": (PACKED, "chat_template", {"messages": TALK}),
    "completion": (PACKED, "completion", {"text": TEXT * ROW_LEN}),
    "not packed": ({"val_set_size": 0.5, "eval_steps": 1}, None, TOKENS),
    "adapter": (PACKED | LORA, None, TOKENS),
    "text pairs": (DPO, "passthrough", {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}),
    "chat pairs": (DPO, "chat_template.default", {"messages": TALK[:1], "chosen": TALK[1], "rejected": TALK[1]}),
    "pairs, adapter": (DPO | LORA, "passthrough", {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}),
}

# The schema reads keys to judge them; these write documents about them, or send them away
NOT_READERS = re.compile(r"axolotl/(utils/schemas/|telemetry/|cli/config_options|cli/agent_docs)")
# What `axolotl train` on SFT or DPO does not come by: other commands, trainers and sources of data
ELSEWHERE = re.compile(
    r"axolotl/(cli/(inference|evaluate|merge|quantize|vllm|cloud|chat|export)|evaluate\.py"
    r"|core/trainers/(grpo|ebft|kto|diffusion|mamba)|prompt_strategies/(kto|orpo|ebft|bradley_terry))"
)
NOT_DPO = re.compile(r"axolotl/utils/data/streaming")  # preference data are never streamed
INTEGRATION = re.compile(r"(axolotl/integrations/\w+)/")
# Where names stand in lists, to be handed on
LISTS = re.compile(r"axolotl/(core/(builders|trainers)/|utils/comet_|integrations/)")
ENTRY_LISTS = re.compile(r"axolotl/prompt_strategies/")
CFG = r"(?:\w*cfg|config|self\.config|source)"
ENTRY = (
    r"(?:config|ds_cfg|dataset_config|dataset_cfg|dataset|ds|d|ds_entry)"  # what Axolotl calls an entry of `datasets`
)


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "disabled"}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import axolotl.cli.train  # noqa: F401, once, rather than in every trial
    import torch
    import trl.trainer.base_trainer

    torch.set_num_threads(1)  # a forked process must not use the parent's threads
    trl.trainer.base_trainer.get_trackio_space_url = lambda: None  # for a model's card; imports gradio, five seconds
    entered = {trial: run(trial) for trial in RECIPES}
    by_way = {way: set().union(*(entered[trial] for trial in trials)) for way, trials in TRIALS.items()}
    by_type = {name: entered[name] for name in ENTRY_TYPES}
    data = {
        "axolotl": version("axolotl"),
        "known": known(),
        "deepspeed": deepspeed(),
        "deepspeed_auto": deepspeed_auto(),
    }
    keys = {key: readers(names, CFG, by_way) for key, names in schema_keys().items()}
    keys |= {f"datasets.{key}": readers([key], ENTRY, by_type) for key in entry_keys()}
    keys |= {f"fsdp_config.{key}": readers([key], rf"{CFG}\.fsdp_config|fsdp_config", by_way) for key in fsdp_keys()}
    data["keys"] = dict(sorted(keys.items()))
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.pop("keys").items())
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    OUT.write_text(f'{{\n{head},\n "keys": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
    unread = [key for key, value in keys.items() if not value]
    print(f"{OUT.relative_to(ROOT)}: Axolotl {version('axolotl')}, {len(keys)} keys, {len(unread)} read by nothing")


# -- the text


@dataclass(frozen=True)
class Source:
    """`axolotl/train.py`, its lines, and its functions as (first line, last line, line that names it in a trial)."""

    name: str
    lines: list[str]
    functions: list[tuple[int, int, int]]


@lru_cache
def words() -> dict[str, list[tuple[Source, int]]]:
    """Each word of Axolotl's text -> the lines that hold it, from 1; files at the top first."""
    index = defaultdict(list)
    for file in sorted(AXOLOTL.rglob("*.py"), key=lambda file: (len(file.parts), file)):
        name = f"axolotl/{file.relative_to(AXOLOTL).as_posix()}"
        if NOT_READERS.match(name):
            continue
        text = file.read_text(encoding="utf-8")
        functions = [
            (node.lineno, node.end_lineno, min([node.lineno, *(one.lineno for one in node.decorator_list)]))
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        source = Source(name, text.splitlines(), functions)
        for number, line in enumerate(source.lines, 1):
            for word in set(re.findall(r"\w+", line)):
                index[word].append((source, number))
    return index


def lines_that_read(names: list[str], of: str) -> Iterator[tuple[str, int, int | None]]:
    """File, line, and the line that names the innermost function around it; None: none is around it.

    Attribute, item, `get` and `getattr` count, a prefix that is asked for, and lists of names where the builders and
    the like hand them on. An assignment does not.
    """
    key = "|".join(map(re.escape, names))
    item = rf"""["'](?:{key})["']"""
    assigned = r"(?!\s*=[^=])"
    read = re.compile(
        rf"\b{of}(\.(?:{key})\b{assigned}|\.get\(\s*{item}|\[{item}\]{assigned})|getattr\([\w.]+, *{item}"
    )
    listed = re.compile(rf"^\s*{item}(,( .*)?)?$|^\s*{item}: *\"|: {item},$")
    lists = LISTS if of == CFG else ENTRY_LISTS
    for source, number in [place for name in names for place in words().get(name, [])]:
        line = source.lines[number - 1]
        if not line.lstrip().startswith("#") and (
            read.search(line) or lists.match(source.name) and listed.search(line)
        ):
            yield source.name, number, function_around(source, number)
    for source, number in words()["startswith"] if of == CFG else []:
        prefix = re.search(r'key\.startswith\("(\w+_)"\)', source.lines[number - 1])
        if prefix and names[0].startswith(prefix[1]):
            yield source.name, number, function_around(source, number)


def function_around(source: Source, number: int) -> int | None:
    around = [one for one in source.functions if one[0] <= number <= one[1]]
    return max(around)[2] if around else None


@lru_cache
def turned_by_schema() -> dict[str, str]:
    """Keys that a validator of the schema turns into another: `deepcompile` becomes a DeepSpeed file."""
    lines = {}
    for file in sorted((AXOLOTL / "utils/schemas").glob("*.py")):
        for node in ast.walk(ast.parse(text := file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = ast.get_source_segment(text, node)
                sets = set(re.findall(r'data\["(\w+)"\] = ', body))
                for match in re.finditer(r'data\.get\("(\w+)"', body) if sets else []:
                    if match[1] not in sets:
                        line = node.lineno + body[: match.start()].count("\n")
                        lines.setdefault(match[1], f"axolotl/utils/schemas/{file.name}:{line}")
    return lines


def readers(names: list[str], of: str, entered: dict[str, set[tuple[str, int]]]) -> dict[str, str]:
    """Way -> the first line that reads the key there. "all": on all ways. "elsewhere": on none of them.

    `axolotl/integrations/NAME` is the way of a recipe that lists the plugin.
    """
    functions = set().union(*entered.values())
    files = {way: {file for file, _ in seen} for way, seen in entered.items()}
    any_file = set().union(*files.values())
    lines: dict[str, str] = {}
    for file, number, function in lines_that_read(names, of):
        line = f"{file}:{number}"
        if plugin := INTEGRATION.match(file):
            lines.setdefault(plugin[1], line)
            continue
        for way, seen in entered.items():
            if (file, function) in functions:
                counts = (file, function) in seen
            else:
                counts = file in files[way] or file not in any_file and not ELSEWHERE.match(file)
            if counts and not (way.startswith("DPO") and NOT_DPO.match(file)):
                lines.setdefault(way, line)
        lines.setdefault("elsewhere", line)
    if len({lines.get(way) for way in entered}) == 1 and next(iter(entered)) in lines:
        lines = {"all": lines[next(iter(entered))]} | {key: at for key, at in lines.items() if key not in entered}
    if any(way in lines for way in ("all", *entered)):
        lines.pop("elsewhere", None)
    if of == CFG and not lines and names[0] in turned_by_schema():
        lines["all"] = turned_by_schema()[names[0]]
    if of == CFG and any(
        re.search(rf"cfg\.{name}\b|cfg\[\"{name}\"\]|^    {name}:", ours(), re.MULTILINE) for name in names
    ):
        lines["hermes3/train"] = "hermes3/train"
    return lines


@lru_cache
def ours() -> str:
    return "".join(file.read_text(encoding="utf-8") for file in (ROOT / "hermes3/train").glob("*.py"))


# -- the schema


def schema_keys() -> dict[str, list[str]]:
    """Each key that a recipe may use, plugins' included -> the names under which it is read: an alias is a field's."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    models = [AxolotlInputConfig, *plugin_models()]
    keys = {}
    for model in models:
        for name, info in model.model_fields.items():
            for written in {name, info.alias, *getattr(info.validation_alias, "choices", [info.validation_alias])}:
                if isinstance(written, str):
                    keys[written] = [name, *({written} - {name})]
    return keys


def plugin_models() -> Iterator[Any]:
    """The models of Axolotl's own plugins and ours."""
    from axolotl.integrations.base import load_plugin

    names = ["hermes3.train.plugin.HermesPlugin"]
    for folder in sorted((AXOLOTL / "integrations").iterdir()):
        text = (folder / "__init__.py").read_text(encoding="utf-8") if (folder / "__init__.py").is_file() else ""
        names += [
            f"axolotl.integrations.{folder.name}.{cls}" for cls in dict.fromkeys(re.findall(r"\b\w+Plugin\b", text))
        ]
    for name in names:
        try:
            args = load_plugin(name).get_input_args()
        except Exception as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        if args:
            module, _, cls = args.rpartition(".")
            yield getattr(__import__(module, fromlist=[cls]), cls)


def entry_keys() -> set[str]:
    from axolotl.utils.schemas import datasets

    models = (datasets.SFTDataset, datasets.DPODataset, datasets.KTODataset)
    return {name for model in models for name in model.model_fields}


def fsdp_keys() -> list[str]:
    from axolotl.utils.schemas.fsdp import FSDPConfig

    return list(FSDPConfig.model_fields)


def known() -> dict[str, list[str]]:
    """Values, and names in mappings that are handed on whole, which the schema takes unseen."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from torch.utils.checkpoint import checkpoint
    from transformers import LlamaForCausalLM, SchedulerType
    from transformers.training_args import OptimizerNames

    keywords = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs"}
    return {
        "optimizer": sorted({name.value for enum in (OptimizerNames, CustomSupportedOptimizers) for name in enum}),
        "lr_scheduler": sorted({name.value for name in SchedulerType} | {"one_cycle", "rex"}),
        "fsdp_config.transformer_layer_cls_to_wrap": sorted(LlamaForCausalLM._no_split_modules),
        "gradient_checkpointing_kwargs": sorted(keywords | {"preserve_rng_state"}),
    }


def deepspeed() -> list[str]:
    """Names that DeepSpeed looks up at the top of the file: its constants, and the parts' names."""
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import constants
    from deepspeed.runtime.activation_checkpointing import config as checkpointing

    names = {value for key, value in vars(constants).items() if key.isupper() and isinstance(value, str)}
    parts = {checkpointing.ACT_CHKPT, "zero_optimization", "bf16", "fp16"}
    return sorted(names | parts | set(monitor.DeepSpeedMonitorConfig.model_fields))


def deepspeed_auto() -> list[str]:
    """The keys of a DeepSpeed file whose "auto" transformers fills."""
    text = Path(find_spec("transformers").submodule_search_locations[0], "integrations/deepspeed.py").read_text("utf-8")
    return sorted(set(re.findall(r'"([a-z_0-9]+(?:\.[a-z_0-9]+)*)"', text)))


# -- the run


def run(trial: str) -> set[tuple[str, int]]:
    """Train `trial` in a forked process: file and first line of each of Axolotl's functions that is entered.

    Axolotl patches transformers, sets environment variables and never undoes it.
    """
    with tempfile.TemporaryDirectory(prefix="hermes3-reads-") as work:
        child = os.fork()
        if child == 0:
            log = os.open(Path(work, "log"), os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                train(trial, Path(work))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        seen = Path(work, "entered.json")
        if not seen.is_file():
            sys.exit(f"{trial}: the trial stopped:\n{Path(work, 'log').read_text(encoding='utf-8')[-3000:]}")
        entered = {tuple(one) for one in json.loads(seen.read_text(encoding="utf-8"))}
    print(f"{trial}: {len(entered)} functions", file=sys.stderr, flush=True)
    return entered


def train(trial: str, work: Path) -> None:
    import datasets
    import yaml
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    keys, kind, row = RECIPES[trial]
    (work / "rows").mkdir()
    datasets.Dataset.from_list([row] * 4).to_parquet(work / "rows/train.parquet")
    entry = {"path": str(work / "rows"), "type": kind} | ({"split": "train"} if keys.get("rl") else {})
    if kind == "chat_template.default":
        entry |= {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    recipe = BASE | keys | {"datasets": [entry], "base_model": str(write_model(work / "base"))}
    recipe |= {"output_dir": str(work / "out"), "dataset_prepared_path": str(work / "prepared")}
    if keys.get("rl"):
        del recipe["pad_to_sequence_len"]
    (work / "recipe.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    gc.freeze()  # Axolotl collects garbage often: 0.5 s each over all that its imports have loaded
    entered: set[tuple[str, int]] = set()
    monitor, tool = sys.monitoring, sys.monitoring.COVERAGE_ID

    def note(code: Any, offset: int) -> Any:
        if code.co_filename.startswith(str(AXOLOTL)):
            entered.add((f"axolotl/{Path(code.co_filename).relative_to(AXOLOTL).as_posix()}", code.co_firstlineno))
        return monitor.DISABLE

    monitor.use_tool_id(tool, "reads")
    monitor.register_callback(tool, monitor.events.PY_START, note)
    monitor.set_events(tool, monitor.events.PY_START)
    do_train(load_cfg(str(work / "recipe.yml")), TrainerCliArgs())
    monitor.set_events(tool, 0)
    (work / "entered.json").write_text(json.dumps(sorted(entered)), encoding="utf-8")


def write_model(out: Path) -> Path:
    """A Llama of one layer, 16 wide, with a Hermes tokenizer learnt from the numbers alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from data_mixes.samples import tiny_base
    from hermes3.chat import tokenizer

    llama, corpus = out.with_name("llama"), out.with_name("corpus.txt")
    llama.mkdir()
    corpus.write_text(TEXT + "\n", encoding="utf-8")
    vocab_size = tiny_base.write_tokenizer(llama, [corpus])
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    special = vocab_size - tiny_base.N_SPECIAL
    config = LlamaConfig(vocab_size=vocab_size, bos_token_id=special, eos_token_id=special + 1, dtype="float32", **size)
    LlamaForCausalLM(config).save_pretrained(llama)
    tokenizer.build(str(llama), out)
    return out


if __name__ == "__main__":
    main()
