"""What Axolotl accepts and this project refuses: what trains wrongly, loses checkpoints or cannot be repeated."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hermes3.recipe import base_model, neighbours
from hermes3.recipe.deepspeed_file import trains_405b
from hermes3.recipe.finding import Finding
from hermes3.recipe.hardware import CPU

PLUGIN = "hermes3.train.plugin.HermesPlugin"
LM_EVAL = "axolotl.integrations.lm_eval.LMEvalPlugin"
# Keys that a recipe must give, and what Axolotl 0.19 does without them
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
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """Everything that needs no import of Axolotl, for the recipe at `path`."""
    for rule in (basic, _settings, _plugins, _numbers, _precision, _cpu, _sharding, _saving, base_model.findings):
        yield from rule(path, recipe)
    yield from neighbours.findings(path, recipe)


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
        yield Finding(
            "trust_remote_code",
            "not false: code that comes with a model would be run",
            "set trust_remote_code: false; Llama needs none",
        )
    if _number(recipe, "ddp_timeout", 0) < DDP_TIMEOUT:
        given = recipe.get("ddp_timeout", "absent, so torch's 1800")
        yield Finding(
            "ddp_timeout",
            f"{given}: ranks that wait for a save of the weights would end the run",
            f"set ddp_timeout: {DDP_TIMEOUT}",
        )
    if recipe.get("warmup_steps") == 1:
        yield Finding("warmup_steps", "1: Axolotl makes it 2", "set 0 or 2")


def _plugins(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    plugins = recipe.get("plugins") or []
    if PLUGIN not in plugins:
        yield Finding(
            "plugins",
            f"{PLUGIN} is missing: packs of the first epoch would come again in every epoch",
            f"add - {PLUGIN}",
        )
    if LM_EVAL in plugins:
        yield Finding(
            "plugins",
            f"{LM_EVAL} runs lm_eval on every rank, without the chat template",
            "leave it out, and run hermes3 eval on a checkpoint",
        )


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
        yield Finding(
            "attn_implementation",
            f"{attention} is not known to keep packed samples apart",
            f"with sample_packing use one of {', '.join(ISOLATING)}",
        )

    if recipe.get("excess_length_strategy", "drop") == "drop":
        yield Finding(
            "excess_length_strategy",
            "rows longer than sequence_len would be dropped, with no more than a line in the log",
            "set excess_length_strategy: raise; hermes3 mix build keeps rows to the length",
        )


def _precision(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    if recipe.get("bf16") == "auto" or "bf16" not in recipe:
        yield Finding(
            "bf16",
            f"{recipe.get('bf16', 'absent')}: on a machine without bf16 Axolotl trains in fp16",
            "set bf16: true on GPUs, false on a CPU",
        )
    if recipe.get("fp16"):
        yield Finding("fp16", "overflows on Llama 3.1, which was trained in bf16", "set bf16: true and leave fp16 out")
    if recipe.get("fsdp_config") and recipe.get("bf16") and PLUGIN not in (recipe.get("plugins") or []):
        yield Finding(
            "fsdp_config",
            "FSDP2 with bf16: true keeps weights and Adam's moments in bf16, which loses most of an update of 7e-6",
            f"add {PLUGIN} to plugins, which keeps them in fp32",
        )


def _cpu(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What Axolotl's validators let pass for a CPU, and its trainer cannot do there."""
    hardware = recipe.get("hardware")
    if not isinstance(hardware, dict) or hardware.get("gpu") != CPU:
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
    named = {key: recipe.get(key) for key in ("deepspeed", "chat_template_jinja")}
    for entry in recipe.get("datasets") or []:
        named["datasets.chat_template_jinja"] = entry.get("chat_template_jinja")
    for key, value in named.items():
        inline = key != "deepspeed" and isinstance(value, str) and ("{" in value or "\n" in value)
        if isinstance(value, str) and not inline and not Path(value).is_file():
            yield Finding(key, f"no file {value} (relative to the working directory)", _existing(Path(value)))


def _existing(missing: Path) -> str:
    there = sorted(str(file) for file in missing.parent.glob(f"*{missing.suffix}"))
    return f"there are {', '.join(there)}" if there else "run from the root of the repository"


def _sharding(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    fsdp = recipe.get("fsdp_config") or recipe.get("fsdp")
    if fsdp and recipe.get("deepspeed"):
        yield Finding(
            "deepspeed", "given beside fsdp_config, and Axolotl then takes FSDP without a word", "keep one of the two"
        )
    inside = recipe["fsdp_config"].get("fsdp_version") if isinstance(recipe.get("fsdp_config"), dict) else None
    if fsdp and str(recipe.get("fsdp_version") or inside) != "2":
        yield Finding("fsdp_version", "not 2, so the deprecated FSDP1", "set fsdp_version: 2")
    if fsdp and recipe.get("rl") and recipe.get("adapter"):
        yield Finding(
            "fsdp_config",
            "under rl Axolotl saves a sharded adapter by names that PEFT does not find again",
            "shard with deepspeed: deepspeed_configs/zero3_bf16.json",
        )
    for key in ("state_dict_type", "final_state_dict_type"):
        config = recipe["fsdp_config"] if isinstance(recipe.get("fsdp_config"), dict) else {}
        if config.get(key) == "FULL_STATE_DICT" and trains_405b(path, recipe):
            yield Finding(
                f"fsdp_config.{key}",
                "FULL_STATE_DICT: each save would gather 1.6 TB of fp32 weights in rank 0's memory",
                f"set {key}: SHARDED_STATE_DICT",
            )


def _saving(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    if recipe.get("save_safetensors") is False:
        yield Finding("save_safetensors", "false: pickled weights can run code where they are loaded", "leave it out")
    per_epoch, strategy = recipe.get("saves_per_epoch"), recipe.get("save_strategy", "epoch")
    if not recipe.get("rl") and (recipe.get("save_steps") or strategy != "epoch" and not per_epoch):
        given = f"save_steps: {recipe['save_steps']}" if recipe.get("save_steps") else strategy
        yield Finding(
            "save_strategy",
            f"{given} keeps no checkpoint of each epoch, and the best epoch is chosen of them",
            "set save_strategy: epoch; restart_steps saves in between",
        )
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
