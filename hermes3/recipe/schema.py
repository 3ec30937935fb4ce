"""What Axolotl and DeepSpeed themselves say of recipes, and the names that they let pass or only warn of.

It runs as a process of its own, because Axolotl patches, registers and prints, and is imported without torch there
(`light.py`). A recipe that needs more, as for somebody else's plugin, is looked at again with everything: 15 s.
"""

import copy
import json
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hermes3.files import UserError, wrong_keys
from hermes3.recipe.hardware import Hardware, gpu_of, hardware_of
from hermes3.recipe.read import Finding, deepspeed_config, in_deepspeed, nearest, read, value_at
from hermes3.recipe.reads import READS

PLUGIN = "hermes3.train.plugin.HermesPlugin"
# In place of our plugin, whose modules import torch: the keys that it adds
PLUGIN_STAND_IN = SimpleNamespace(register=lambda cfg: None, get_adapter_capabilities=list)
PLUGIN_STAND_IN.get_input_args = lambda: "hermes3.recipe.hardware.HermesArgs"
PREFERENCE_ENTRIES = {"dpo": "DPODataset", "ipo": "DPODataset", "simpo": "DPODataset", "kto": "KTODataset"}
# What Axolotl says of a key that it takes and that does nothing, or soon will not
INEFFECTIVE = re.compile(r"deprecated|ignored|no effect")


def examine(paths: list[Path]) -> dict[Path, tuple[list[Finding], dict[str, Any]]]:
    """For each readable recipe: what is wrong, and the recipe as Axolotl resolves it, {} if it refuses it."""
    answers = _process(paths, light=True)
    if again := [path for path in paths if answers[str(path)] is None]:
        answers |= _process(again, light=False)
    pairs = {path: answers[str(path)] for path in paths}
    return {path: ([Finding(**one) for one in findings], resolved) for path, (findings, resolved) in pairs.items()}


def _process(paths: list[Path], light: bool) -> dict[str, Any]:
    argv = [sys.executable, "-m", "hermes3.recipe.schema", "light" if light else "whole", *map(str, paths)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "AXOLOTL_DO_NOT_TRACK": "1"}  # a laptop's answer on every machine
    done = subprocess.run(argv, text=True, capture_output=True, env=env)
    if done.returncode:
        raise UserError(f"Axolotl's schema cannot be loaded: {done.stderr.strip()[-500:]}; install requirements.txt")
    return json.loads(done.stdout)


def main(how: str, *paths: str) -> None:
    """Print `{path: [findings, resolved]}`; null for a recipe that cannot be judged without torch."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print must not stand in the answer
    from hermes3.recipe import light

    is_light, answers = how == "light", {}
    if is_light:
        sys.meta_path.insert(0, light.Finder())
        from axolotl.integrations import base

        load = base.load_plugin
        base.load_plugin = lambda name: PLUGIN_STAND_IN if name == PLUGIN else load(name)
    from axolotl.utils import config

    config.merge_input_args = lambda: _models(tuple(_plugins()))
    for path in map(Path, paths):
        try:
            recipe = read(path)
            findings, resolved = _findings(recipe, hardware_of(path, recipe), is_light)
            findings += [in_deepspeed(recipe, finding) for finding in _deepspeed(path, recipe)]
            answers[str(path)] = [asdict(finding) for finding in findings], resolved
        except (Exception, light.NeedsTorch):  # what a stand-in brings about
            if not is_light:
                raise
            traceback.print_exc()
            answers[str(path)] = None
    with out:
        json.dump(answers, out, default=str)


def _plugins() -> dict[str, Any]:
    from axolotl.integrations.base import PluginManager

    return PluginManager.get_instance().plugins


@lru_cache
def _models(plugins: tuple[str, ...]) -> tuple[Any, Any]:
    """Axolotl's models with the keys of the registered plugins, made once for each set of them: it takes 0.2 s."""
    from axolotl.integrations.config import merge_input_args

    return merge_input_args()


