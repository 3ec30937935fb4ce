"""The keys that the plugin adds to a recipe. Axolotl merges them into its own schema."""

from typing import Any

from pydantic import BaseModel, PositiveInt, model_validator

from hermes3.recipe.hardware import Hardware


class HermesArgs(BaseModel):
    hardware: Hardware | None = None  # what the recipe is written for; another number of processes is refused
    reproduces: str | None = None  # the paper's size and phase that `hermes3 check` compares with, e.g. 8b_sft
    restart_steps: PositiveInt | None = None  # save a checkpoint to restart from every so many steps; keep the newest
    token_weighted_loss: bool | None = None  # mean over the trained tokens of all ranks, not over the ranks' means

    @model_validator(mode="before")
    @classmethod
    def check_token_weighted_loss(cls, data: Any) -> Any:
        if data.get("token_weighted_loss") and data.get("rl"):
            raise ValueError("token_weighted_loss is for SFT: a preference loss is per pair; leave the key out")
        return data
