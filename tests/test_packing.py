"""Packed samples do not see each other, shown on the steps of Axolotl's own trainer; and how it averages the loss.

The recipe, Axolotl's data loading, packer, collator and trainer are the demo's; only the mix is a handful of samples.
What each sample gives alone comes from a plain transformers model without padding, mask or position ids.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.train import setup_model_and_trainer
from small_mix import IGNORE, SEQUENCE_LEN, write_mix, write_recipe
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

ROUNDING = 1e-5  # float32, on logits of order 1 and relative to the largest gradient
LEAK = 1e-2


@dataclass
class Forward:
    """One micro-batch as it reached the model, and what came out. Shapes [1, tokens] and [1, tokens, vocabulary]."""

    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    training: bool

    def parts(self) -> list[slice]:
        """Where each sample of the pack stands; the padding, a document of its own, is left out."""
        starts = self.starts()
        parts = [slice(*bounds) for bounds in zip(starts, [*starts[1:], SEQUENCE_LEN], strict=True)]
        return [part for part in parts if len(self.inputs["input_ids"][0, part].unique()) > 1]

    def starts(self) -> list[int]:
        return (self.inputs["position_ids"][0] == 0).nonzero().flatten().tolist()


@dataclass
class Alone:
    """One sample by itself: its logits, its number of trained tokens, and their loss with its gradients, both sums."""

    logits: torch.Tensor
    n_loss: int
    loss: float
    gradients: dict[str, torch.Tensor]


@dataclass
class Run:
    """An evaluation and one step of two micro-batches, both from the base model's weights."""

    trainer: Trainer
    forwards: list[Forward]
    gradients: dict[str, torch.Tensor]
    loss: float  # as logged

    @property
    def training(self) -> list[Forward]:
        return [forward for forward in self.forwards if forward.training]


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.cpu().clone() for name, p in model.named_parameters()}


@contextmanager
def recorded(model):
    forwards: list[Forward] = []

    def record(module, args, kwargs, out):
        inputs = {key: value.clone() for key, value in kwargs.items() if torch.is_tensor(value)}
        forwards.append(Forward(inputs, out.logits.detach().float().cpu(), module.training))

    handle = model.register_forward_hook(record, with_kwargs=True)
    yield forwards
    handle.remove()


@pytest.fixture(scope="module")
def mix(tmp_path_factory) -> Path:
    """Sixteen samples, of which any four fill a sequence, and no five fit."""
    return write_mix(tmp_path_factory.mktemp("packing") / "mix", [16] * 10 + [13] * 6)


@pytest.fixture(scope="module")
def train(base, mix, axolotl_process):
    """The demo's recipe for one step, as `axolotl train` sets it up. `attention` None: the key is left out."""

    def train(attention: str | None, **changes) -> Run:
        keys = {"attn_implementation": attention, "gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1}
        keys |= {"test_datasets": [{"path": str(mix / "train"), "type": None, "split": "train"}], "eval_strategy": "no"}
        keys |= {"max_grad_norm": 1e9, **changes}  # the gradients as they are, not clipped
        cfg = load_cfg(str(write_recipe(mix.parent / str(attention), mix, base, **keys)))
        trainer = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0]
        trainer.add_callback(kept := KeepGradients())
        with recorded(trainer.model) as forwards:
            trainer.evaluate()
            trainer.train()
        loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
        return Run(trainer, forwards, kept.gradients, loss)

    return train


@pytest.fixture(scope="module")
def alone(base, mix) -> dict[tuple[int, ...], Alone]:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    alone = {}
    for row in pq.read_table(mix / "train").to_pylist():
        labels = torch.tensor(row["labels"])
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        loss = cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction="sum")
        model.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        n_loss = int((labels[1:] != IGNORE).sum())
        alone[tuple(row["input_ids"])] = Alone(logits.detach(), n_loss, loss.item(), gradients)
    return alone


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def run(train, request) -> Run:
    return train(request.param)


def samples_of(forward: Forward, alone: dict) -> list[Alone]:
    return [alone[tuple(forward.inputs["input_ids"][0, part].tolist())] for part in forward.parts()]


