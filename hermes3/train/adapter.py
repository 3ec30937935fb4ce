"""LoRA under DPO: what a run leaves behind is the adapter, and its dropout acts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer


def dropout_args(cfg) -> dict[str, bool]:
    """Trainer arguments that let `lora_dropout` act: TRL's default sets every dropout of the model to 0.

    Llama has no other dropout, and the reference runs with the adapter off: neither it nor the first loss changes.
    """
    return {"disable_dropout": False} if cfg.adapter and cfg.lora_dropout else {}


def save_adapter_alone(trainer: "Trainer") -> None:
    """Have Axolotl's last save write the adapter, not the whole model under the names that PEFT gives its parts.

    For DPO, Axolotl loads a plain model and leaves the adapter to TRL, which puts it into that same model. At the end,
    and on an interrupt, Axolotl saves both the trainer's PEFT model (the adapter) and the plain model. The latter
    writes a `model.safetensors` of all weights, named `q_proj.base_layer.weight`, `q_proj.lora_A.default.weight`;
    `from_pretrained` reads it without an error and fills every linear layer with random numbers.
    """
    from peft import PeftModel

    if isinstance(trainer.model, PeftModel):
        trainer.model.get_base_model().save_pretrained = trainer.model.save_pretrained
