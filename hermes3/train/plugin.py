"""The Axolotl plugin of every recipe: it corrects Axolotl 0.21 (docs/traps.md), saves, and logs throughput."""

import os

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback, set_seed

from hermes3.recipe.hardware import check_world_size
from hermes3.train import fixes
from hermes3.train.checkpoints import merge_in_parts
from hermes3.train.cpu_ranks import on_cpu_ranks, use_gloo
from hermes3.train.metrics import Throughput, mfu_of, name_run
from hermes3.train.saving import Saving, load_resized, resume_from_complete


class HermesPlugin(BasePlugin):
    """Calls the other modules of this package at the points where Axolotl calls its plugins."""

    def get_input_args(self) -> str:
        return "hermes3.recipe.hardware.HermesArgs"

    def register(self, cfg: dict) -> None:
        resume_from_complete()
        load_resized()
        if on_cpu_ranks(cfg):
            use_gloo(cfg)
        if cfg.get("fsdp_config"):
            merge_in_parts()

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        if cfg.hardware and not preprocess:
            check_world_size(cfg.hardware)
        if cfg.seed is not None:  # row 20: Axolotl counts the steps from a packing before the trainer sets the seed
            set_seed(cfg.seed)
        if on_cpu_ranks(cfg):  # Axolotl would map the model to accelerator number `LOCAL_RANK`
            cfg.device_map = {"": "cpu"}

    def pre_model_load(self, cfg) -> None:
        if cfg.rl:
            fixes.log_probs_in_fp32()

    def get_training_args(self, cfg) -> dict[str, float | bool]:
        """Rows 22, 27: with these NEFTune and LoRA's dropout act under preference training."""
        noise = cfg.rl and cfg.neftune_noise_alpha is not None
        drops = cfg.rl in ("dpo", "ipo") and cfg.adapter and cfg.lora_dropout  # the reference has the adapter off
        args = {"neftune_noise_alpha": cfg.neftune_noise_alpha} if noise else {}
        return args | ({"disable_dropout": False} if drops else {})

    def post_trainer_create(self, cfg, trainer) -> None:
        fixes.keep_fp32(cfg, trainer)
        fixes.save_shards_once(trainer)
        if cfg.rl in (None, "dpo", "ipo") and not cfg.reward_model and not cfg.process_reward_model:
            trainer.add_callback(Throughput(trainer, mfu_of(cfg)))  # other trainers name their tokens differently
        if cfg.use_wandb:
            name_run(cfg, trainer)
        if cfg.token_weighted_loss and not cfg.rl:
            trainer.args.average_tokens_across_devices = True  # Axolotl would weigh each rank the same
        if cfg.rl in ("dpo", "ipo"):
            fixes.save_adapter_alone(trainer)
            if cfg.neftune_noise_alpha is not None:
                fixes.noise_policy_alone(trainer)

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        """Called before post_trainer_create: a save is whole before Throughput counts time again."""
        repacks = cfg.sample_packing and not cfg.rl and not cfg.curriculum_sampling
        if repacks:
            fixes.whole_steps(trainer)
        saving = Saving(trainer, cfg.restart_steps, os.environ.get("HERMES3_STOP_FILE"))
        return [fixes.RepackEveryEpoch(), saving] if repacks else [saving]
