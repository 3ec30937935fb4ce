"""DPO by Axolotl's own trainer: whom NEFTune noises, what the reference is, what is saved and merged, and in fp32.

The recipe is the demo's, with the 8B's NEFTune and gradient checkpointing; the model has random weights.
"""

import math
import os
import shutil
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ranks
import torch
import yaml
from axolotl.cli.config import load_cfg
from axolotl.cli.merge_lora import do_cli as merge_lora
from axolotl.common.datasets import load_preference_datasets
from axolotl.train import save_initial_configs, save_trained_model, setup_model_and_trainer
from conftest import ROOT
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl.experimental.cpo import cpo_trainer
from trl.experimental.orpo import orpo_trainer
from trl.trainer import dpo_trainer, kto_trainer, utils

from hermes3.model_folder import check_model, tensor_names
from hermes3.recipe.read import read
from hermes3.train.fixes import log_probs_in_fp32

ALPHA = 5
D = 160  # hidden size of the small model
STEPS = 4
FIXES = "hermes3.train.fixes"
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
ROUNDING = 1e-5  # float32, on log-probabilities of order 10
MOVED = 1e-2  # what counts as another model


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
        return self.recipe.parent

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
def recipe(base, tmp_path_factory):
    """Write the demo's recipe with other values, on eight pairs of unlike lengths."""
    out = tmp_path_factory.mktemp("dpo")
    (out / "train").mkdir()
    prompt, text = "<|im_start|>user\nHow is the weather?<|im_end|>\n<|im_start|>assistant\n", "It is warm and sunny. "
    pairs = [{"prompt": prompt, "chosen": "Gladly! " + n * text, "rejected": n**2 // 2 * text} for n in range(2, 10)]
    pq.write_table(pa.Table.from_pylist(pairs), out / "train/part-00000.parquet")

    def recipe(name: str, **changes) -> Path:
        keys = {key: value for key, value in read(ROOT / "recipes/tiny_dpo.yml").items() if "wandb" not in key}
        keys |= {"base_model": str(base), "output_dir": str(out / name), "dataset_prepared_path": str(out / "prepared")}
        keys["datasets"][0]["path"] = str(out / "train")
        keys |= {"test_datasets": keys["datasets"], "eval_strategy": "no", "logging_steps": 1}
        keys |= {"gradient_accumulation_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}
        (out / name).mkdir()
        (out / name / "dpo.yml").write_text(yaml.safe_dump(keys | changes))
        return out / name / "dpo.yml"

    return recipe


@pytest.fixture(scope="module")
def train(recipe, axolotl_process):
    """A recipe with NEFTune, two pairs per step, through the calls of `axolotl train`."""

    def train(name: str, **changes) -> Run:
        path = recipe(name, micro_batch_size=2, neftune_noise_alpha=ALPHA, **changes)
        cfg = load_cfg(str(path))
        pairs = load_preference_datasets(cfg=cfg)
        trainer, model, tokenizer, peft_config, processor = setup_model_and_trainer(cfg, pairs)
        save_initial_configs(cfg, tokenizer, model, peft_config, processor)
        passes = record(trainer)
        trainer.train()
        save_trained_model(cfg, trainer, model)
        return Run(trainer, path, passes)

    return train


@pytest.fixture(scope="module")
def run(train) -> Run:
    """Four steps; evaluated before the first one, in the middle and at the end."""
    return train("run", eval_strategy="steps", eval_steps=2, **CHECKPOINTED)


@pytest.fixture(scope="module")
def bare(train) -> Run:
    """One step without what our plugin mends but NEFTune itself."""
    values = {"noise_policy_alone": None, "save_adapter_alone": None, "preference_args": {"neftune_noise_alpha": ALPHA}}
    with mock.patch.multiple(FIXES, **{name: mock.Mock(return_value=value) for name, value in values.items()}):
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
    # without noise the first loss is ln 2: test_dpo_takes_its_differences_in_fp32
    first = next(line["loss"] for line in run.trainer.state.log_history if "loss" in line)
    assert 1e-4 < abs(first - math.log(2)) < 0.2


def test_no_noise_in_evaluation(run):
    evaluated = run.of(training=False, adapter=True) + run.of(training=False, adapter=False)
    assert len(evaluated) == 2 * 3 * STEPS  # three evaluations, policy and reference
    assert noises(evaluated).abs().max() == 0


def test_the_reference_is_the_sft_model_at_every_step(run, plain):
    """With the adapter off and without noise, before the first update and after each. It has no weights of its own."""
    assert len(run.of(adapter=False)) == STEPS
    for one in run.of(adapter=False) + run.of(adapter=False, training=False):
        assert far_from(plain, one) < ROUNDING
    policy = run.of(adapter=True, training=False)
    assert all(far_from(plain, one) < ROUNDING for one in policy[:STEPS])
    assert all(far_from(plain, one) > MOVED for one in policy[STEPS:])
    assert run.trainer.ref_model is None
    adapter = sum(p.numel() for name, p in run.trainer.model.named_parameters() if "lora_" in name)
    assert sum(p.numel() for p in run.trainer.model.parameters()) == plain.num_parameters() + adapter


def test_the_reference_is_noised_without_our_measure(bare, plain):
    assert noises(bare.of(adapter=False)).abs().max() > 0.99
    assert far_from(plain, bare.of(adapter=False)[0]) > MOVED


def test_lora_dropout_acts(run, bare):
    for trained, expected in ((run, {0.05}), (bare, {0})):
        assert {m.p for m in trained.trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == expected


def test_a_run_leaves_the_adapter_alone(run):
    checkpoint = run.out / f"checkpoint-{run.trainer.state.global_step}"
    for folder in (run.out, checkpoint):
        assert sorted(path.name for path in folder.glob("*.safetensors*")) == ["adapter_model.safetensors"]
        assert all(".lora_" in name for name in tensor_names(folder / "adapter_model.safetensors"))
        assert (folder / "adapter_config.json").is_file() and (folder / "tokenizer.json").is_file()
    assert (run.out / "config.json").is_file() and (checkpoint / "optimizer.pt").is_file()


def test_without_our_measure_the_whole_model_lies_beside_it(bare, tmp_path):
    assert any("q_proj.base_layer.weight" in name for name in tensor_names(bare.out / "model.safetensors"))
    for file in ("config.json", "chat_template.jinja", "model.safetensors"):  # as if someone had tidied the folder
        shutil.copy(bare.out / file, tmp_path)
    with pytest.raises(ValueError, match="with an adapter inside"):
        check_model(tmp_path)


def test_a_merged_model_is_base_plus_adapter(run, base):
    def logits_on(folder: Path, adapter: Path | None = None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
        with torch.no_grad():
            return torch.cat([one.tokens(model(**one.inputs).logits) for one in run.of(adapter=True)])

    merge_lora(config=str(run.recipe))
    merged = run.out / "merged"
    both = logits_on(base, run.out)
    assert (both - logits_on(base)).abs().max() > MOVED
    assert (both - logits_on(merged)).abs().max() < ROUNDING
    check_model(merged)
    assert tensor_names(merged / "model.safetensors") == tensor_names(base / "model.safetensors")
    for file in ("chat_template.jinja", "tokenizer.json"):
        assert (merged / file).read_bytes() == (base / file).read_bytes()
    assert AutoTokenizer.from_pretrained(merged).eos_token == "<|im_end|>"


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


@pytest.fixture
def measured(trl):
    log_probs_in_fp32()


def answers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bf16 logits [2, 1200, 4096] of two sequences of 1,000 and 700 answer tokens, the tokens, the answers' mask."""
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, TOKENS + 200, 4096, generator=random)).bfloat16()
    index = torch.randint(4096, logits.shape[:2], generator=random)
    mask = torch.zeros_like(index)
    mask[0, 200:] = mask[1, 200:900] = 1
    return logits, index, mask


def policy_sums(logits, index, mask) -> torch.Tensor:
    """The calls of DPOTrainer._compute_loss."""
    per_token, _ = utils.selective_log_softmax_and_entropy(logits, index, entropy_requires_grad=False, row_mask=mask)
    return per_token.sum(dim=1)


def sums_of(trainer, logits, index, mask) -> torch.Tensor:
    """The calls of the other trainers, and of DPO's for its reference."""
    return (trainer.selective_log_softmax(logits, index) * mask).sum(dim=1)


def exact_sums(logits, index, mask) -> torch.Tensor:
    return (log_softmax(logits.double(), -1).gather(-1, index[..., None])[..., 0] * mask).sum(dim=1)


def test_trl_sums_an_answer_s_log_probabilities_in_bf16(trl):
    for sums in policy_sums, *(partial(sums_of, trainer) for trainer in TRAINERS):
        assert 1 < (sums(*answers()) - exact_sums(*answers())).abs().max() < 64


def test_an_answer_s_log_probabilities_are_summed_in_fp32(measured):
    policy = policy_sums(*answers())
    assert (policy - exact_sums(*answers())).abs().max() < 0.01
    assert all(torch.equal(policy, sums_of(trainer, *answers())) for trainer in TRAINERS)


def test_gradients_of_the_log_probabilities_are_those_of_fp64(measured):
    """Each is rounded once, to the logits' bf16; and nothing but the bf16 logits is kept for the backward pass."""
    logits, index, mask = answers()
    exact, saved = logits.double().requires_grad_(), []
    logits.requires_grad_()
    weights = torch.tensor([0.05, -0.05])  # as DPO weighs the chosen and the rejected answer
    (weights * exact_sums(exact, index, mask)).sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        sums = policy_sums(logits, index, mask)
    (weights * sums).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-8, atol=1e-12)
    assert sum(saved) < 1.1 * logits.nbytes


BARE = "ranks.OnCPU"
METRICS = ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins")
TWO = {"gpu": "cpu", "nodes": 1, "gpus_per_node": 2}
RECOMPUTED = {key: read(ROOT / "recipes/8b_dpo.yml")[key] for key in CHECKPOINTED}
FSDP2 = {key: read(ROOT / "recipes/8b_sft_fsdp.yml")[key] for key in ("fsdp_version", "fsdp_config")}


@pytest.fixture(scope="module")
def in_bf16(recipe):
    """Log lines of three steps of one pair, under ZeRO-3 with `bf16: true`, without noise and dropout."""

    def run(name: str, plugin: str = "hermes3.train.plugin.HermesPlugin", **changes) -> list[dict]:
        keys = {"bf16": True, "deepspeed": str(ROOT / "deepspeed_configs/zero3_bf16.json"), "lora_dropout": 0.0}
        keys |= {"plugins": [plugin, "ranks.Recorder"], "max_steps": 3, "save_strategy": "no"}
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT / "tests")):
            processes = changes.get("hardware", {}).get("gpus_per_node", 1)
            ended = ranks.train(recipe(name, **keys | changes), processes)
        assert ended.codes == [0] * processes, ended.logs[0][-3000:]
        assert ended.dtypes() == (["torch.float32"], ["torch.float32"]) or plugin == BARE  # adapter, RMSProp's state
        return [line for line in ended.lines() if "loss" in line]

    return run


def in_bf16_steps(lines: list[dict]) -> set[str]:
    """The metrics of which each value is one of bf16's."""
    values = {name: torch.tensor([line[name] for line in lines]) for name in METRICS}
    return {name for name, value in values.items() if torch.equal(value.bfloat16().float(), value)}


def test_without_our_measure_dpo_takes_its_differences_in_bf16(in_bf16):
    lines = in_bf16("coarse", BARE)
    assert lines[0]["loss"] == 0.69140625
    assert in_bf16_steps(lines) >= {"loss", "logps/chosen", "logps/rejected"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("zero3", {}),
        ("zero3-precomputed", {"precompute_ref_log_probs": True}),
        ("fsdp2", {"deepspeed": None, **FSDP2}),
        ("data-parallel", {"deepspeed": None, **RECOMPUTED, "hardware": TWO}),
    ],
)
def test_dpo_takes_its_differences_in_fp32(in_bf16, name, changes):
    lines = in_bf16(name, **changes)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=5e-7)
    assert in_bf16_steps(lines[1:]) == set()
