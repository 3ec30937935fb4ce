"""What Axolotl accepts and this project refuses: what trains wrongly, loses checkpoints or cannot be repeated."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.recipe.finding import Finding, from_error
from hermes3.recipe.hardware import CPU
from hermes3.recipe.read import deepspeed_config
from hermes3.recipe.reads import reads
from hermes3.recipe.schema import PLUGIN

LM_EVAL = "axolotl.integrations.lm_eval.LMEvalPlugin"
# Keys that a recipe must give, and what Axolotl does without them
REQUIRED = {
    "seed": ("data would be shuffled differently on every run", "add seed: 42"),
    "attn_implementation": ("packed samples would attend to each other", "add attn_implementation: flash_attention_2"),
    "dataloader_num_workers": (
        "each rank would start as many workers as the job has ranks",
        "add dataloader_num_workers: 2",
    ),
}
# Attention that tests/test_packing.py proves to keep packed samples apart; the first needs a GPU to be proven
ISOLATING = ("flash_attention_2", "sdpa", "eager")
# Plugins whose kernels need a GPU
GPU_PLUGINS = ("axolotl.integrations.liger.", "axolotl.integrations.cut_cross_entropy.")
DDP_TIMEOUT = 7200  # seconds; a save of 812 GB, or reading them, takes longer than torch's 1800 on a slow file system
SPLIT = re.compile(r"train(\[[^\]]*\])?(\+train\[[^\]]*\])*")
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
# Numbers that the recipe has too, as transformers fills an "auto"
SAME_AS = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "max_grad_norm",
}
GATHER = "stage3_gather_16bit_weights_on_model_save"


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """Everything that a recipe's own lines tell, for the recipe at `path`."""
    for rule in (basic, _settings, _plugins, _numbers, _precision, _cpu, _sharding, _deepspeed, _saving):
        yield from rule(path, recipe)


