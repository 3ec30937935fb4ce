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
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, remove_dummy_checkpoint

CHUNK = 256  # tokens: 131 MB of fp32 logits, where Llama's vocabulary has 128,256 entries


def seed_packing(cfg: DictDefault) -> None:
    """Seed what Axolotl draws before the trainer seeds the process: the packing from which it counts the steps.

    Without it two runs of one recipe take e.g. 3,448 and 3,452 steps, and so another learning rate at each.
    """
    if cfg.seed is not None:
        set_seed(cfg.seed)


class RepackEveryEpoch(TrainerCallback):
    """Tell the epoch's number to the shuffler and to the packer around it: both then depend on it and the seed alone.

    transformers does, unless a run on several ranks resumes within an epoch: what then skips batches hides the packer,
    and the run repeats samples and omits others.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run starts inside this epoch. Counted here, because an epoch whose packing came out a batch short
        # ends at e.g. 0.999.
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        packer = train_dataloader.batch_sampler
        while not isinstance(packer, MultipackBatchSampler):  # inside accelerate's BatchSamplerShard, a rank's share
            packer = packer.batch_sampler
        packer.sampler.set_epoch(self.epoch)
        packer.set_epoch(self.epoch)  # drops the cached packs
        self.epoch += 1


def keep_fp32(cfg: DictDefault, trainer: Trainer) -> None:
    """Train fp32 weights with fp32 moments and compute in bf16: 16 bytes per parameter instead of Axolotl's 8.

    Axolotl loads the model in bf16 and, unless DeepSpeed makes fp32 copies, has Adam change these very weights. bf16
    has 8 bits: a change of less than 1/512 of a weight is lost, as nearly all are at a learning rate of 7e-6.
    """
    if not cfg.bf16 or cfg.deepspeed:
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


def preference_args(cfg: DictDefault) -> dict[str, float | bool]:
    """Trainer arguments with which NEFTune and LoRA's dropout act under preference training.

    Axolotl passes `neftune_noise_alpha` to the SFT trainer only. TRL sets every dropout of the model to 0 by default;
    Llama has no dropout but LoRA's, and the reference runs with the adapter off, so the reference does not change.
    """
    noise = {"neftune_noise_alpha": cfg.neftune_noise_alpha} if cfg.rl and cfg.neftune_noise_alpha is not None else {}
    drops = cfg.rl in ("dpo", "ipo") and cfg.adapter and cfg.lora_dropout
    return noise | ({"disable_dropout": False} if drops else {})


def log_probs_in_fp32() -> None:
    """Have TRL take DPO's, KTO's, ORPO's and SimPO's log-probabilities, and so all that is made of them, in fp32.

    The sum over an answer of 1,000 tokens is near -10,000, where bf16 knows multiples of 64 alone. Two things round it.
    `selective_log_softmax` returns the dtype of the logits, unless TRL's Triton kernel runs, which returns fp32. Here
    it gets the logits in fp32, CHUNK tokens at a time, and in the backward pass again: a copy of all logits would take
    4.2 GB for two sequences of 4,096 tokens. And under DeepSpeed transformers casts a batch to bf16, such as the sums
    of the reference that `precompute_ref_log_probs` stored as the trainer was made: call it before that.
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

    def prepare_inputs(trainer, inputs):
        sums = {key: inputs[key].to(trainer.args.device) for key in inputs if key.startswith("ref_")}
        return Trainer._prepare_inputs(trainer, inputs) | sums

    for name, module in list(sys.modules.items()):  # the trainers import the function by name
        if name.startswith("trl.") and "selective_log_softmax" in vars(module):
            module.selective_log_softmax = selective_log_softmax
    dpo_trainer.DPOTrainer._prepare_inputs = kto_trainer.KTOTrainer._prepare_inputs = prepare_inputs


def noise_policy_alone(trainer: Trainer) -> None:
    """Add NEFTune's noise (arXiv 2310.05914) to the policy and not to DPO's reference.

    The noise is uniform in +-alpha / sqrt(L d): L is the padded length of the micro-batch, d the hidden size.
    transformers adds it wherever the embeddings are in training mode. TRL computes the reference in training mode too,
    with the adapter off and without gradients; so gradients tell the two apart.
    """
    alpha = trainer.args.neftune_noise_alpha

    def set_alpha(embeddings, args) -> None:
        # transformers' forward hook on the same module reads it afterwards
        embeddings.neftune_noise_alpha = alpha if torch.is_grad_enabled() else 0.0

    trainer.model.get_input_embeddings().register_forward_pre_hook(set_alpha)


def save_adapter_alone(trainer: Trainer) -> None:
    """Have the last save of DPO write the adapter and not the base model with the adapter inside.

    Axolotl gives TRL a plain model, TRL puts the adapter into it, and at the end Axolotl saves that plain model beside
    the adapter: a `model.safetensors` with names such as `q_proj.base_layer.weight`. `from_pretrained` reads it without
    an error and fills every linear layer with random numbers.
    """
    if isinstance(trainer.model, PeftModel):
        trainer.model.get_base_model().save_pretrained = trainer.model.save_pretrained


def save_shards_once(trainer: Trainer) -> None:
    """Write a ZeRO-3 model that stays in shards once per checkpoint, and not again when the run ends.

    With `stage3_gather_16bit_weights_on_model_save: false` transformers has DeepSpeed write the whole checkpoint in
    place of the gathered weights, then again as the optimizer's state, and once more when the run ends: 4.9 TB each
    for 405B. Configuration and tokenizer are still written each time. An adapter is gathered, whatever the key says.
    """
    if not trainer.is_deepspeed_enabled or trainer.args.save_only_model or isinstance(trainer.model, PeftModel):
        return
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config
    if not config.is_zero3() or config.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save"):
        return
    save_model = trainer.save_model
    saved_step = None  # not asked of the file system, where ranks might see different things

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        nonlocal saved_step
        if _internal_call:
            saved_step = trainer.state.global_step
        elif saved_step != trainer.state.global_step:
            return save_model(output_dir)
        output_dir = output_dir or trainer.args.output_dir
        if trainer.args.should_save:
            trainer._save(output_dir, state_dict={})
        remove_dummy_checkpoint(trainer.args.should_save, output_dir, [WEIGHTS_NAME, SAFE_WEIGHTS_NAME])

    trainer.save_model = save
