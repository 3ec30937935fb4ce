"""Rates in the trainer's log: of all ranks, of real tokens, and of the time that trains."""

import json
from types import SimpleNamespace

import pytest
import torch
from axolotl.utils.dict import DictDefault
from conftest import ROOT
from small_mix import SEQUENCE_LEN
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hermes3.plan.cost import PAPER_EPOCHS, paper_mfu
from hermes3.plan.schedule import PAPER_TOKENS, ROW_TOKENS
from hermes3.plan.shapes import published
from hermes3.recipe.paper import rows
from hermes3.recipe.validate import read
from hermes3.train import metrics
from hermes3.train.metrics import Throughput, mfu_of


def log_of(run) -> list[dict]:
    newest = max(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_packing_efficiency_is_that_of_all_ranks(stopped_sft):
    """A pack a rank and step; what each rank was given is written down by itself."""
    run = stopped_sft.through
    ranks = [[line["tokens"] for line in run.lines(rank) if "tokens" in line] for rank in (0, 1)]
    assert ranks[0] != ranks[1]
    shares = [sum(step) / (2 * SEQUENCE_LEN) for step in zip(*ranks, strict=True)]
    for log in (log_of(run), log_of(stopped_sft.last)):
        assert [entry["perf/packing_efficiency"] for entry in log] == pytest.approx(shares, rel=1e-4)


def test_every_entry_has_speed_and_memory_and_no_mfu_on_a_cpu(stopped_sft, stopped_dpo):
    for stopped in (stopped_sft, stopped_dpo):
        for entry in log_of(stopped.last):
            assert entry["perf/tokens_per_second_per_gpu"] > 0
            assert 0.1 < entry["perf/memory_gb"] < 10
            assert 0 < entry["perf/packing_efficiency"] <= 1
            assert "perf/mfu" not in entry
        assert "perf/mfu is left out: a CPU has no peak" in stopped.last.logs[0]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock.now)
    return clock


def test_saves_are_not_counted_as_time_and_padding_not_as_tokens(tmp_path, clock):
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    args = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=2,
        save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    row = {"input_ids": torch.tensor([1, 2, 3, 0]), "attention_mask": torch.tensor([1, 1, 1, 0])}
    rows = [row | {"labels": row["input_ids"]}] * 8
    trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=rows)
    save = trainer._save_checkpoint

    def spend(seconds: float):
        clock.now += seconds

    trainer.model.register_forward_pre_hook(lambda module, args: spend(0.5))
    trainer._save_checkpoint = lambda *given: (spend(1000), save(*given))
    seen = []
    trainer.add_callback(Throughput(trainer, mfu=lambda rate, row_tokens: seen.append((rate, row_tokens)) or 0.25))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["perf/tokens_per_second_per_gpu"] for entry in logged] == [6.0, 6.0]  # 3 tokens in half a second
    assert [entry["perf/packing_efficiency"] for entry in logged] == [0.75, 0.75]
    assert seen == [(6.0, 3.0)] * 2 and logged[0]["perf/mfu"] == 0.25


def test_the_padding_of_a_pack_is_no_row(tmp_path):
    """Axolotl numbers the padding's places from 0 too, as if it were another row."""
    trainer = SimpleNamespace(
        processing_class=None,
        args=TrainingArguments(tmp_path, use_cpu=True),
        training_step=lambda model, inputs: 1,
        log=None,
    )
    counter = Throughput(trainer, mfu=None)
    pack = {"attention_mask": [1, 1, 1, 2, 2, 0, 0, 0], "position_ids": [0, 1, 2, 0, 1, 0, 1, 2]}
    pack = {name: torch.tensor([row]) for name, row in pack.items()}
    trainer.training_step(None, pack | {"input_ids": torch.ones(1, 8, dtype=torch.long)})
    assert counter.counts.tolist() == [5, 8, 2]  # tokens, positions, rows


def cfg(name: str, **changes) -> DictDefault:
    path = ROOT / f"recipes/{name}.yml"
    return DictDefault(read(path) | {"axolotl_config_path": str(path), **changes})


@pytest.mark.parametrize("name", ["8b_sft", "70b_sft", "405b_sft"])
def test_at_the_papers_speed_it_is_the_mfu_that_the_plan_takes_from_the_paper(name):
    paper = rows()[name]
    rate = PAPER_TOKENS * PAPER_EPOCHS / (paper.gpu_hours * 3600)
    assert mfu_of(cfg(name))(rate, ROW_TOKENS) == pytest.approx(paper_mfu(published()[paper.base]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": 1}}, "a CPU has no peak"),
        ({"hardware": None}, "gpu: unknown is unknown"),
        ({"base_model": "mistral"}, "model_type: mistral"),
    ],
)
def test_without_a_peak_there_is_no_mfu_and_the_log_says_why(changes, why, caplog, tmp_path, monkeypatch):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral/config.json").write_text('{"model_type": "mistral"}')
    monkeypatch.chdir(tmp_path)
    assert mfu_of(cfg("8b_sft", **changes)) is None
    assert "perf/mfu is left out" in caplog.text and why in caplog.text
