"""fp32 weights and moments under `bf16: true`, which then says what computes, not what is trained.

Axolotl 0.19 loads the model in bf16 and, unless DeepSpeed makes fp32 copies, has Adam change these very weights. bf16
holds 8 bits: a change of less than 1/512 of a weight is lost, as nearly all are at a learning rate of 7e-6.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from torch import nn
    from transformers import Trainer


def trains_bf16_weights(cfg: "DictDefault") -> bool:
    """Whether Axolotl would train in bf16 throughout. An adapter's own weights are fp32 already."""
    return bool(cfg.bf16) and not cfg.deepspeed and not cfg.adapter


def keep_fp32(cfg: "DictDefault", model: "nn.Module") -> None:
    """Train the unsharded `model` in fp32; the trainer's autocast computes in bf16. 16 bytes a parameter for 8."""
    if trains_bf16_weights(cfg) and not cfg.fsdp_config:
        model.float()


def shard_fp32(cfg: "DictDefault", trainer: "Trainer") -> None:
    """Have FSDP2 cast each rank's share to fp32 once it is sharded, and gather it in bf16 (`param_dtype`).

    Before, the whole model would be cast: 1.6 TB of host memory a node for 405B. The loss leaves the model as it is,
    fp32: accelerate would round it to bf16, steps of 0.0078 between 1 and 2.
    """
    if not trains_bf16_weights(cfg) or str(cfg.fsdp_version) != "2":
        return
    from dataclasses import replace

    import accelerate.accelerator

    plugin = trainer.accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
    shard = accelerate.accelerator.fsdp2_prepare_model  # Axolotl's own
    accelerate.accelerator.fsdp2_prepare_model = lambda *args: shard(*args).float()
