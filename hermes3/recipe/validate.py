"""Hold a recipe to Axolotl's schema, and to what that schema lets pass: Axolotl drops an unknown key without a word."""

import copy
import difflib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from hermes3.recipe.hardware import CPU, Hardware, hardware_of
from hermes3.recipe.prepared import check_prepared

# Keys that a recipe must give, and what Axolotl 0.19 does without them
REQUIRED = {
    "seed": "data would be shuffled differently on every run",
    "attn_implementation": "packed samples would attend to each other",
    "dataloader_num_workers": "each rank would start as many workers as the job has ranks",
}

# Attention that tests/test_packing.py proves to keep packed samples apart; the first needs a GPU to be proven
ISOLATING = ("flash_attention_2", "sdpa", "eager")


def read(path: Path) -> dict[str, Any]:
    """The recipe as written. `ValueError` when it is not a YAML mapping."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    return recipe


def validate(path: Path) -> dict[str, Any]:
    """The recipe as Axolotl resolves it, defaults filled in, on the hardware that it declares.

    `ValueError` names the file and the key: an unknown key, optimizer or schedule (with the nearest known one), a
    plugin that cannot be imported, a missing key of `REQUIRED` or DeepSpeed file, stale prepared data, or whatever
    Axolotl refuses.
    """
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    recipe = read(path)
    hardware = hardware_of(path, recipe)
    for key, consequence in REQUIRED.items():
        if recipe.get(key) is None:
            raise ValueError(f"{path}: {key} is missing; {consequence}")
    if recipe.get("sample_packing") and recipe["attn_implementation"] not in ISOLATING:
        raise ValueError(
            f"{path}: attn_implementation: {recipe['attn_implementation']} is not known to keep packed samples apart; "
            f"with sample_packing use one of {', '.join(ISOLATING)}"
        )
    deepspeed = recipe.get("deepspeed")
    if isinstance(deepspeed, str) and not Path(deepspeed).is_file():
        raise ValueError(f"{path}: deepspeed: no file {deepspeed} (relative to the working directory)")
    with _plugins(path, recipe):
        _check_names(path, recipe)
        try:
            resolved = validate_config(DictDefault(copy.deepcopy(recipe)), *_capabilities(hardware)).to_dict()
        except ValueError as error:  # pydantic's ValidationError is one
            raise ValueError(f"{path}: {error}") from error
    check_prepared(path, recipe)
    return resolved


@contextmanager
def _plugins(path: Path, recipe: dict[str, Any]) -> Iterator[None]:
    """Register this recipe's plugins and no other's: the manager is one per process and forgets nothing."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import prepare_plugins

    manager = PluginManager.get_instance()
    before, manager.plugins = manager.plugins, OrderedDict()
    try:
        prepare_plugins(copy.deepcopy(recipe))
        for name in recipe.get("plugins") or []:
            if name not in manager.plugins:  # Axolotl logs it and goes on without
                raise ValueError(f"{path}: plugins: {name} cannot be imported")
        yield
    finally:
        manager.plugins = before


def _check_names(path: Path, recipe: dict[str, Any]) -> None:
    from axolotl.integrations.config import merge_input_args
    from axolotl.utils.schemas.datasets import DPODataset, SFTDataset
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    _known(path, "key", recipe, _keys(merge_input_args()[1]))
    dataset = DPODataset if recipe.get("rl") == "dpo" else SFTDataset
    for entry in recipe.get("datasets") or []:
        _known(path, "datasets key", entry, _keys(dataset))
    optimizers = {name.value for enum in (OptimizerNames, CustomSupportedOptimizers) for name in enum}
    _known(path, "optimizer", [recipe.get("optimizer", "adamw_torch_fused")], optimizers)
    schedules = {name.value for name in SchedulerType} | {"one_cycle", "rex"}
    _known(path, "lr_scheduler", [recipe.get("lr_scheduler", "cosine")], schedules)


def _keys(model: Any) -> set[str]:
    """The names that a pydantic model takes: its fields' and their aliases'."""
    names = set(model.model_fields)
    for info in model.model_fields.values():
        names |= {info.alias, *getattr(info.validation_alias, "choices", [info.validation_alias])} - {None}
    return names


def _known(path: Path, what: str, given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path}: unknown {what} {name}{hint}")


def _capabilities(hardware: Hardware) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Axolotl would find out by itself on the hardware that the recipe declares."""
    cuda, hopper = hardware.gpu != CPU, hardware.gpu not in (CPU, "a100-40gb", "a100-80gb")
    compute = ("sm_90" if hopper else "sm_80") if cuda else None
    gpu = dict(bf16=cuda, fp8=hopper, tf32=cuda, n_gpu=hardware.gpus, compute_capability=compute)
    return gpu, {"torch_version": version("torch").split("+")[0]}
