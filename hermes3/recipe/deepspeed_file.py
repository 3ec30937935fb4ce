"""A recipe's DeepSpeed JSON held to DeepSpeed's own configuration classes, and to what this project trains with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hermes3.recipe.evidence import lines_that_fill
from hermes3.recipe.finding import Finding, nearest

# Numbers that the recipe has too, as transformers fills an "auto"
SAME_AS = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "max_grad_norm",
}
GATHER = "stage3_gather_16bit_weights_on_model_save"


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with the DeepSpeed file that the recipe at `path` names, or with the mapping that it holds instead.

    A missing file is reported elsewhere.
    """
    file = recipe.get("deepspeed")
    if isinstance(file, dict):
        file, config = "the mapping", file
    elif not isinstance(file, str) or not Path(file).is_file():
        return
    else:
        try:
            config = json.loads(Path(file).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            yield Finding("deepspeed", f"{file} is not JSON: {error}", "mend it")
            return
    parts = ("zero_optimization", "bf16", "fp16")
    if not isinstance(config, dict) or any(not isinstance(config.get(part, {}), dict) for part in parts):
        yield Finding("deepspeed", f"{file}: no JSON object, or a part of it is none", "write its keys in { }")
        return
    yield from _keys(file, config)
    yield from _contradictions(file, config, recipe)
    zero = config.get("zero_optimization", {})
    if zero.get("stage") != 3:
        yield Finding(
            "deepspeed",
            f"{file}: zero_optimization.stage is {zero.get('stage')}: each GPU would hold a whole copy of the weights",
            "set stage: 3",
        )
    if trains_405b(path, recipe) and zero.get(GATHER):
        yield Finding(
            "deepspeed",
            f"{file}: {GATHER} is true: each save would gather 812 GB of weights in rank 0's memory",
            f"set {GATHER}: false, and join the parts with `hermes3 consolidate`",
        )


def trains_405b(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a save in one piece is 812 GB."""
    return "405b" in f"{path.stem} {recipe.get('base_model')}".lower() and not recipe.get("adapter")


def _contradictions(file: str, config: dict[str, Any], recipe: dict[str, Any]) -> Iterator[Finding]:
    """What the file sets and the recipe says otherwise: DeepSpeed goes by the file, or transformers refuses the run."""
    for name, key in SAME_AS.items():
        value = config.get(name, "auto")
        if value != "auto" and value != recipe.get(key, 1):
            said = f"{file}: {name} is {value}, and the recipe has {key}: {recipe.get(key)}"
            yield Finding("deepspeed", said, f'set "{name}": "auto"')
    if config.get("train_batch_size", "auto") != "auto":
        yield Finding("deepspeed", f"{file}: train_batch_size is fixed", 'set "auto": it follows from the hardware')
    for part, key in {"optimizer": "optimizer", "scheduler": "lr_scheduler"}.items():
        if part in config:
            yield Finding("deepspeed", f"{file}: its {part} would replace the recipe's {key}", "leave it out")
    for part in ("bf16", "fp16"):
        on, wanted = config.get(part, {}).get("enabled") is True, recipe.get(part) is True
        if on != wanted and config.get(part, {}).get("enabled") != "auto":
            yield Finding(
                "deepspeed",
                f"{file}: {part} is {'on' if on else 'off'}, and the recipe has {part}: {str(wanted).lower()}",
                f'set "{part}": {{"enabled": {str(wanted).lower()}}}',
            )


def _keys(file: str, config: dict[str, Any]) -> Iterator[Finding]:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    for name in config:
        if name not in (known := _top_level()):
            yield _unknown(file, name, known)
    for part, model in {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config}.items():
        try:
            model(**config.get(part, {}))  # leaves out what is "auto", and refuses what it does not know
        except ValidationError as error:
            known = {info.alias or name for name, info in model.model_fields.items()}
            for fault in error.errors():
                name = ".".join(map(str, fault["loc"]))
                if fault["type"] == "extra_forbidden":
                    yield _unknown(file, f"{part}.{name}", {f"{part}.{other}" for other in known})
                else:
                    yield Finding("deepspeed", f"{file}: {part}.{name}: {fault['msg']}", "mend it")
    for name in _auto(config):
        if not lines_that_fill(name):
            yield Finding("deepspeed", f'{file}: {name} is "auto", and transformers fills no such key', "give a value")


def _unknown(file: str, name: str, known: set[str]) -> Finding:
    return Finding("deepspeed", f"{file}: unknown key {name}", nearest(name, known))


def _top_level() -> set[str]:
    """Names that DeepSpeed looks up at the top of the file: its constants, and the parts' names."""
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import constants
    from deepspeed.runtime.activation_checkpointing import config as checkpointing

    names = {value for key, value in vars(constants).items() if key.isupper() and isinstance(value, str)}
    return names | {
        checkpointing.ACT_CHKPT,
        "zero_optimization",
        "bf16",
        "fp16",
        *monitor.DeepSpeedMonitorConfig.model_fields,
    }


def _auto(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _auto(value, f"{prefix}{name}.")
        elif value == "auto":
            yield prefix + name
