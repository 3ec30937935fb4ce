"""A ZeRO-3 model whose weights stay in shards is written once a checkpoint, and no more when the run ends.

Where `stage3_gather_16bit_weights_on_model_save` is false, transformers has DeepSpeed write all of a checkpoint in
place of the gathered weights, and then again as the optimizer's state; and when the run ends once more:
4.9 TB each for 405B.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def save_shards_once(trainer: "Trainer") -> None:
    """Of a checkpoint's two writes leave out the first, and of a run's end the one that a whole checkpoint holds.

    Configuration and tokenizer are written each time.
    """
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
    checkpoint = None  # step of the last one; not asked of the file system, where ranks might see different things

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        nonlocal checkpoint
        if _internal_call:
            checkpoint = trainer.state.global_step
        elif checkpoint != trainer.state.global_step:
            return save_model(output_dir)
        output_dir = output_dir or trainer.args.output_dir
        if trainer.args.should_save:
            trainer._save(output_dir, state_dict={})
        remove_dummy_checkpoint(trainer.args.should_save, output_dir, [WEIGHTS_NAME, SAFE_WEIGHTS_NAME])

    trainer.save_model = save
