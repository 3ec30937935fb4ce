"""Which keys Axolotl reads on the code path that a recipe takes: the recipe is trained for one step, and watched.

Axolotl's validator accepts many keys that nothing reads afterwards, or that another path reads. So its real path is
run, from `load_cfg` to the last save, in a forked process, on a throw-away model and rows (`throwaway.py`), and every
read of the configuration is noted with the line that reads. What a CPU cannot honour is switched off for this; for
those keys alone the evidence is a line of the source that reads the key (`evidence.py`).
"""

import copy
import gc
import json
import os
import signal
import tempfile
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hermes3.recipe import throwaway
from hermes3.recipe.hardware import CPU
from hermes3.recipe.rules import GPU_PLUGINS
from hermes3.recipe.watch import short_name, watch

# For the trial: values that a CPU can honour, or that make it short. None: the key is left out
CPU_VALUES = {
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "attn_implementation": "sdpa",
    "activation_offloading": None,
    "deepspeed": None,
    "fsdp_config": None,
    "fsdp_version": None,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": None,  # transformers refuses it without workers
    "torch_compile": None,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
    "hardware": {"gpu": CPU, "nodes": 1, "gpus_per_node": 1},
}
# Of an entry of `datasets`: which files are read and how, in whose place the trial has a folder of parquet
FILES = ("ds_type", "data_files", "name", "revision")
SHORT_VALUES = {
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "dataset_num_proc": 1,
    "sequence_len": throwaway.SEQUENCE_LEN,
    "wandb_mode": "disabled",
}
# Names, which decide nothing
NAMES = ("wandb_name", "wandb_project", "wandb_mode", "output_dir", "base_model", "dataset_prepared_path", "path")
MAX_SECONDS = 120  # for a trial; it takes two
# Variables of a launcher around this process, which is no rank of its job
LAUNCHED = ("ACCELERATE_", "FSDP_", "PARALLELISM_", "WORLD_", "RANK", "LOCAL_RANK", "MASTER_")


@dataclass(frozen=True)
class Trace:
    """`readers`: key, or `datasets.KEY` -> the lines that read it, in order. `switched_off`: keys to look up instead.

    `stopped`: why the trial did not come to its end; None if it did.
    """

    readers: dict[str, list[str]]
    switched_off: frozenset[str]
    stopped: str | None = None

    @property
    def left_out(self) -> frozenset[str]:
        """Those of them that the trial had no value for at all."""
        return frozenset(key for key in self.switched_off if CPU_VALUES.get(key) is None)


