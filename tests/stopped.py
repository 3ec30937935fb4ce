"""Runs that are stopped, killed and resumed, in SFT and in DPO, each beside the same run that is left alone.

The stopped ones report to wandb offline, the others to TensorBoard. `tests/conftest.py` makes each once per session.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from ranks import Run, train
from small_mix import SEQUENCE_LEN, write_mix, write_recipe

from hermes3.recipe.read import read

ROOT = Path(__file__).parents[1]
OURS = ["hermes3.train.plugin.HermesPlugin", "ranks.Recorder"]
EPOCH = 12  # steps of SFT on two ranks
PAIRS = 12
HALF = 20  # the step of SFT whose save is broken off; every fifth step has a restart point
SECRET = "hf_a-secret-of-the-environment"
WANDB = {"use_wandb": True, "wandb_project": "hermes3"}


@dataclass
class Stopped:
    """`attempts` are the parts of one run, in turn, all in one folder; `saved` its checkpoints after each."""

    through: Run
    attempts: list[Run]
    saved: list[list[str]]
    final: list[bool]  # whether the final model was there after each attempt
    wandb_dir: Path

    @property
    def last(self) -> Run:
        return self.attempts[-1]


def sft_recipe(folder: Path, base: Path, processes: int = 2, plugins: list[str] = OURS, **changes) -> Path:
    """The demo's SFT on 60 rows in 24 packs per epoch; two ranks take at once what one takes in two micro-batches.

    Of an odd number of packs two ranks would leave one out, and one rank would not. The mix lies beside `folder`.
    """
    mix = folder.parent / "mix"
    if not mix.exists():
        lengths = np.random.default_rng(2).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
        write_mix(mix, lengths.tolist())
    keys = {"logging_steps": 1, "num_epochs": 2, "warmup_steps": 2, "lr_scheduler": "constant", "plugins": plugins}
    keys |= {"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": processes}, "token_weighted_loss": True}
    return write_recipe(folder, mix, base, **keys | {"gradient_accumulation_steps": 2 // processes} | changes)


def dpo_recipe(folder: Path, base: Path, **changes) -> Path:
    """The demo's DPO, with LoRA and its dropout, on twelve pairs."""
    pairs = [
        {"prompt": f"<|im_start|>user\nHi {n}<|im_end|>\n", "chosen": f"Hello {n}", "rejected": f"Go away {n}"}
        for n in range(PAIRS)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")
    keys = {key: value for key, value in read(ROOT / "recipes/tiny_dpo.yml").items() if "wandb" not in key}
    keys["datasets"] = [keys["datasets"][0] | {"path": f"{folder}/pairs.parquet", "ds_type": "parquet"}]
    keys |= {"base_model": str(base), "dataset_prepared_path": f"{folder}/prepared", "output_dir": f"{folder}/out"}
    (folder / "dpo.yml").write_text(yaml.safe_dump(keys | {"plugins": OURS, "logging_steps": 1} | changes))
    return folder / "dpo.yml"


def run(folder: Path, recipes: dict[str, Path], ranks: int, attempts: list[dict]) -> Stopped:
    """`attempts`: the variables of each, beside those of all."""
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    env = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "WANDB_DIR": folder / "tracked"}
    (folder / "tracked").mkdir()
    with mock.patch.dict(os.environ, one_thread):
        stopped = Stopped(train(recipes["through"], ranks, **env), [], [], [], folder / "tracked")
        for number, variables in enumerate(attempts):
            variables = {"HERMES3_STOP_FILE": folder / f"stop-{number}"} | variables
            stopped.attempts.append(train(recipes["stopped"], ranks, **env, **variables))
            stopped.saved.append(sorted(path.name for path in stopped.last.folder.glob("checkpoint-*")))
            stopped.final.append(any(stopped.last.folder.glob("*.safetensors")))
    return stopped


def sft(base: Path, folder: Path) -> Stopped:
    """Two epochs on two ranks: stopped in the first, in its last step, killed as it saves, stopped in the very last."""
    tracked = {"through": {"use_tensorboard": True}, "stopped": WANDB | {"wandb_name": "tiny_sft"}}
    keys = {"save_strategy": "epoch", "restart_steps": 5}
    recipes = {name: sft_recipe(folder / name, base, **keys, **tracked[name]) for name in tracked}
    killed = {"KILL_SAVING": f"{HALF} 1 _save_rng_state", "WANDB_MODE": "disabled"}  # wandb would write what it has got
    return run(folder, recipes, 2, [{"STOP_AT": 2}, {"STOP_AT": EPOCH - 1}, killed, {"STOP_AT": 2 * EPOCH - 1}])


def dpo(base: Path, folder: Path) -> Stopped:
    """Six steps, stopped in the third."""
    keys = {"gradient_accumulation_steps": 2}
    recipes = {"through": dpo_recipe(folder / "through", base, **keys)}
    recipes["stopped"] = dpo_recipe(folder / "stopped", base, **keys, **WANDB, wandb_name="tiny_dpo")
    return run(folder, recipes, 1, [{"STOP_AT": 2}, {}])
