"""DPO by Axolotl's own trainer: whom NEFTune noises, what the reference is, what is saved and merged, and in fp32."""

import math
import shutil
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from axolotl.cli.config import load_cfg
from axolotl.cli.merge_lora import do_cli as merge_lora
from axolotl.common.datasets import load_preference_datasets
from axolotl.train import save_initial_configs, save_trained_model, setup_model_and_trainer
from conftest import ROOT
from peft.tuners.tuners_utils import BaseTunerLayer
from ranks import OURS, PAIRS, dpo_recipe
from ranks import train as train_on_ranks
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, Trainer
from trl.experimental.cpo import cpo_trainer
from trl.experimental.orpo import orpo_trainer
from trl.trainer import dpo_trainer, kto_trainer, utils

from hermes3.model_folder import check_model, tensor_names
from hermes3.recipe.read import read
from hermes3.train.fixes import log_probs_in_fp32

ALPHA = 5
D = 160  # hidden size of the small model
STEPS = PAIRS // 2
ROUNDING = 1e-5  # float32, on logits of order 10
STEPPED = {"gradient_accumulation_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}


def record(trainer: Trainer) -> list[SimpleNamespace]:
    """Have every forward pass written down by hooks: its `ids`, whether it is of `training`, whether with the `adapter`
    (the policy) or without (the reference), and its `noise`: what enters the first layer, less the embeddings. PEFT
    calls the whole model's `forward` past its hooks: those inside."""
    model = trainer.model.get_base_model().model
    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    passes = []

    def begin(module, args, kwargs):
        ids, policy = kwargs["input_ids"].clone(), not layer.disable_adapters
        passes.append(SimpleNamespace(ids=ids, training=module.training, adapter=policy, noise=None))

    def enter_layers(module, args, kwargs):
        if passes[-1].noise is None:  # else a backward pass recomputes the layers
            embedded = model.get_input_embeddings().weight[passes[-1].ids]
            passes[-1].noise = ((args[0] if args else kwargs["hidden_states"]) - embedded).detach()

    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.layers[0].register_forward_pre_hook(enter_layers, with_kwargs=True)
    return passes


@pytest.fixture(scope="module")
def train(base, tmp_path_factory, axolotl_process):
    """Two pairs per step, through the calls of `axolotl train`."""
    folder = tmp_path_factory.mktemp("dpo")

    def train(name: str, **changes) -> SimpleNamespace:
        keys = {"micro_batch_size": 2, "neftune_noise_alpha": ALPHA, "plugins": OURS[:1]}
        path = dpo_recipe(folder / name, base, **STEPPED | keys | changes)
        cfg = load_cfg(str(path))
        trainer, model, *others = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))
        save_initial_configs(cfg, others[0], model, *others[1:])
        passes = record(trainer)
        trainer.train()
        save_trained_model(cfg, trainer, model)
        return SimpleNamespace(trainer=trainer, recipe=path, out=Path(cfg.output_dir), passes=passes)

    return train


@pytest.fixture(scope="module")
def run(train) -> SimpleNamespace:
    """Evaluated before the first step, in the middle and at the end."""
    checkpointed = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    return train("run", eval_strategy="steps", eval_steps=2, **checkpointed)


@pytest.fixture(scope="module")
def bare(train) -> SimpleNamespace:
    """One step without what our plugin mends but NEFTune itself."""
    neftune = {"return_value": {"neftune_noise_alpha": ALPHA}}
    unmended = {"noise_policy_alone": mock.Mock(), "save_adapter_alone": mock.Mock()}
    with (
        mock.patch("hermes3.train.plugin.HermesPlugin.get_training_args", **neftune),
        mock.patch.multiple("hermes3.train.fixes", **unmended),
    ):
        return train("bare", max_steps=1)


def noises(run, **of: bool) -> list[torch.Tensor]:
    """Of the passes that are `of`, in units of alpha / sqrt(L d), L the padded length."""
    passes = [one for one in run.passes if of.items() <= vars(one).items()]
    return [one.noise * math.sqrt(one.noise.shape[1] * D) / ALPHA for one in passes]


def test_neftune_noises_the_policy_uniformly(run):
    """And in training alone."""
    policy = noises(run, adapter=True, training=True)
    assert len({one.shape[1] for one in policy}) > 1  # padded lengths have their own magnitudes
    noise = torch.cat([one.flatten() for one in policy])
    assert 0.999 < noise.abs().max() < 1.0001
    assert abs(noise.mean()) < 0.01
    shares = torch.histc(noise, bins=10, min=-1, max=1) / len(noise)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.003)
    evaluated = noises(run, training=False)
    assert len(evaluated) == 2 * 3 * STEPS  # three evaluations, policy and reference
    assert not any(one.any() for one in evaluated)


