"""DPO by Axolotl's own trainer: whom NEFTune noises, what the reference is, what is saved and merged, and in fp32.

The recipe is the demo's, with the 8B's NEFTune and gradient checkpointing; the model has random weights.
"""

import math
import shutil
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from unittest import mock

import pytest
import ranks
import torch
from axolotl.cli.config import load_cfg
from axolotl.cli.merge_lora import do_cli as merge_lora
from axolotl.common.datasets import load_preference_datasets
from axolotl.train import save_initial_configs, save_trained_model, setup_model_and_trainer
from conftest import ROOT
from peft.tuners.tuners_utils import BaseTunerLayer
from stopped import OURS, PAIRS, dpo_recipe
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
ROUNDING = 1e-5  # float32, on log-probabilities of order 10
MOVED = 1e-2  # what counts as another model
STEPPED = {"gradient_accumulation_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}


@dataclass
class Pass:
    """One forward pass. Of B sequences of L tokens: noise [B, L, d], logits [B, L, vocabulary]."""

    inputs: dict[str, torch.Tensor]
    training: bool
    adapter: bool  # on: the policy; off: the reference
    noise: torch.Tensor | None = None  # what enters the first layer, less the embeddings
    logits: torch.Tensor | None = None

    def tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of every vocabulary entry, where there is a token: [tokens, vocabulary]."""
        return log_softmax(logits, -1)[self.inputs["attention_mask"].bool()]


@dataclass
class Run:
    trainer: Trainer
    recipe: Path
    passes: list[Pass]

    @property
    def out(self) -> Path:
        return self.recipe.parent / "out"

    def of(self, adapter: bool, training: bool = True) -> list[Pass]:
        return [one for one in self.passes if one.training == training and one.adapter == adapter]


def record(trainer: Trainer) -> list[Pass]:
    """Have every pass written down by hooks. PEFT calls the whole model's `forward` past its hooks: those inside."""
    model = trainer.model.get_base_model()
    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    passes: list[Pass] = []

    def begin(module, args, kwargs):
        inputs = {key: kwargs[key].clone() for key in ("input_ids", "attention_mask") if kwargs.get(key) is not None}
        passes.append(Pass(inputs, module.training, not layer.disable_adapters))

    def enter_layers(module, args, kwargs):
        if passes[-1].noise is None:  # else a backward pass recomputes the layers
            embedded = model.get_input_embeddings().weight[passes[-1].inputs["input_ids"]]
            passes[-1].noise = ((args[0] if args else kwargs["hidden_states"]) - embedded).detach()

    def end(module, args, out):
        passes[-1].logits = out.detach()

    model.model.register_forward_pre_hook(begin, with_kwargs=True)
    model.model.layers[0].register_forward_pre_hook(enter_layers, with_kwargs=True)
    model.lm_head.register_forward_hook(end)
    return passes


@pytest.fixture(scope="module")
def train(base, tmp_path_factory, axolotl_process):
    """Two pairs per step, through the calls of `axolotl train`."""
    folder = tmp_path_factory.mktemp("dpo")

    def train(name: str, **changes) -> Run:
        keys = {"micro_batch_size": 2, "neftune_noise_alpha": ALPHA, "plugins": OURS[:1]}
        path = dpo_recipe(folder / name, base, **STEPPED | keys | changes)
        cfg = load_cfg(str(path))
        trainer, model, *others = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))
        save_initial_configs(cfg, others[0], model, *others[1:])
        passes = record(trainer)
        trainer.train()
        save_trained_model(cfg, trainer, model)
        return Run(trainer, path, passes)

    return train


@pytest.fixture(scope="module")
def run(train) -> Run:
    """Evaluated before the first step, in the middle and at the end."""
    checkpointed = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    return train("run", eval_strategy="steps", eval_steps=2, **checkpointed)


@pytest.fixture(scope="module")
def bare(train) -> Run:
    """One step without what our plugin mends but NEFTune itself."""
    args = mock.patch(
        "hermes3.train.plugin.HermesPlugin.get_training_args", return_value={"neftune_noise_alpha": ALPHA}
    )
    with (
        args,
        mock.patch.multiple("hermes3.train.fixes", noise_policy_alone=mock.Mock(), save_adapter_alone=mock.Mock()),
    ):
        return train("bare", max_steps=1)


@pytest.fixture(scope="module")
def plain(base):
    """The SFT model by itself."""
    return AutoModelForCausalLM.from_pretrained(base).eval()


def far_from(plain, one: Pass) -> float:
    """The largest difference of any log-probability from the plain model's."""
    with torch.no_grad():
        return (one.tokens(one.logits) - one.tokens(plain(**one.inputs).logits)).abs().max().item()


def noises(passes: list[Pass]) -> torch.Tensor:
    """All noise of some passes, in units of alpha / sqrt(L d), L the padded length: flat."""
    return torch.cat([(one.noise * math.sqrt(one.noise.shape[1] * D) / ALPHA).flatten() for one in passes])


def test_neftune_noises_the_policy_uniformly(run):
    noise = noises(run.of(adapter=True))
    assert len({one.noise.shape[1] for one in run.of(adapter=True)}) > 1  # padded lengths have their own magnitudes
    assert 0.999 < noise.abs().max() < 1.0001
    assert abs(noise.mean()) < 0.01
    shares = torch.histc(noise, bins=10, min=-1, max=1) / len(noise)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.003)