def _findings(recipe: dict[str, Any], hardware: Hardware, is_light: bool) -> tuple[list[Finding], dict[str, Any]]:
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    _plugins().clear()
    warnings = _warnings()
    if missing := list(_missing(recipe.get("plugins") or [], is_light)):
        return missing, {}  # all keys of a plugin would be unknown
    prepare_plugins(DictDefault(copy.deepcopy(recipe)))
    warnings.clear()
    findings = list(_names(recipe))
    compute = gpu_of(hardware.gpu).compute  # what Axolotl would find out by itself on the hardware that is declared
    gpu = {"bf16": compute is not None, "fp8": compute not in (None, "sm_80"), "tf32": compute is not None}
    gpu |= {"n_gpu": hardware.gpus, "compute_capability": compute}
    torch = {"torch_version": version("torch").split("+")[0]}
    try:
        resolved = validate_config(DictDefault(copy.deepcopy(recipe)), gpu, torch).to_dict()
    except (ValueError, DeprecationWarning) as error:
        refusals = list(_refusals(error))
        text = " ".join(map(str, refusals))
        return [*(one for one in findings if f"`{one.key}`" not in text), *refusals], {}
    text = " ".join(map(str, findings))
    for warning in warnings:
        key = next((key for key in recipe if key in warning), "recipe")
        if INEFFECTIVE.search(warning) and key not in text:
            findings.append(Finding(key, f"Axolotl warns: {warning.strip()}", "do as it says"))
    return findings, resolved


def _missing(plugins: list[str], is_light: bool) -> Iterator[Finding]:
    from axolotl.integrations import base

    for name in plugins:
        try:
            base.load_plugin(name)
        except Exception as error:  # of whatever its module and its class do
            if is_light and (getattr(error, "name", None) or "torch") not in name:
                raise  # not about the plugin's own name
            yield Finding("plugins", f"{name} cannot be imported ({error})", "mend its name, or install what it needs")


def _refusals(error: Exception) -> Iterator[Finding]:
    """One per key of pydantic's errors, which are one per form of a value; Axolotl's own validators name no key."""
    texts: dict[str, list[str]] = {}
    for one in error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]:
        key = str(one["loc"][0]) if one["loc"] else "recipe"
        texts.setdefault(key, []).append(one["msg"].removeprefix("Value error, "))
    for key, lines in texts.items():
        yield Finding(key, f"Axolotl refuses it: {' / '.join(dict.fromkeys(lines))}", "change it as it says")


def _warnings() -> list[str]:
    """A list that takes what Axolotl logs as warnings from now on."""
    from axolotl.utils.logging import MultiProcessAdapter

    MultiProcessAdapter.warning_once.cache_clear()  # it would not repeat for the second recipe
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("axolotl")
    logger.handlers, logger.propagate = [handler], False
    return texts


def _names(recipe: dict[str, Any]) -> Iterator[Finding]:
    from axolotl.utils.schemas import datasets, fsdp

    yield from _unknown(recipe, _models(tuple(_plugins()))[1], "")
    entry_model = getattr(datasets, PREFERENCE_ENTRIES.get(recipe.get("rl"), "SFTDataset"))
    for key in ("datasets", "test_datasets"):
        for entry in recipe.get(key) or []:
            yield from _unknown(entry, entry_model, f"{key}.")
    yield from _unknown(recipe.get("fsdp_config") or {}, fsdp.FSDPConfig, "fsdp_config.")
    for key, known in READS.known.items():
        value = value_at(recipe, key)
        for name in value if isinstance(value, dict) else [] if value is None else [value]:
            if name not in known:
                yield Finding(key, f"unknown name {name}", nearest(str(name), known))


def _unknown(part: dict[str, Any], model: Any, prefix: str) -> Iterator[Finding]:
    """Names that a pydantic model does not take, here and in the parts that are models themselves."""
    known = {}
    for field, info in model.model_fields.items():
        aliases = getattr(info.validation_alias, "choices", [info.validation_alias])
        known |= dict.fromkeys({field, info.alias, *aliases} - {None}, info.annotation)
    for name, value in part.items():
        if name not in known:
            yield Finding(prefix + name, "unknown key, which Axolotl drops without a word", nearest(name, known))
        elif isinstance(value, dict) and name != "fsdp_config":
            kinds = [kind for kind in get_args(known[name]) or [known[name]] if kind is not type(None)]
            if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
                yield from _unknown(value, kinds[0], f"{prefix}{name}.")


def _deepspeed(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        config = deepspeed_config(path, recipe) or {}
    except UserError:  # said by `rules.py`
        return
    for name in config:
        if name not in READS.deepspeed:
            yield Finding("deepspeed", f"unknown key {name}", nearest(name, READS.deepspeed))
    for part, model in {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config}.items():
        try:
            model(**config.get(part, {}))  # leaves out "auto", and refuses what it does not know
        except ValidationError as error:
            known = {f"{part}.{info.alias or name}" for name, info in model.model_fields.items()}
            for fault, text in zip(error.errors(), wrong_keys(error), strict=True):
                if fault["type"] == "extra_forbidden":
                    name = ".".join(map(str, [part, *fault["loc"]]))
                    yield Finding("deepspeed", f"unknown key {name}", nearest(name, known))
                else:
                    yield Finding("deepspeed", f"{part}.{text}", "mend it")


if __name__ == "__main__":
    main(*sys.argv[1:])