def test_the_reference_is_the_sft_model_at_every_step(run, bare, base):
    """With the adapter off and, unlike without our measure, without noise. Its weights are the policy's, and stay."""
    assert noises(bare, adapter=False, training=True)[0].abs().max() > 0.99
    reference = noises(run, adapter=False, training=True)
    assert len(reference) == STEPS and not any(one.any() for one in reference)
    assert run.trainer.ref_model is None
    before = load_file(base / "model.safetensors")
    after = {name.replace(".base_layer", ""): p for name, p in run.trainer.model.get_base_model().named_parameters()}
    assert before.keys() == {name for name in after if ".lora_" not in name}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lora_dropout_acts(run, bare):
    for trained, expected in ((run, {0.05}), (bare, {0})):
        assert {m.p for m in trained.trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == expected


def test_a_run_leaves_the_adapter_alone(run, bare, tmp_path):
    for folder in (run.out, run.out / f"checkpoint-{STEPS}"):
        assert [path.name for path in folder.glob("*.safetensors*")] == ["adapter_model.safetensors"]
        assert all(".lora_" in name for name in tensor_names(folder / "adapter_model.safetensors"))
        assert (folder / "adapter_config.json").is_file() and (folder / "tokenizer.json").is_file()
    # without our measure the whole model lies beside it
    for file in ("config.json", "chat_template.jinja", "model.safetensors"):  # as if someone had tidied the folder
        shutil.copy(bare.out / file, tmp_path)
    with pytest.raises(ValueError, match="with an adapter inside"):
        check_model(tmp_path)


def test_a_merged_model_is_base_plus_adapter(run, base):
    merge_lora(config=str(run.recipe))
    check_model(run.out / "merged")
    merged = AutoModelForCausalLM.from_pretrained(run.out / "merged", dtype=torch.float32).eval()
    policy, ids = run.trainer.model.eval(), run.passes[0].ids
    with torch.no_grad(), policy.disable_adapter():
        reference = policy(ids).logits
    with torch.no_grad():
        assert (merged(ids).logits - policy(ids).logits).abs().max() < ROUNDING
        assert (merged(ids).logits - reference).abs().max() > 1000 * ROUNDING
    for file in ("chat_template.jinja", "tokenizer.json"):
        assert (run.out / "merged" / file).read_bytes() == (base / file).read_bytes()


TRAINERS = (dpo_trainer, kto_trainer, orpo_trainer, cpo_trainer)


def sums(logits, index, mask) -> list[torch.Tensor]:
    """By the calls of DPOTrainer._compute_loss; of the other trainers, and of DPO's for its reference."""
    per_token, _ = utils.selective_log_softmax_and_entropy(logits, index, entropy_requires_grad=False, row_mask=mask)
    others = [(trainer.selective_log_softmax(logits, index) * mask).sum(dim=1) for trainer in TRAINERS]
    return [per_token.sum(dim=1), *others]


def test_an_answer_s_log_probabilities_are_summed_in_fp32_and_by_trl_in_bf16(monkeypatch):
    """Gradients are rounded once, to the logits' bf16; and nothing but these is kept for the backward pass."""
    for module in (utils, *TRAINERS):  # TRL as it is installed: earlier runs in this process have called our measure
        monkeypatch.setattr(module, "selective_log_softmax", unwrap(module.selective_log_softmax))
    for trainer in (dpo_trainer.DPOTrainer, kto_trainer.KTOTrainer):
        monkeypatch.setattr(trainer, "_prepare_inputs", Trainer._prepare_inputs)
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 1200, 4096, generator=random)).bfloat16()
    index = torch.randint(4096, logits.shape[:2], generator=random)
    mask = torch.zeros_like(index)
    mask[0, 200:] = mask[1, 200:900] = 1  # answers of 1,000 and 700 tokens
    double, saved = logits.double().requires_grad_(), []
    exact = (log_softmax(double, -1).gather(-1, index[..., None])[..., 0] * mask).sum(dim=1)
    assert all(1 < (one - exact).abs().max() < 64 for one in sums(logits, index, mask))
    log_probs_in_fp32()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        policy, *others = sums(logits.requires_grad_(), index, mask)
    assert (policy - exact).abs().max() < 0.01
    assert all(torch.equal(policy, one) for one in others)
    assert sum(saved) < 1.1 * (1 + len(others)) * logits.nbytes
    weights = torch.tensor([0.05, -0.05])  # as DPO weighs the chosen and the rejected answer
    (weights * policy).sum().backward()
    (weights * exact).sum().backward()
    torch.testing.assert_close(logits.grad.double(), double.grad, rtol=2**-8, atol=1e-12)


METRICS = ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins")
ZERO3 = {"deepspeed": str(ROOT / "deepspeed_configs/zero3_bf16.json")}
FSDP2 = {key: read(ROOT / "recipes/8b_sft_fsdp.yml")[key] for key in ("fsdp_version", "fsdp_config")}


@pytest.mark.parametrize(
    ("plugin", "changes"),
    [
        ("ranks.OnCPU", ZERO3),
        (OURS[0], ZERO3),
        (OURS[0], ZERO3 | {"precompute_ref_log_probs": True}),
        (OURS[0], FSDP2),  # data parallel: tests/test_gpu_check.py
    ],
)
def test_dpo_takes_its_differences_in_fp32_and_without_our_measure_in_bf16(base, tmp_path, plugin, changes):
    """Three steps of one pair, without noise and dropout. What is of bf16 has values of bf16 alone."""
    keys = {"bf16": True, "lora_dropout": 0.0, "plugins": [plugin, OURS[1]], "max_steps": 3, "save_strategy": "no"}
    ended = train_on_ranks(dpo_recipe(tmp_path / "run", base, **STEPPED | keys | changes), 1)
    assert ended.codes == [0], ended.logs[0][-3000:]
    lines = [line for line in ended.lines() if "loss" in line]
    values = {name: torch.tensor([line[name] for line in lines[1:]]) for name in METRICS}
    rounded = {name for name, value in values.items() if torch.equal(value.bfloat16().float(), value)}
    if plugin == OURS[0]:
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=5e-7)
        assert rounded == set()
        assert ended.dtypes() == (["torch.float32"], ["torch.float32"])  # adapter, RMSProp's state
    else:
        assert lines[0]["loss"] == 0.69140625
        assert rounded >= {"loss", "logps/chosen", "logps/rejected"}
