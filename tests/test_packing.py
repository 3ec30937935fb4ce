"""Packed samples do not see each other, shown on the steps of Axolotl's own trainer; and how it averages the loss. The
recipe, Axolotl's data loading, packer, collator and trainer are the demo's; only the mix is a handful of samples. What
each sample gives alone comes from a plain transformers model without padding, mask or position ids."""

from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.train import setup_model_and_trainer
from small_mix import IGNORE, SEQUENCE_LEN, write_mix, write_recipe
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

ROUNDING = 1e-5  # float32, on logits of order 1
LEAK = 1e-2


@dataclass
class Forward:
    """One micro-batch as it reached the model, and what came out. Shapes [1, tokens] and [1, tokens, vocabulary]."""

    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    training: bool

    def parts(self) -> list[slice]:
        """Where each sample of the pack stands; the padding, a document of its own, is left out."""
        starts = (self.inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
        parts = [slice(*bounds) for bounds in pairwise([*starts, SEQUENCE_LEN])]
        return [part for part in parts if len(self.inputs["input_ids"][0, part].unique()) > 1]


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
    """An evaluation and one step of two micro-batches, both from the base model's weights, as `axolotl train` does.
    `attention` None: the key is left out."""

    def train(attention: str | None, **changes) -> SimpleNamespace:
        keys = {"attn_implementation": attention, "gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1}
        keys |= {"test_datasets": [{"path": str(mix / "train"), "type": None, "split": "train"}], "eval_strategy": "no"}
        cfg = load_cfg(str(write_recipe(mix.parent / str(attention), mix, base, **keys | changes)))
        trainer = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0]
        with recorded(trainer.model) as forwards:
            trainer.evaluate()
            trainer.train()
        return SimpleNamespace(trainer=trainer, forwards=forwards, training=[one for one in forwards if one.training])

    return train


@pytest.fixture(scope="module")
def alone(base, mix) -> dict[tuple[int, ...], tuple[torch.Tensor, float, int]]:
    """By a sample's tokens: its logits by itself, the sum of its loss, and its number of trained tokens."""
    model, alone = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), {}
    for row in pq.read_table(mix / "train").to_pylist():
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        loss = cross_entropy(logits[:-1], labels, ignore_index=IGNORE, reduction="sum").item()
        alone[tuple(row["input_ids"])] = logits, loss, int((labels != IGNORE).sum())
    return alone


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def run(train, request) -> SimpleNamespace:
    return train(request.param)


def samples_of(forward: Forward, alone: dict) -> list[tuple[float, float, int]]:
    """Of each sample of the pack: max |logit in the pack - logit alone|, the sum of its loss, its trained tokens."""
    samples = []
    for part in forward.parts():
        logits, loss, n_loss = alone[tuple(forward.inputs["input_ids"][0, part].tolist())]
        samples.append(((forward.logits[0, part] - logits).abs().max().item(), loss, n_loss))
    return samples


def test_logits_in_a_pack_are_those_of_each_sample_alone(run, alone):
    assert len(run.training) == 2 < len(run.forwards)  # the others are of evaluation
    for forward in run.forwards:
        assert len(forward.parts()) > 2
        assert max(samples_of(forward, alone))[0] < ROUNDING


def test_without_an_attention_implementation_samples_leak(train, alone):
    """The same check fails where Axolotl hands the packs' mask to the model, which reads every number in it as 1."""
    for forward in train(None).training:
        assert forward.inputs["attention_mask"].max() > 1
        first, *others = samples_of(forward, alone)
        assert first[0] < ROUNDING  # nothing stands before it
        assert min(others)[0] > LEAK


def test_changing_a_sample_leaves_its_neighbours_as_they_are(run):
    """Bit for bit, in training and in evaluation. Every token of the pack's second sample but its first is changed."""
    for forward in (run.training[0], next(one for one in run.forwards if not one.training)):
        changed = {key: value.clone() for key, value in forward.inputs.items()}
        second = forward.parts()[1]
        changed["input_ids"][0, second.start + 1 : second.stop] += 1
        run.trainer.model.eval()
        with recorded(run.trainer.model) as seen:
            for inputs in (dict(forward.inputs), changed):
                if forward.training:
                    run.trainer.training_step(run.trainer.model, inputs)
                else:
                    run.trainer.prediction_step(run.trainer.model, inputs, prediction_loss_only=True)
        before, after = (one.logits[0] for one in seen)
        assert not torch.equal(before[second], after[second])
        assert torch.equal(before[: second.start], after[: second.start])
        assert torch.equal(before[second.stop :], after[second.stop :])


def test_a_step_s_loss_is_the_mean_over_its_tokens(run, alone):
    """Of one rank: a token weighs the same in each of its micro-batches."""
    packs = [samples_of(forward, alone) for forward in run.training]
    losses, counts = ([sum(sample[i] for sample in pack) for pack in packs] for i in (1, 2))
    logged = next(line["loss"] for line in run.trainer.state.log_history if "loss" in line)
    assert logged == pytest.approx(sum(losses) / sum(counts), rel=1e-6)
    assert logged != pytest.approx(sum(loss / n for loss, n in zip(losses, counts, strict=True)) / 2, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None, reason="needs CUDA and flash-attn"
)
def test_flash_attention_keeps_samples_apart(train, alone):
    run = train("flash_attention_2", bf16=True)
    for forward in run.forwards:
        assert max(samples_of(forward, alone))[0] < 0.05  # bfloat16: 8 bits, through four layers
    test_changing_a_sample_leaves_its_neighbours_as_they_are(run)
