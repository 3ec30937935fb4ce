"""NEFTune under DPO: noise for the policy, none for the reference.

NEFTune (arXiv 2310.05914) adds uniform noise in ±alpha / sqrt(L d) to the embeddings while a model trains; L is the
padded length of the micro-batch, d the hidden size. transformers draws it wherever the embeddings are in training mode.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer


def noise_policy_alone(trainer: "Trainer") -> None:
    """Draw noise only where gradients are: the reference's log-probabilities become those of the model as it was given.

    TRL computes them on the policy's own modules with the adapter off, without gradients but in training mode, so that
    the reference would get a noise of its own, and the loss of a first step would compare two noises.
    """
    import torch

    alpha = trainer.args.neftune_noise_alpha

    def set_alpha(embeddings, args) -> None:
        # read by transformers' hook on the same module, which runs after its forward
        embeddings.neftune_noise_alpha = alpha if torch.is_grad_enabled() else 0.0

    trainer.model.get_input_embeddings().register_forward_pre_hook(set_alpha)
