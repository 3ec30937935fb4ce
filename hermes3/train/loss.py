"""The token-weighted loss: each trained token of a step weighs the same, whatever micro-batch and rank it falls in.

Axolotl 0.19 gives each micro-batch the same weight instead, so that a token weighs more in a pack with few to train.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer


def weigh_tokens(trainer: "Trainer") -> None:
    """Have the trainer count a step's trained tokens, over all ranks, and divide each micro-batch's sum by them.

    transformers has this for models whose loss takes `num_items_in_batch`, as Llama's does; Axolotl turns it off.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer.args.average_tokens_across_devices = True
