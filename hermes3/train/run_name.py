"""A run's name in wandb: by recipe, size, phase, seed and git commit; and one wandb run for all attempts at it.

wandb's id is kept in the run's folder. A run that resumes there goes on under it: online at once, offline when
`wandb sync` uploads the attempts, which it does in their order. Variables that are set, as WANDB_RUN_ID, win.
"""

import os
import secrets
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from hermes3.files import write_text
from hermes3.git import commit

if TYPE_CHECKING:
    from transformers import Trainer

RUN_ID = "wandb_id"  # file in output_dir
ROOT = Path(__file__).parents[2]


class NameRun(TrainerCallback):
    """Names the run before the trainer's own callback starts it, and writes the facts into its config, as `hermes3`.

    Rank 0 alone has a wandb run, and a git to ask.
    """

    def __init__(self, cfg, trainer: "Trainer"):
        if not trainer.is_world_process_zero():
            return
        self.facts = facts = facts_of(cfg)
        trainer.args.run_name = f"{facts['recipe']} seed {facts['seed']} {facts['commit']}"
        names = {
            "RUN_GROUP": facts["recipe"],
            "JOB_TYPE": facts["phase"],
            "TAGS": f"{facts['size']},{facts['phase']},seed-{facts['seed']},{facts['commit']}",
            "RESUME": "allow",
        }
        if "WANDB_RUN_ID" not in os.environ:  # of WANDB_RUN_ID or the key wandb_run_id
            names["RUN_ID"] = run_id(Path(cfg.output_dir), goes_on=bool(cfg.auto_resume_from_checkpoints))
        for name, value in names.items():
            os.environ.setdefault(f"WANDB_{name}", value)

    def on_train_begin(self, args, state, control, **kwargs):
        import wandb

        if state.is_world_process_zero and wandb.run:
            wandb.config.update({"hermes3": self.facts}, allow_val_change=True)


def facts_of(cfg) -> dict[str, str | int | None]:
    """`recipe` (`wandb_name`, else its file's name), `size` (its first part), `phase` (sft, dpo), `seed`, `commit`.

    Out of a checkout, or without git, the version of the package stands for the commit.
    """
    from axolotl.utils.schemas.enums import RLType

    recipe = cfg.wandb_name or Path(cfg.axolotl_config_path).stem
    return {
        "recipe": recipe,
        "size": recipe.split("_")[0],
        "phase": RLType(cfg.rl).value if cfg.rl else "sft",
        "seed": cfg.seed,
        "commit": commit(ROOT, digits=7) or version("hermes3-recipes"),
    }


def run_id(output_dir: Path, goes_on: bool) -> str:
    """The id of the run in `output_dir`; a new one where there is none, or where the run does not go on by itself."""
    file = output_dir / RUN_ID
    if not (goes_on and file.is_file()):
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")
