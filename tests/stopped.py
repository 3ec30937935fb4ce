"""Runs that are stopped, killed and resumed, in SFT and in DPO, each beside the same run that is left alone.

The stopped ones report to wandb offline, the others to TensorBoard. `tests/conftest.py` makes each once per session.
"""

from dataclasses import dataclass, field
from pathlib import Path

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
PAIRS = 8
HALF = 20  # the step of SFT whose save is broken off; every fifth step has a restart point
SECRET = "hf_a-secret-of-the-environment"


@dataclass
class Stopped:
    """`attempts` are the parts of one run, in turn, all in one folder; `saved` its checkpoints after each."""

    through: Run
    wandb_dir: Path
    attempts: list[Run] = field(default_factory=list)
    saved: list[list[str]] = field(default_factory=list)
    final: list[bool] = field(default_factory=list)  # whether the final model was there after each attempt

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
    """The demo's DPO, with LoRA and its dropout, on pairs of unlike lengths."""
    prompt, text = "<|im_start|>user\nHow is the weather?<|im_end|>\n<|im_start|>assistant\n", "It is warm and sunny. "
    answers = [("Gladly! " + n * text, n**2 // 2 * text) for n in range(2, PAIRS + 2)]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    keys = {key: value for key, value in read(ROOT / "recipes/tiny_dpo.yml").items() if "wandb" not in key}
    keys["datasets"] = [keys["datasets"][0] | {"path": f"{folder}/pairs.parquet", "ds_type": "parquet"}]
    keys |= {"base_model": str(base), "dataset_prepared_path": f"{folder}/prepared", "output_dir": f"{folder}/out"}
    keys |= {"test_datasets": keys["datasets"], "eval_strategy": "no", "plugins": OURS, "logging_steps": 1}
    (folder / "dpo.yml").write_text(yaml.safe_dump(keys | changes))
    return folder / "dpo.yml"


def run(folder: Path, through: Path, stopped: Path, ranks: int, attempts: list[dict]) -> Stopped:
    """`through`, `stopped`: recipes; `attempts`: the variables of each, beside those of all."""
    env = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "WANDB_DIR": folder / "tracked"}
    (folder / "tracked").mkdir()
    of = Stopped(train(through, ranks, **env), folder / "tracked")
    for number, variables in enumerate(attempts):
        of.attempts.append(train(stopped, ranks, HERMES3_STOP_FILE=folder / f"stop-{number}", **env | variables))
        of.saved.append(sorted(path.name for path in of.last.folder.glob("checkpoint-*")))
        of.final.append(any(of.last.folder.glob("*.safetensors")))
    return of


def sft(base: Path, folder: Path) -> Stopped:
    """Two epochs on two ranks: stopped in the first, in its last step, killed as it saves, stopped in the very last."""
    keys = {"save_strategy": "epoch", "restart_steps": 5}
    through = sft_recipe(folder / "through", base, **keys, use_tensorboard=True)
    stopped = sft_recipe(folder / "stopped", base, **keys, wandb_project="hermes3", wandb_name="tiny_sft")
    killed = {"KILL_SAVING": f"{HALF} 1 _save_rng_state", "WANDB_MODE": "disabled"}  # wandb would write what it has got
    attempts = [{"STOP_AT": 2}, {"STOP_AT": EPOCH - 1}, killed, {"STOP_AT": 2 * EPOCH - 1}]
    return run(folder, through, stopped, 2, attempts)


def dpo(base: Path, folder: Path) -> Stopped:
    """Four steps, stopped in the second."""
    keys = {"gradient_accumulation_steps": 2}
    stopped = dpo_recipe(folder / "stopped", base, **keys, wandb_project="hermes3", wandb_name="tiny_dpo")
    return run(folder, dpo_recipe(folder / "through", base, **keys), stopped, 1, [{"STOP_AT": 1}, {}])
