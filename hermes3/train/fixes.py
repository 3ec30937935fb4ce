"""Corrections of Axolotl, TRL and transformers, one per trap of docs/traps.md, until its test shows it mended."""

import sys
from dataclasses import replace
from functools import wraps
from inspect import unwrap

import torch
from accelerate import accelerator
from axolotl.utils.dict import DictDefault
from axolotl.utils.samplers import MultipackBatchSampler
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback
from transformers.trainer import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, remove_dummy_checkpoint

CHUNK = 256  # tokens: 131 MB of fp32 logits, where Llama's vocabulary has 128,256 entries


class RepackEveryEpoch(TrainerCallback):
    """Row 19: tell the epoch's number to the shuffler and to the packer around it, also where a run resumes."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0)  # counted on from here: an epoch that is a batch short ends at e.g. 0.999

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        packer = train_dataloader.batch_sampler
        while not isinstance(packer, MultipackBatchSampler):  # inside accelerate's BatchSamplerShard, a rank's share
            packer = packer.batch_sampler
        packer.sampler.set_epoch(self.epoch)
        packer.set_epoch(self.epoch)  # drops the cached packs
        self.epoch += 1


def keep_fp32(cfg: DictDefault, trainer: Trainer) -> None:
    """Row 21: train fp32 weights with fp32 moments and compute in bf16, 16 bytes per parameter instead of 8."""
    if not cfg.bf16 or cfg.deepspeed:  # DeepSpeed has fp32 copies
        return
    if cfg.adapter:
        for parameter in filter(lambda p: p.requires_grad, trainer.model.parameters()):
            parameter.data = parameter.data.float()
    elif not cfg.fsdp_config:
        trainer.model.float()  # autocast computes in bf16
    if cfg.fsdp_config and str(cfg.fsdp_version) == "2":
        # The loss leaves the model in fp32; accelerate would round it to bf16, to steps of 0.0078 between 1 and 2.
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
        if not cfg.adapter:
            # Each rank casts its own shard. Casting before sharding would take 1.6 TB of host memory per node for 405B.
            shard = accelerator.fsdp2_prepare_model  # Axolotl's own; it gathers layers in bf16 (`param_dtype`)
            accelerator.fsdp2_prepare_model = lambda *args: shard(*args).float()


def log_probs_in_fp32() -> None:
    """Row 38: have TRL take the log-probabilities of DPO, KTO, ORPO and SimPO, and all made of them, in fp32.

    The logits are cast CHUNK tokens at a time, and in the backward pass again: a copy of all would take 4.2 GB for two
    sequences of 4,096 tokens. Call it before the trainer is made, which may store the reference's sums.
    """
    from trl.trainer import dpo_trainer, kto_trainer, utils

    of_trl = unwrap(utils.selective_log_softmax)

    @wraps(of_trl)
    def selective_log_softmax(logits, index, temperature=1.0, row_mask=None):
        """Of logits [sequences, tokens, vocabulary] those at `index` [sequences, tokens], 0 where `row_mask` is 0."""
        if logits.dtype in (torch.float32, torch.float64):
            return of_trl(logits, index, temperature, row_mask)

        def of_chunk(logits, index):
            return of_trl(logits[None].float(), index[None], temperature)[0]

        chunks = [
            checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            for sequence, ids in zip(logits, index, strict=True)
            for chunk in zip(sequence.split(CHUNK), ids.split(CHUNK), strict=True)
        ]
        log_probs = torch.cat(chunks).view(index.shape)
        return log_probs if row_mask is None else log_probs.masked_fill(row_mask == 0, 0.0)

    def prepare_inputs(trainer, inputs):  # under DeepSpeed transformers casts a batch to bf16
        sums = {key: inputs[key].to(trainer.args.device) for key in inputs if key.startswith("ref_")}
        return Trainer._prepare_inputs(trainer, inputs) | sums

    for name, module in list(sys.modules.items()):  # the trainers import the function by name
        if name.startswith("trl.") and "selective_log_softmax" in vars(module):
            module.selective_log_softmax = selective_log_softmax
    dpo_trainer.DPOTrainer._prepare_inputs = kto_trainer.KTOTrainer._prepare_inputs = prepare_inputs


def noise_policy_alone(trainer: Trainer) -> None:
    """Row 22: NEFTune's noise (arXiv 2310.05914) for the policy alone, not for the reference, which has no gradients.

    It is uniform in +-alpha / sqrt(L d): L is the padded length of the micro-batch, d the hidden size.
    """
    alpha = trainer.args.neftune_noise_alpha

    def set_alpha(embeddings, args) -> None:
        embeddings.neftune_noise_alpha = alpha if torch.is_grad_enabled() else 0.0  # transformers' hook reads it next

    trainer.model.get_input_embeddings().register_forward_pre_hook(set_alpha)


def whole_steps(trainer: Trainer) -> None:
    """Row 40: end an epoch with its last whole global batch. It then has as many steps on any number of ranks."""
    make = trainer._get_train_sampler

    def make_packer(*args) -> MultipackBatchSampler:
        packer, micro_batches = make(*args), trainer.args.gradient_accumulation_steps * trainer.args.world_size
        packer._len_across_ranks = len(packer) // micro_batches * micro_batches or len(packer)
        return packer

    trainer._get_train_sampler = make_packer


def save_adapter_alone(trainer: Trainer) -> None:
    """Row 25: have DPO's last save write the adapter, and not the plain model into which TRL has put the adapter."""
    if isinstance(trainer.model, PeftModel):
        trainer.model.get_base_model().save_pretrained = trainer.model.save_pretrained


def save_shards_once(trainer: Trainer) -> None:
    """Row 29: write a ZeRO-3 model that stays in shards (no adapter does) once per checkpoint, and not at the end."""
    if not trainer.is_deepspeed_enabled or trainer.args.save_only_model or isinstance(trainer.model, PeftModel):
        return
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config
    if not config.is_zero3() or config.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save"):
        return
    save_model = trainer.save_model
    saved_step = None  # not asked of the file system, where ranks might see different things

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        nonlocal saved_step
        if not _internal_call and saved_step != trainer.state.global_step:
            return save_model(output_dir)
        saved_step = trainer.state.global_step
        output_dir = output_dir or trainer.args.output_dir
        if trainer.args.should_save:
            trainer._save(output_dir, state_dict={})
        remove_dummy_checkpoint(trainer.args.should_save, output_dir, [WEIGHTS_NAME, SAFE_WEIGHTS_NAME])

    trainer.save_model = save
