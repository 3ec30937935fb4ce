"""A recipe against Axolotl's own schema and validators, and against the names that these let pass or only warn of.

Axolotl drops an unknown key without a word, at every level, and renames a deprecated one.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Any, get_args

from hermes3.recipe.finding import Finding, nearest
from hermes3.recipe.hardware import CPU, Hardware


def findings(recipe: dict[str, Any], hardware: Hardware) -> tuple[list[Finding], dict[str, Any]]:
    """What is wrong, and the recipe as Axolotl resolves it on that hardware, with its defaults; {} if it refuses it."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    wrong: list[Finding] = []
    with _plugins(recipe) as missing, _warnings() as warnings:
        if missing:
            return missing, {}  # all keys of a plugin would be unknown
        wrong += _names(recipe)
        try:
            resolved = validate_config(DictDefault(copy.deepcopy(recipe)), *_capabilities(hardware)).to_dict()
        except ValidationError as error:
            return [*wrong, *_faults(error.errors())], {}
        except (ValueError, DeprecationWarning) as error:
            return [*wrong, *_faults([{"loc": (), "msg": str(error)}])], {}
    named = " ".join(map(str, wrong))
    for text in warnings:
        key = next((key for key in recipe if key in text), "recipe")
        if "deprecated" in text and key not in named:
            wrong.append(Finding(key, f"Axolotl warns: {text.strip()}", "use what it names instead"))
    return wrong, resolved


def _faults(errors: list[dict[str, Any]]) -> Iterator[Finding]:
    """Pydantic's errors, one finding a key: each form that a value could have had is an error of its own there.

    Axolotl's own validators give no place, but their message names the keys.
    """
    said: dict[str, list[str]] = {}
    for error in errors:
        key = str(error["loc"][0]) if error["loc"] else "recipe"
        said.setdefault(key, []).append(error["msg"].removeprefix("Value error, "))
    for key, texts in said.items():
        yield Finding(key, f"Axolotl refuses it: {' / '.join(dict.fromkeys(texts))}", "change it as it says")


@contextmanager
def _plugins(recipe: dict[str, Any]) -> Iterator[list[Finding]]:
    """Register this recipe's plugins and no other's: the manager is one per process and forgets nothing."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils import config

    manager = PluginManager.get_instance()
    before, manager.plugins = manager.plugins, OrderedDict()
    merge, config.merge_input_args = config.merge_input_args, lambda: _models(tuple(manager.plugins))
    try:
        with _warnings():
            missing = list(_missing(recipe.get("plugins") or []))
            if not missing:
                config.prepare_plugins(copy.deepcopy(recipe))
        yield missing
    finally:
        manager.plugins, config.merge_input_args = before, merge


def _missing(plugins: list[str]) -> Iterator[Finding]:
    """Axolotl goes on without a plugin whose module it cannot import."""
    from axolotl.integrations.base import load_plugin

    for name in plugins:
        try:
            load_plugin(name)
        except Exception as error:  # of whatever its module and its class do
            wrong = f"{name} cannot be imported ({error})"
            yield Finding("plugins", wrong, "mend its name, or install what it needs")


@lru_cache
def _models(plugins: tuple[str, ...]) -> tuple[Any, Any]:
    """Axolotl's models with the keys of the registered plugins, made once for each set of them: it takes 0.2 s."""
    from axolotl.integrations.config import merge_input_args

    return merge_input_args()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What Axolotl logs as warnings meanwhile, instead of its printing it."""
    from axolotl.utils.logging import MultiProcessAdapter

    MultiProcessAdapter.warning_once.cache_clear()  # it would not repeat for the second recipe
    logger = logging.getLogger("axolotl")
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = before


def _names(recipe: dict[str, Any]) -> Iterator[Finding]:
    from axolotl.utils.schemas.datasets import DPODataset, SFTDataset
    from axolotl.utils.schemas.deprecated import DeprecatedParameters
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from axolotl.utils.schemas.fsdp import FSDPConfig
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    model = _models(tuple(recipe.get("plugins") or []))[1]
    yield from _unknown(recipe, model, "")
    for key, value in recipe.items():
        info = model.model_fields.get(key)
        if key in DeprecatedParameters.model_fields or (info and info.deprecated and value is not None):
            advice = info.deprecated if info and isinstance(info.deprecated, str) else "leave it out"
            yield Finding(key, "deprecated", advice.rstrip(". "))
    entries = {key: recipe.get(key) or [] for key in ("datasets", "test_datasets")}
    for key, given in entries.items():
        for entry in given:
            yield from _unknown(entry, DPODataset if recipe.get("rl") == "dpo" else SFTDataset, f"{key}.")
    if isinstance(recipe.get("fsdp_config"), dict):
        yield from _unknown(recipe["fsdp_config"], FSDPConfig, "fsdp_config.")
        if layer := recipe["fsdp_config"].get("transformer_layer_cls_to_wrap"):
            yield from _unknown_value("fsdp_config.transformer_layer_cls_to_wrap", layer, _layers())
    optimizers = {name.value for enum in (OptimizerNames, CustomSupportedOptimizers) for name in enum}
    yield from _unknown_value("optimizer", recipe.get("optimizer", "adamw_torch_fused"), optimizers)
    schedules = {name.value for name in SchedulerType} | {"one_cycle", "rex"}
    yield from _unknown_value("lr_scheduler", recipe.get("lr_scheduler", "cosine"), schedules)


def _layers() -> set[str]:
    """The classes that transformers keeps whole when it spreads a Llama."""
    from transformers import LlamaForCausalLM

    return set(LlamaForCausalLM._no_split_modules)


def _unknown(given: dict[str, Any], model: Any, prefix: str) -> Iterator[Finding]:
    """Names that a pydantic model does not take, here and in the parts that are models themselves."""
    known = _keys(model)
    for name, value in given.items():
        if name not in known:
            yield Finding(prefix + name, "unknown key, which Axolotl drops without a word", nearest(name, known))
        elif isinstance(value, dict) and name != "fsdp_config" and (part := _part(model, name)):
            yield from _unknown(value, part, f"{prefix}{name}.")


def _part(model: Any, name: str) -> Any:
    """The model that a field holds, if it holds one and nothing else (but None)."""
    from pydantic import BaseModel

    info = model.model_fields.get(name)
    kinds = [kind for kind in get_args(info.annotation) or [info.annotation] if kind is not type(None)] if info else []
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _unknown_value(key: str, value: Any, known: set[str]) -> Iterator[Finding]:
    if value not in known:
        yield Finding(key, f"unknown {key} {value}", nearest(str(value), known))


def _keys(model: Any) -> set[str]:
    """The names that a pydantic model takes: its fields' and their aliases'."""
    names = set(model.model_fields)
    for info in model.model_fields.values():
        names |= {info.alias, *getattr(info.validation_alias, "choices", [info.validation_alias])} - {None}
    return names


def _capabilities(hardware: Hardware) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Axolotl would find out by itself on the hardware that the recipe declares."""
    cuda, hopper = hardware.gpu != CPU, hardware.gpu not in (CPU, "a100-40gb", "a100-80gb")
    compute = ("sm_90" if hopper else "sm_80") if cuda else None
    gpu = dict(bf16=cuda, fp8=hopper, tf32=cuda, n_gpu=hardware.gpus, compute_capability=compute)
    return gpu, {"torch_version": version("torch").split("+")[0]}
