"""The keys that our plugin adds to a recipe."""

from typing import Any

from pydantic import BaseModel, Field, PositiveInt, model_validator

from hermes3.recipe.hardware import Hardware


class HermesArgs(BaseModel):
    """Merged by Axolotl into its own schema."""

    hardware: Hardware | None = Field(
        default=None, description="What the recipe is written for; training on another number of processes is refused"
    )
    reproduces: str | None = Field(
        default=None, description="The paper's size and phase that `hermes3 check` holds the recipe to, e.g. 8b_sft"
    )
    restart_steps: PositiveInt | None = Field(
        default=None, description="Save a checkpoint to restart from every so many steps; the newest is kept"
    )
    token_weighted_loss: bool | None = Field(
        default=None, description="Mean over the trained tokens of all ranks, not over the ranks' means"
    )

    @model_validator(mode="before")
    @classmethod
    def check_token_weighted_loss(cls, data: Any) -> Any:
        if data.get("token_weighted_loss") and data.get("rl"):
            raise ValueError("token_weighted_loss is for SFT: a preference loss is per pair; leave the key out")
        return data
