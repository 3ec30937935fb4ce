"""A ZeRO-3 checkpoint whose weights stay in shards is written once.

Where `stage3_gather_16bit_weights_on_model_save` is false, transformers has DeepSpeed write all of a checkpoint in
place of the gathered weights, and then again as the optimizer's state: 4.9 TB twice for 405B.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def save_shards_once(trainer: "Trainer") -> None:
    """Of a checkpoint's two writes leave out the first, but for configuration and tokenizer."""
    if not trainer.is_deepspeed_enabled or trainer.args.save_only_model:
        return
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config
    if not config.is_zero3() or config.is_true(GATHER):
        return
    from peft import PeftModel
    from transformers.trainer import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, remove_dummy_checkpoint

    if isinstance(trainer.model, PeftModel):
        return  # the adapter alone is gathered, whatever the key says
    save_model = trainer.save_model

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not _internal_call:
            return save_model(output_dir)
        if trainer.args.should_save:
            trainer._save(output_dir, state_dict={})
        remove_dummy_checkpoint(trainer.args.should_save, output_dir, [WEIGHTS_NAME, SAFE_WEIGHTS_NAME])

    trainer.save_model = save