def basic(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """Those of them without which a recipe cannot be resolved to what it means."""
    for rule in (_required, _data, _files):
        yield from rule(path, recipe)


def _required(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    for key, (consequence, remedy) in REQUIRED.items():
        if recipe.get(key) is None:
            yield Finding(key, f"{key} is missing; {consequence}", remedy)


def _settings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    if recipe.get("trust_remote_code") is not False:
        wrong = "not false: code that comes with a model would be run"
        yield Finding("trust_remote_code", wrong, "set trust_remote_code: false; Llama needs none")
    if _number(recipe, "ddp_timeout", 0) < DDP_TIMEOUT:
        given = recipe.get("ddp_timeout", "absent, so torch's 1800")
        wrong = f"{given}: ranks that wait for a save of the weights would end the run"
        yield Finding("ddp_timeout", wrong, f"set ddp_timeout: {DDP_TIMEOUT}")
    if recipe.get("warmup_steps") == 1:
        yield Finding("warmup_steps", "1: Axolotl makes it 2", "set 0 or 2")
    if recipe.get("rl") and recipe.get("dpo_padding_free"):
        wrong = "true: TRL makes it false when the run starts, with a line in the log"
        yield Finding("dpo_padding_free", wrong, "leave it out")


def _plugins(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    plugins = recipe.get("plugins") or []
    if PLUGIN not in plugins:
        wrong = f"{PLUGIN} is missing: packs of the first epoch would come again in every epoch"
        yield Finding("plugins", wrong, f"add - {PLUGIN}")
    if LM_EVAL in plugins:
        wrong = f"{LM_EVAL} runs lm_eval on every rank, without the chat template"
        yield Finding("plugins", wrong, "leave it out, and run hermes3 eval on a checkpoint")


def _numbers(path: Path, recipe: dict[str, Any], prefix: str = "") -> Iterator[Finding]:
    for key, value in recipe.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _numbers(path, inner, f"{prefix}{key}.")
            elif isinstance(inner, str) and NUMBER.fullmatch(inner):
                yield Finding(
                    f"{prefix}{key}", f"YAML reads {inner} as text, not as a number", f"write {_with_point(inner)}"
                )


def _number(recipe: dict[str, Any], key: str, default: int) -> int | float:
    """The value if it is a number other than 0; what is none, Axolotl's schema refuses."""
    value = recipe.get(key)
    return value if value and isinstance(value, (int, float)) else default


def _with_point(text: str) -> str:
    base, _, power = text.lower().partition("e")
    return f"{base if '.' in base else base + '.0'}e{power if power[0] in '+-' else '+' + power}"


def _data(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    attention = recipe.get("attn_implementation")
    if recipe.get("sample_packing") and attention not in (None, *ISOLATING):
        wrong = f"{attention} is not known to keep packed samples apart"
        yield Finding("attn_implementation", wrong, f"with sample_packing use one of {', '.join(ISOLATING)}")
    if (
        recipe.get("sample_packing")
        and attention == "sdpa"
        and not _on_cpu(recipe)
        and recipe.get("sdpa_varlen") is not False
    ):
        wrong = (
            f"{recipe.get('sdpa_varlen', 'absent')}: a kernel for GPUs alone, not proven to keep packed samples apart"
        )
        yield Finding("sdpa_varlen", wrong, "set sdpa_varlen: false, or attn_implementation: flash_attention_2")

    for entry in recipe.get("datasets") or []:
        split = str(entry.get("split") or "train")
        if Path(str(entry.get("path"))).name == "train" and not SPLIT.fullmatch(split):
            yield Finding("datasets.split", f"{split}: a mix has the split train alone", "set train, or train[:10%]")
    if recipe.get("excess_length_strategy", "drop") == "drop":
        yield Finding(
            "excess_length_strategy",
            "rows longer than sequence_len would be dropped, with no more than a line in the log",
            "set excess_length_strategy: raise; hermes3 mix build keeps rows to the length",
        )


def _precision(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    if recipe.get("bf16") == "auto" or "bf16" not in recipe:
        wrong = f"{recipe.get('bf16', 'absent')}: on a machine without bf16 Axolotl trains in fp16"
        yield Finding("bf16", wrong, "set bf16: true on GPUs, false on a CPU")
    if recipe.get("fp16"):
        yield Finding("fp16", "overflows on Llama 3.1, which was trained in bf16", "set bf16: true and leave fp16 out")
    if recipe.get("fsdp_config") and recipe.get("bf16") and PLUGIN not in (recipe.get("plugins") or []):
        wrong = "FSDP2 with bf16: true keeps weights and Adam's moments in bf16, which loses most of an update of 7e-6"
        yield Finding("fsdp_config", wrong, f"add {PLUGIN} to plugins, which keeps them in fp32")


def _on_cpu(recipe: dict[str, Any]) -> bool:
    hardware = recipe.get("hardware")
    return isinstance(hardware, dict) and hardware.get("gpu") == CPU


def _cpu(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What Axolotl's validators let pass for a CPU, and its trainer cannot do there."""
    if not _on_cpu(recipe):
        return
    for key in ("bf16", "tf32", "fp8"):
        if recipe.get(key) not in (None, False):
            yield Finding(key, f"{recipe[key]} on hardware.gpu: {CPU}", f"set {key}: false")
    if str(recipe.get("attn_implementation")).startswith("flash"):
        yield Finding("attn_implementation", f"flash-attention on hardware.gpu: {CPU}", "set attn_implementation: sdpa")
    for name in recipe.get("plugins") or []:
        if name.startswith(GPU_PLUGINS):
            yield Finding("plugins", f"{name} needs a GPU, hardware.gpu is {CPU}", "leave it and its keys out")


def _files(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    try:
        deepspeed_config(path, recipe)
    except UserError as error:
        yield from_error(error, "deepspeed", path)
    for key, part in [("", recipe), *(("datasets.", entry) for entry in recipe.get("datasets") or [])]:
        template = part.get("chat_template_jinja")
        if isinstance(template, str) and not re.search(r"[{\n]", template) and not Path(template).is_file():
            yield Finding(f"{key}chat_template_jinja", f"no file {template}", "run from the root of the repository")


def _sharding(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    fsdp = recipe.get("fsdp_config") or {}
    if fsdp and recipe.get("deepspeed"):
        yield Finding(
            "deepspeed", "given beside fsdp_config, and Axolotl then takes FSDP without a word", "keep one of the two"
        )
    if fsdp and recipe.get("rl") and recipe.get("adapter"):
        wrong = "under rl Axolotl saves a sharded adapter by names that PEFT does not find again"
        yield Finding("fsdp_config", wrong, "shard with deepspeed: deepspeed_configs/zero3_bf16.json")
    for key in ("state_dict_type", "final_state_dict_type"):
        if fsdp.get(key) == "FULL_STATE_DICT" and trains_405b(path, recipe):
            wrong = "FULL_STATE_DICT: each save would gather 1.6 TB of fp32 weights in rank 0's memory"
            yield Finding(f"fsdp_config.{key}", wrong, f"set {key}: SHARDED_STATE_DICT")


def trains_405b(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a save in one piece is 812 GB."""
    return "405b" in f"{path.stem} {recipe.get('base_model')}".lower() and not recipe.get("adapter")


def _deepspeed(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What the DeepSpeed file says of this project's trainings; `schema.py` holds it to DeepSpeed itself."""
    try:
        config = deepspeed_config(path, recipe)
    except UserError:
        return  # said by `_files`
    if config is None:
        return
    if any(not isinstance(config.get(part, {}), dict) for part in ("zero_optimization", "bf16", "fp16")):
        yield Finding("deepspeed", "zero_optimization, bf16 or fp16 is no JSON object", "write its keys in { }")
        return
    yield from _contradictions(config, recipe)
    zero = config.get("zero_optimization", {})
    if zero.get("stage") != 3:
        wrong = f"zero_optimization.stage is {zero.get('stage')}: each GPU would hold a whole copy of the weights"
        yield Finding("deepspeed", wrong, "set stage: 3")
    if trains_405b(path, recipe) and zero.get(GATHER):
        wrong = f"{GATHER} is true: each save would gather 812 GB of weights in rank 0's memory"
        yield Finding("deepspeed", wrong, f"set {GATHER}: false, and join the parts with `hermes3 consolidate`")
    for name in _auto(config):
        if name not in reads().deepspeed_auto:
            yield Finding("deepspeed", f'{name} is "auto", and transformers fills no such key', "give a value")


def _contradictions(config: dict[str, Any], recipe: dict[str, Any]) -> Iterator[Finding]:
    """What the file sets and the recipe says otherwise: DeepSpeed goes by the file, or transformers refuses the run."""
    for name, key in SAME_AS.items():
        value = config.get(name, "auto")
        if value != "auto" and value != recipe.get(key, 1):
            said = f"{name} is {value}, and the recipe has {key}: {recipe.get(key)}"
            yield Finding("deepspeed", said, f'set "{name}": "auto"')
    if config.get("train_batch_size", "auto") != "auto":
        yield Finding("deepspeed", "train_batch_size is fixed", 'set "auto": it follows from the hardware')
    for part, key in {"optimizer": "optimizer", "scheduler": "lr_scheduler"}.items():
        if part in config:
            yield Finding("deepspeed", f"its {part} would replace the recipe's {key}", "leave it out")
    for part in ("bf16", "fp16"):
        on, wanted = config.get(part, {}).get("enabled") is True, recipe.get(part) is True
        if on != wanted and config.get(part, {}).get("enabled") != "auto":
            wrong = f"{part} is {'on' if on else 'off'}, and the recipe has {part}: {str(wanted).lower()}"
            yield Finding("deepspeed", wrong, f'set "{part}": {{"enabled": {str(wanted).lower()}}}')


def _auto(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _auto(value, f"{prefix}{name}.")
        elif value == "auto":
            yield prefix + name


def _saving(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    if recipe.get("save_safetensors") is False:
        yield Finding("save_safetensors", "false: pickled weights can run code where they are loaded", "leave it out")
    per_epoch, strategy = recipe.get("saves_per_epoch"), recipe.get("save_strategy", "epoch")
    if not recipe.get("rl") and (recipe.get("save_steps") or strategy != "epoch" and not per_epoch):
        given = f"save_steps: {recipe['save_steps']}" if recipe.get("save_steps") else strategy
        wrong = f"{given} keeps no checkpoint of each epoch, and the best epoch is chosen of them"
        yield Finding("save_strategy", wrong, "set save_strategy: epoch; restart_steps saves in between")
    epochs = int(_number(recipe, "num_epochs", 1))
    needed = epochs * int(_number(recipe, "saves_per_epoch", 1)) + (1 if recipe.get("restart_steps") else 0)
    limit = _number(recipe, "save_total_limit", 4)  # Axolotl's default
    if limit < needed:
        yield Finding(
            "save_total_limit",
            f"{limit}{'' if 'save_total_limit' in recipe else ' by default'}, and "
            f"{needed} checkpoints must survive ({epochs} epochs"
            f"{', and a restart point' if recipe.get('restart_steps') else ''}): the oldest would be deleted",
            f"set save_total_limit: {needed} or more",
        )
