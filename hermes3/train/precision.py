"""fp32 weights and moments under `bf16: true`, which then says what computes, not what is trained.

Axolotl 0.19 loads the model in bf16 and, unless DeepSpeed makes fp32 copies, has Adam change these very weights. bf16
holds 8 bits: a change of less than 1/512 of a weight is lost, as nearly all are at a learning rate of 7e-6.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from transformers import Trainer


def keep_fp32(cfg: "DictDefault", trainer: "Trainer") -> None:
    """Have the trainer train fp32 weights and compute in bf16: 16 bytes a parameter for Axolotl's 8.

    Left alone: DeepSpeed, which keeps fp32 weights by itself, as FSDP1 does, and adapters, which are fp32 already.
    """
    if not cfg.bf16 or cfg.deepspeed or cfg.adapter:
        return
    if not cfg.fsdp_config:
        trainer.model.float()  # autocast computes in bf16
    elif str(cfg.fsdp_version) == "2":
        _shard_fp32(trainer)


def _shard_fp32(trainer: "Trainer") -> None:
    """Cast each rank's share once FSDP2 has sharded the model; layers are gathered in bf16 (`param_dtype`).

    Before, the whole model would be cast: 1.6 TB of host memory a node for 405B. And the loss leaves the model in fp32:
    accelerate has it rounded to bf16, to steps of 0.0078 between 1 and 2.
    """
    import accelerate.accelerator

    plugin = trainer.accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
    shard = accelerate.accelerator.fsdp2_prepare_model  # Axolotl's own
    accelerate.accelerator.fsdp2_prepare_model = lambda *args: shard(*args).float()
