"""The Axolotl plugin of every recipe: mends of Axolotl 0.19, each gone once Axolotl has its own."""

import gc
import os
from pathlib import Path

from axolotl.integrations.base import BasePlugin
from axolotl.utils.samplers import MultipackBatchSampler
from transformers import TrainerCallback, set_seed

from hermes3.portable import save_portably
from hermes3.recipe.hardware import check_world_size
from hermes3.train.adapter import dropout_args, save_adapter_alone
from hermes3.train.complete import mark_complete, resume_from_complete
from hermes3.train.consolidate import merge_in_parts
from hermes3.train.cpu_ranks import on_cpu_ranks, use_gloo
from hermes3.train.loss import weigh_tokens
from hermes3.train.neftune import noise_policy_alone
from hermes3.train.precision import keep_fp32
from hermes3.train.restart import RestartPoints
from hermes3.train.run_name import NameRun
from hermes3.train.shards import save_shards_once
from hermes3.train.stop import STOP_FILE, StopFile
from hermes3.train.throughput import Throughput, mfu_of


class HermesPlugin(BasePlugin):
    """What the modules beside this one do, at the points where Axolotl asks its plugins."""

    def get_input_args(self) -> str:
        """The keys that this adds to a recipe: `hardware`, `restart_steps` and `token_weighted_loss`."""
        return "hermes3.train.args.HermesArgs"

    def register(self, cfg: dict) -> None:
        save_portably()
        resume_from_complete()
        if on_cpu_ranks(cfg):
            use_gloo(cfg)
        if cfg.get("fsdp_config"):
            merge_in_parts()

    def post_trainer_create(self, cfg, trainer) -> None:
        keep_fp32(cfg, trainer)
        save_shards_once(trainer)
        mark_complete(trainer)
        if cfg.rl in (None, "dpo", "ipo") and not cfg.reward_model and not cfg.process_reward_model:
            trainer.add_callback(Throughput(trainer, mfu_of(cfg)))  # others name their tokens otherwise
        if cfg.use_wandb:
            trainer.add_callback(NameRun(cfg, trainer))
        if cfg.token_weighted_loss:
            weigh_tokens(trainer)
        if cfg.rl in ("dpo", "ipo"):
            save_adapter_alone(trainer)
            if cfg.neftune_noise_alpha is not None:
                noise_policy_alone(trainer)

    def get_training_args(self, cfg) -> dict | None:
        """Axolotl hands `neftune_noise_alpha` to SFT's trainer only, TRL sets dropout to 0: have both act under DPO."""
        args = {}
        if cfg.rl and cfg.neftune_noise_alpha is not None:
            args["neftune_noise_alpha"] = cfg.neftune_noise_alpha
        if cfg.rl in ("dpo", "ipo"):
            args |= dropout_args(cfg)
        return args or None

    def pre_lora_load(self, cfg, model) -> None:
        """Axolotl draws the adapter's weights before anything is seeded: two runs would start from two adapters."""
        if cfg.seed is not None:
            set_seed(cfg.seed)

    def add_callbacks_post_trainer(self, cfg, trainer) -> list[TrainerCallback]:
        callbacks = [FreezeGarbage()]
        if cfg.sample_packing and not cfg.rl and not cfg.curriculum_sampling:
            callbacks.append(RepackEveryEpoch())
        restart = RestartPoints(cfg.restart_steps)
        if os.environ.get(STOP_FILE):
            callbacks.append(StopFile(Path(os.environ[STOP_FILE]), restart, trainer))
        return [*callbacks, restart]

    def load_datasets(self, cfg, preprocess: bool = False) -> None:
        """Before the data: refuse other hardware than declared, and seed. Returns None: Axolotl loads them itself.

        Axolotl packs for the number of steps with whatever the process is seeded with: 3,448 or 3,452 by chance.
        """
        if cfg.hardware and not preprocess:
            check_world_size(cfg.hardware)
        if cfg.seed is not None:
            set_seed(cfg.seed)
        if on_cpu_ranks(cfg):  # Axolotl maps the model to accelerator `LOCAL_RANK`
            cfg.device_map = {"": "cpu"}


class FreezeGarbage(TrainerCallback):
    """Set aside what is loaded before training, so that a collection looks only at what training makes.

    Axolotl's DPO trainer collects garbage after every micro-batch: 0.3 s each over all that its imports have loaded.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        gc.collect()
        gc.freeze()


class RepackEveryEpoch(TrainerCallback):
    """Shuffle and pack anew at each epoch, from the seed and the epoch's number alone.

    With several processes accelerate tells the new epoch to the shuffler but not to the packer around it, which goes
    on yielding the packs of epoch 0; and a resumed run shuffles with the wrong epoch, so that it repeats and omits
    samples.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        # a resumed run starts inside this epoch. Counted from here, as an epoch whose packing came out a batch short
        # ends at e.g. 0.999
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        packer = train_dataloader.batch_sampler
        while not isinstance(packer, MultipackBatchSampler):  # under accelerate's BatchSamplerShard: a rank's share
            packer = packer.batch_sampler
        packer.sampler.set_epoch(self.epoch)
        packer.set_epoch(self.epoch)  # drops the cached packs
        self.epoch += 1
