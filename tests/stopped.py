"""Runs that are told to stop and go on, in SFT and in DPO, each beside the same run that is left alone.

Those that stop report to wandb offline, the others to TensorBoard. `tests/conftest.py` makes each once a session.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from ranks import Run, train
from small_mix import write_mix, write_recipe

from hermes3.recipe.read import read

ROOT = Path(__file__).parents[1]
PLUGINS = ["hermes3.train.plugin.HermesPlugin", "ranks.Recorder"]
EPOCH = 6  # steps of SFT; and of DPO, in all
SECRET = "hf_a-secret-of-the-environment"


@dataclass
class Stopped:
    """`attempts` are of one run: its parts in turn, all in the folder of the last; `seen` what lay in it after each."""

    through: Run
    attempts: list[Run]
    seen: list[list[str]]
    wandb_dir: Path

    @property
    def last(self) -> Run:
        return self.attempts[-1]


def run(folder: Path, recipes: dict[str, Path], ranks: int, stops: list[int | None]) -> Stopped:
    """`stops`: for each attempt the step after which its stop file appears, within the next."""
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    env = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "WANDB_DIR": folder / "tracked"}
    (folder / "tracked").mkdir()
    with mock.patch.dict(os.environ, one_thread):
        through, attempts, seen = train(recipes["through"], ranks, **env), [], []
        for number, stop in enumerate(stops):
            told = {} if stop is None else {"HERMES3_STOP_FILE": folder / f"stop-{number}", "STOP_AT": stop}
            attempts.append(train(recipes["stopped"], ranks, **env, **told))
            seen.append(sorted(path.name for path in attempts[-1].folder.iterdir()))
    return Stopped(through, attempts, seen, folder / "tracked")


WANDB = {"use_wandb": True, "wandb_project": "hermes3"}


def sft(base: Path, folder: Path) -> Stopped:
    """Two epochs on two ranks: stopped in the first, in its last step, and in the very last."""
    lengths = [34 + n for n in range(12)] + [10 + 7 * n % 9 for n in range(12)]  # 12 packs, each with its own filling
    mix = write_mix(folder / "mix", lengths)
    changes = {"logging_steps": 1, "save_strategy": "epoch", "warmup_steps": 2, "num_epochs": 2, "plugins": PLUGINS}
    changes |= {"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": 2}, "restart_steps": None}
    tracked = {"through": {"use_tensorboard": True}, "stopped": WANDB | {"wandb_name": "tiny_sft"}}
    recipes = {name: write_recipe(folder / name, mix, base, **changes, **tracked[name]) for name in tracked}
    return run(folder, recipes, 2, [2, EPOCH - 1, 2 * EPOCH - 1])


def dpo(base: Path, folder: Path) -> Stopped:
    """Six steps, with LoRA and its dropout: stopped in the third."""
    pairs = [
        {"prompt": f"<|im_start|>user\nHi {n}<|im_end|>\n", "chosen": f"Hello {n}", "rejected": f"Go away {n}"}
        for n in range(2 * EPOCH)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")
    values = {key: value for key, value in read(ROOT / "recipes/tiny_dpo.yml").items() if "wandb" not in key}
    values |= {"base_model": str(base), "dataset_prepared_path": str(folder / "prepared"), "plugins": PLUGINS}
    values |= {"gradient_accumulation_steps": 2}
    values["datasets"] = [{"path": str(folder / "pairs.parquet"), "split": "train", "type": "passthrough"}]
    values["datasets"][0] |= {"ds_type": "parquet"}
    recipes = {}
    for name, tracked in (("through", {}), ("stopped", WANDB | {"wandb_name": "tiny_dpo"})):
        (folder / name).mkdir()
        recipes[name] = folder / name / "dpo.yml"
        recipes[name].write_text(yaml.safe_dump(values | tracked | {"output_dir": str(folder / name / "out")}))
    return run(folder, recipes, 1, [2, None])
