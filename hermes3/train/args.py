"""The keys that the plugin adds to a recipe. Axolotl merges them into its own schema."""

from pydantic import BaseModel, PositiveInt

from hermes3.recipe.hardware import Hardware


class HermesArgs(BaseModel):
    hardware: Hardware | None = None  # what the recipe is written for; another number of processes is refused
    reproduces: str | None = None  # the paper's size and phase that `hermes3 check` compares with, e.g. 8b_sft
    restart_steps: PositiveInt | None = None  # save a checkpoint to restart from every so many steps; keep the newest
    token_weighted_loss: bool | None = None  # mean over the trained tokens of all ranks, not over the ranks' means