def trial_of(recipe: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The recipe as a CPU can try it, but for the trial's paths; and the keys that were changed or left out for it."""
    trial = copy.deepcopy(recipe)
    plugins = [name for name in recipe.get("plugins") or [] if not name.startswith(GPU_PLUGINS)]
    dropped = [name for name in recipe.get("plugins") or [] if name.startswith(GPU_PLUGINS)]
    off = {key for name in dropped for key in plugin_keys(name)} | {key for key in CPU_VALUES if key in recipe}
    trial["plugins"] = plugins
    for entry in [*(trial.get("datasets") or []), *(trial.get("test_datasets") or [])]:
        off |= {f"datasets.{key}" for key in FILES if entry.pop(key, None) is not None}
    for key in {key for key in off if "." not in key} | {key for key in SHORT_VALUES if key in recipe}:
        trial[key] = (CPU_VALUES | SHORT_VALUES).get(key)
    if recipe.get("adapter") and not recipe.get("rl"):  # Axolotl would turn its CUDA kernels on by itself
        trial |= {key: value for key, value in CPU_VALUES.items() if key.startswith("lora_")}
    trial |= {"bf16": False, "dataloader_num_workers": 0}  # absent, they would be found out from the machine
    return {key: value for key, value in trial.items() if value is not None}, frozenset(off)


@lru_cache
def plugin_keys(name: str) -> frozenset[str]:
    """The keys that an Axolotl plugin adds to the schema."""
    from importlib import import_module

    module, _, cls = name.rpartition(".")
    args = getattr(import_module(module), cls)().get_input_args()
    if not args:
        return frozenset()
    module, _, cls = args.rpartition(".")
    return frozenset(getattr(import_module(module), cls).model_fields)


def trace(recipe: dict[str, Any]) -> Trace:
    """The trace of one recipe; see `traces`."""
    return traces([recipe])[0]


def traces(recipes: list[dict[str, Any]], done: Callable[[int, int], None] = lambda done, of: None) -> list[Trace]:
    """Run the trials of recipes, as many at once as there are cores. Siblings, which differ in numbers and names only,
    share one, and one that was run in this process is not run again.

    `done(finished, all)` is called as trials end.
    """
    trials = [trial_of(recipe) for recipe in recipes]
    paths = [json.dumps(_choice(trial), sort_keys=True) for trial, _ in trials]
    todo = {path: trial for path, (trial, _) in zip(paths, trials, strict=True) if path not in _DONE}
    if todo:
        prepare()
    running: dict[int, tuple[str, tempfile.TemporaryDirectory]] = {}
    waiting, n_todo = list(todo.items()), len(todo)
    while waiting or running:
        if waiting and len(running) < (os.cpu_count() or 1):
            path, trial = waiting.pop()
            work = tempfile.TemporaryDirectory(prefix="hermes3-check-")
            running[_fork(Path(work.name), trial)] = path, work
            continue
        child, status = next(iter(running)), 0
        _, status = os.waitpid(child, 0)
        path, work = running.pop(child)
        _DONE[path] = _result(Path(work.name), status)
        work.cleanup()
        done(n_todo - len(waiting) - len(running), n_todo)
    return [Trace(_DONE[path][0], off, _DONE[path][1]) for path, (_, off) in zip(paths, trials, strict=True)]


# Path that Axolotl takes -> readers, and what stopped it
_DONE: dict[str, tuple[dict[str, list[str]], str | None]] = {}


def _choice(value: Any, key: str = "") -> Any:
    """What of a value may choose the path that Axolotl takes: not which name it is, nor which number other than 0."""
    if key in NAMES:
        return "name"
    if isinstance(value, dict):
        return {inner: _choice(item, inner) for inner, item in value.items()}
    if isinstance(value, list):
        return [_choice(item) for item in value]
    return bool(value) and "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


@lru_cache
def prepare() -> tempfile.TemporaryDirectory:
    """Once, rather than in every child: the heavy imports, the packer's compilation and the throw-away model."""
    import axolotl.cli.train
    import axolotl.core.builders
    import axolotl.train  # noqa: F401
    import deepspeed  # noqa: F401
    import numpy as np
    from axolotl.utils.samplers.multipack import pack_parallel

    pack_parallel(np.array([1, 1], dtype=np.int32), bin_capacity=2, group_size=2, bin_size=2, num_processes=1)
    work = tempfile.TemporaryDirectory(prefix="hermes3-check-model-")
    throwaway.write_model(Path(work.name) / "base")
    return work


def _fork(work: Path, trial: dict[str, Any]) -> int:
    """Train in a process of its own: Axolotl patches transformers, sets environment variables and never undoes it."""
    child = os.fork()
    if child == 0:
        _child(work, trial)
    return child


def _result(work: Path, status: int) -> tuple[dict[str, list[str]], str | None]:
    if not (work / "reads.json").is_file():
        return {}, f"the trial ended with status {os.waitstatus_to_exitcode(status)} after {MAX_SECONDS} s at most"
    result = json.loads((work / "reads.json").read_text(encoding="utf-8"))
    return result["readers"], result["stopped"]


def _child(work: Path, trial: dict[str, Any]) -> None:
    """Never returns. Writes `reads.json`; what the trial prints goes to a file that is thrown away."""
    try:
        signal.alarm(MAX_SECONDS)
        gc.freeze()  # Axolotl collects garbage at every packing: 0.5 s over all that its imports have loaded
        log = os.open(work / "log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        readers: dict[str, list[str]] = {}
        stopped = None
        try:
            _train(work, trial, readers)
        except BaseException as error:  # whatever ends it is the finding
            last = traceback.extract_tb(error.__traceback__)[-1]
            stopped = f"{type(error).__name__}: {error} ({short_name(last.filename)}:{last.lineno})"
        text = json.dumps({"readers": readers, "stopped": stopped})
        (work / "reads.json.new").write_text(text, encoding="utf-8")
        os.replace(work / "reads.json.new", work / "reads.json")
    finally:
        os._exit(0)


def _train(work: Path, trial: dict[str, Any], readers: dict[str, list[str]]) -> None:
    import datasets
    import torch
    import trl.trainer.base_trainer
    import yaml
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train
    from axolotl.integrations.base import PluginManager

    torch.set_num_threads(1)  # a forked process must not use the parent's thread pool
    for name in [name for name in os.environ if name.startswith(LAUNCHED)]:
        del os.environ[name]
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
    PluginManager.get_instance().plugins = OrderedDict()
    save = datasets.Dataset.save_to_disk  # with `num_proc`, even 1, it starts a Python, which takes ten seconds
    datasets.Dataset.save_to_disk = lambda *args, num_proc=None, **kwargs: save(*args, **kwargs)

    trl.trainer.base_trainer.get_trackio_space_url = lambda: None  # for the model's card; imports gradio, five seconds
    for key in ("datasets", "test_datasets"):
        for number, entry in enumerate(trial.get(key) or []):
            folder = work / f"{key}-{number}" / "train"
            throwaway.write_rows(folder, trial, entry)
            entry["path"] = str(folder)
    trial |= {name: str(work / name) for name in ("output_dir", "dataset_prepared_path")}
    trial["base_model"] = str(Path(prepare().name) / "base")
    file = work / "recipe.yml"
    file.write_text(yaml.safe_dump(trial), encoding="utf-8")

    watch(readers, config_path=str(file), data_under=str(work))
    do_train(load_cfg(str(file)), TrainerCliArgs())