def test_the_reference_is_the_sft_model_at_every_step(run, plain):
    """With the adapter off and without noise, before the first update and after each. It has no weights of its own."""
    assert len(run.of(adapter=False)) == STEPS and run.trainer.ref_model is None
    for one in run.of(adapter=False) + run.of(adapter=False, training=False):
        assert far_from(plain, one) < ROUNDING
    policy = run.of(adapter=True, training=False)
    assert all(far_from(plain, one) < ROUNDING for one in policy[:STEPS])
    assert all(far_from(plain, one) > MOVED for one in policy[STEPS:])


def test_the_reference_is_noised_without_our_measure(bare, plain):
    assert noises(bare.of(adapter=False)).abs().max() > 0.99
    assert far_from(plain, bare.of(adapter=False)[0]) > MOVED


def test_lora_dropout_acts(run, bare):
    for trained, expected in ((run, {0.05}), (bare, {0})):
        assert {m.p for m in trained.trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == expected


def test_a_run_leaves_the_adapter_alone(run):
    for folder in (run.out, run.out / f"checkpoint-{STEPS}"):
        assert [path.name for path in folder.glob("*.safetensors*")] == ["adapter_model.safetensors"]
        assert all(".lora_" in name for name in tensor_names(folder / "adapter_model.safetensors"))
        assert (folder / "adapter_config.json").is_file() and (folder / "tokenizer.json").is_file()


def test_without_our_measure_the_whole_model_lies_beside_it(bare, tmp_path):
    for file in ("config.json", "chat_template.jinja", "model.safetensors"):  # as if someone had tidied the folder
        shutil.copy(bare.out / file, tmp_path)
    with pytest.raises(ValueError, match="with an adapter inside"):
        check_model(tmp_path)


def test_a_merged_model_is_base_plus_adapter(run, base):
    merge_lora(config=str(run.recipe))
    merged, policy = run.out / "merged", run.trainer.model.eval()
    check_model(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        for one in run.of(adapter=True):
            assert (
                one.tokens(model(**one.inputs).logits) - one.tokens(policy(**one.inputs).logits)
            ).abs().max() < ROUNDING
    for file in ("chat_template.jinja", "tokenizer.json"):
        assert (merged / file).read_bytes() == (base / file).read_bytes()


# log-probabilities in fp32 from bf16 logits

TOKENS = 1000  # an answer's
TRAINERS = (dpo_trainer, kto_trainer, orpo_trainer, cpo_trainer)


@pytest.fixture
def trl(monkeypatch):
    """TRL as it is installed: earlier runs in this process have called our measure."""
    for module in (utils, *TRAINERS):
        monkeypatch.setattr(module, "selective_log_softmax", unwrap(module.selective_log_softmax))
    for trainer in (dpo_trainer.DPOTrainer, kto_trainer.KTOTrainer):
        monkeypatch.setattr(trainer, "_prepare_inputs", Trainer._prepare_inputs)


def answers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bf16 logits [2, 1200, 4096] of two sequences of 1,000 and 700 answer tokens, the tokens, the answers' mask."""
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, TOKENS + 200, 4096, generator=random)).bfloat16()
    index = torch.randint(4096, logits.shape[:2], generator=random)
    mask = torch.zeros_like(index)
    mask[0, 200:] = mask[1, 200:900] = 1
    return logits, index, mask


def sums(logits, index, mask) -> list[torch.Tensor]:
    """By the calls of DPOTrainer._compute_loss; of the other trainers, and of DPO's for its reference."""
    per_token, _ = utils.selective_log_softmax_and_entropy(logits, index, entropy_requires_grad=False, row_mask=mask)
    others = [(trainer.selective_log_softmax(logits, index) * mask).sum(dim=1) for trainer in TRAINERS]
    return [per_token.sum(dim=1), *others]


def exact_sums(logits, index, mask) -> torch.Tensor:
    return (log_softmax(logits.double(), -1).gather(-1, index[..., None])[..., 0] * mask).sum(dim=1)


def test_an_answer_s_log_probabilities_are_summed_in_fp32_and_by_trl_in_bf16(trl):
    exact = exact_sums(*answers())
    assert all(1 < (one - exact).abs().max() < 64 for one in sums(*answers()))
    log_probs_in_fp32()
    policy, *others = sums(*answers())
    assert (policy - exact).abs().max() < 0.01
    assert all(torch.equal(policy, one) for one in others)


def test_gradients_of_the_log_probabilities_are_those_of_fp64(trl):
    """Each is rounded once, to the logits' bf16; and nothing but the bf16 logits is kept for the backward pass."""
    log_probs_in_fp32()
    logits, index, mask = answers()
    exact, saved = logits.double().requires_grad_(), []
    logits.requires_grad_()
    weights = torch.tensor([0.05, -0.05])  # as DPO weighs the chosen and the rejected answer
    (weights * exact_sums(exact, index, mask)).sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        policy = utils.selective_log_softmax_and_entropy(logits, index, entropy_requires_grad=False, row_mask=mask)[0]
    (weights * policy.sum(dim=1)).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-8, atol=1e-12)
    assert sum(saved) < 1.1 * logits.nbytes


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
    ended = ranks.train(dpo_recipe(tmp_path / "run", base, **STEPPED | keys | changes), 1)
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