def differences(forward: Forward, alone: dict) -> list[float]:
    """max |logit in the pack - logit alone| of each sample of the pack."""
    pairs = zip(forward.parts(), samples_of(forward, alone), strict=True)
    return [(forward.logits[0, part] - one.logits).abs().max().item() for part, one in pairs]


def weighted(samples: list[Alone], weights: list[float]) -> dict[str, torch.Tensor]:
    """The gradients of the samples' summed losses, each times its weight, summed."""
    pairs = list(zip(weights, samples, strict=True))
    return {name: sum(w * one.gradients[name] for w, one in pairs) for name in samples[0].gradients}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any parameter's gradients, relative to the largest gradient."""
    largest = max(g.abs().max() for g in other.values())
    return max((one[name] - other[name]).abs().max() / largest for name in other).item()


def test_logits_in_a_pack_are_those_of_each_sample_alone(run, alone):
    assert [len(forward.parts()) > 2 for forward in run.forwards] == [True] * len(run.forwards)
    assert len(run.training) == 2 < len(run.forwards)  # the others are of evaluation
    for forward in run.forwards:
        assert max(differences(forward, alone)) < ROUNDING


def test_without_an_attention_implementation_samples_leak(train, alone):
    """The same check fails where Axolotl hands the packs' mask to the model, which reads every number in it as 1."""
    for forward in train(None).training:
        assert forward.inputs["attention_mask"].max() > 1
        first, *others = differences(forward, alone)
        assert first < ROUNDING  # nothing stands before it
        assert min(others) > LEAK


@pytest.mark.parametrize("training", [True, False])
def test_changing_a_sample_leaves_its_neighbours_as_they_are(run, training):
    """Bit for bit. Every token of the pack's second sample but its first is changed."""
    forward = next(forward for forward in run.forwards if forward.training == training)
    changed = {key: value.clone() for key, value in forward.inputs.items()}
    second = forward.parts()[1]
    changed["input_ids"][0, second.start + 1 : second.stop] += 1
    with recorded(run.trainer.model) as seen:
        for inputs in (dict(forward.inputs), changed):
            if training:
                run.trainer.training_step(run.trainer.model, inputs)
            else:
                run.trainer.model.eval()
                run.trainer.prediction_step(run.trainer.model, inputs, prediction_loss_only=True)
    before, after = (one.logits[0] for one in seen)
    assert not torch.equal(before[second], after[second])
    assert torch.equal(before[: second.start], after[: second.start])
    assert torch.equal(before[second.stop :], after[second.stop :])


def test_no_sample_s_first_token_is_learnt_from_the_sample_before(run):
    """Axolotl shifts labels across the borders of samples: that first tokens bear no loss is what keeps them apart."""
    pack, borders = run.training[0].inputs, run.training[0].starts()
    assert (pack["labels"][0, borders] == IGNORE).all()
    labelled = pack["labels"].clone()
    labelled[0, borders] = pack["input_ids"][0, borders]
    with torch.no_grad():
        as_packed = run.trainer.compute_loss(run.trainer.model, dict(pack))
        assert as_packed != run.trainer.compute_loss(run.trainer.model, pack | {"labels": labelled})


def test_a_step_s_loss_is_the_mean_over_its_tokens(run, alone):
    """Of one rank: a token weighs the same in each of its micro-batches."""
    packs = [samples_of(forward, alone) for forward in run.training]
    counts = [sum(one.n_loss for one in pack) for pack in packs]
    assert counts[0] != counts[1]
    samples = sum(packs, [])
    assert run.loss == pytest.approx(sum(one.loss for one in samples) / sum(counts), rel=1e-6)
    assert gap(run.gradients, weighted(samples, [1 / sum(counts)] * len(samples))) < ROUNDING
    by_micro_batch = [1 / (2 * n) for pack, n in zip(packs, counts, strict=True) for _ in pack]
    assert gap(run.gradients, weighted(samples, by_micro_batch)) > LEAK


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None, reason="needs CUDA and flash-attn"
)
def test_flash_attention_keeps_samples_apart(train, alone):
    run = train("flash_attention_2", bf16=True)
    for forward in run.forwards:
        assert max(differences(forward, alone)) < 0.05  # bfloat16: 8 bits, through four layers
    for training in (True, False):
        test_changing_a_sample_leaves_its_neighbours_as_they_are(run, training)
