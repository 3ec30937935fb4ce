"""Rates in the trainer's log, and one wandb run for all attempts at a training, read back from offline runs."""

import json
import os
import re
from importlib.metadata import version
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from axolotl.utils.dict import DictDefault
from conftest import ROOT
from ranks import EPOCH, HALF, SECRET, wandb_runs
from small_mix import SEQUENCE_LEN
from tiny_trainer import tiny_trainer
from transformers import TrainingArguments

from hermes3.plan.cost import RATES, paper_hours
from hermes3.plan.shapes import PUBLISHED
from hermes3.recipe.paper import ROWS
from hermes3.recipe.read import read
from hermes3.train import metrics
from hermes3.train.checkpoints import checkpoints
from hermes3.train.metrics import RUN_ID, Throughput, mfu_of, name_run


def log_of(run) -> list[dict]:
    history = json.loads((checkpoints(run.folder)[-1] / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_every_entry_has_the_rates_of_all_ranks_and_no_mfu_on_a_cpu(stopped_sft, stopped_dpo):
    """One pack per rank and step; each rank's tokens are also written by the test's recorder."""
    run = stopped_sft.through
    ranks = [[line["tokens"] for line in run.lines(rank) if "tokens" in line] for rank in (0, 1)]
    assert ranks[0] != ranks[1]
    shares = [sum(step) / (2 * SEQUENCE_LEN) for step in zip(*ranks, strict=True)]
    for log in (log_of(run), log_of(stopped_sft.last)):
        assert [entry["perf/packing_efficiency"] for entry in log] == pytest.approx(shares, rel=1e-4)
    for entry in log_of(stopped_sft.last) + log_of(stopped_dpo.last):
        assert entry["perf/tokens_per_second_per_gpu"] > 0 and 0.1 < entry["perf/memory_gb"] < 10
        assert 0 < entry["perf/packing_efficiency"] <= 1 and "perf/mfu" not in entry
    assert "perf/mfu is left out: a CPU has no peak" in run.logs[0]


def test_saves_are_not_counted_as_time_and_padding_not_as_tokens(tmp_path, monkeypatch):
    clock, seen = SimpleNamespace(now=1.0), []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock.now)
    steps = {"max_steps": 4, "gradient_accumulation_steps": 2, "logging_steps": 2, "save_steps": 1}
    trainer = tiny_trainer(tmp_path, [[1, 2, 3, 0]] * 8, **steps)
    save = trainer._save_checkpoint

    def spend(seconds: float):
        clock.now += seconds

    trainer.model.register_forward_pre_hook(lambda module, args: spend(0.5))
    trainer._save_checkpoint = lambda *args: (spend(1000), save(*args))
    trainer.add_callback(Throughput(trainer, mfu=lambda rate, row_tokens: seen.append((rate, row_tokens)) or 0.25))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["perf/tokens_per_second_per_gpu"] for entry in logged] == [6.0, 6.0]  # 3 tokens in half a second
    assert [entry["perf/packing_efficiency"] for entry in logged] == [0.75, 0.75]
    assert seen == [(6.0, 3.0)] * 2 and logged[0]["perf/mfu"] == 0.25


def test_the_padding_of_a_pack_is_no_row(tmp_path):
    """Axolotl numbers the padding's positions from 0 too, as if it were another row."""
    args = TrainingArguments(tmp_path, use_cpu=True)
    trainer = SimpleNamespace(processing_class=None, args=args, training_step=lambda model, inputs: 1, log=None)
    counter = Throughput(trainer, mfu=None)
    pack = {"attention_mask": [1, 1, 1, 2, 2, 0, 0, 0], "position_ids": [0, 1, 2, 0, 1, 0, 1, 2], "input_ids": [1] * 8}
    trainer.training_step(None, {name: torch.tensor([row]) for name, row in pack.items()})
    assert counter.counts.tolist() == [5, 8, 2]  # tokens, positions, rows


def cfg(name: str, **changes) -> DictDefault:
    path = ROOT / f"recipes/{name}.yml"
    return DictDefault(read(path) | {"axolotl_config_path": str(path), **changes})


@pytest.mark.parametrize("name", ["8b_sft", "405b_sft"])
def test_at_the_papers_speed_it_is_the_mfu_that_the_plan_takes_from_the_paper(name):
    paper = ROWS[name]
    rate = RATES.paper_tokens * RATES.paper_epochs / (paper.gpu_hours * 3600)
    assert mfu_of(cfg(name))(rate, RATES.row_tokens) == pytest.approx(paper_hours(PUBLISHED[paper.base])[1])


@pytest.mark.parametrize(
    ("changes", "why"), [({"hardware": None}, "gpu: unknown is unknown"), ({"base_model": "mistral"}, "mistral")]
)
def test_without_a_peak_there_is_no_mfu_and_the_log_says_why(changes, why, caplog, tmp_path, monkeypatch):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral/config.json").write_text('{"model_type": "mistral"}')
    monkeypatch.chdir(tmp_path)
    assert mfu_of(cfg("8b_sft", **changes)) is None
    assert "perf/mfu is left out" in caplog.text and why in caplog.text


@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_all_attempts_are_one_run_of_wandb_whose_curve_goes_on(phase, request):
    """It is named by what it is, and holds no secret."""
    stopped = request.getfixturevalue(f"stopped_{phase}")
    offline = wandb_runs(stopped.wandb_dir)
    assert len(offline) == {"sft": 3, "dpo": 2}[phase]  # the attempt that is killed has no tracker
    commit = offline[0].name.split()[-1]
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", commit)
    for one in offline:
        assert one.id == (stopped.last.folder / RUN_ID).read_text()
        assert one.ended  # wrote what it held, and closed the file
        assert (one.project, one.group, one.job_type) == ("hermes3", f"tiny_{phase}", phase)
        assert one.name == f"tiny_{phase} seed 42 {commit}"
        assert set(one.tags) == {"tiny", phase, "seed-42", commit}
        assert b"tiny_" in one.raw and SECRET.encode() not in one.raw
    points = [point for one in offline for point in one.history if "train/loss" in point]
    losses = dict(enumerate(stopped.through.losses(), 1))
    untracked = range(EPOCH + 1, HALF - 4) if phase == "sft" else ()
    assert [point["train/global_step"] for point in points] == [step for step in losses if step not in untracked]
    assert all(point["train/loss"] == losses[point["train/global_step"]] for point in points)


def test_a_run_that_does_not_resume_gets_an_id_of_its_own(tmp_path, monkeypatch):
    def named(rank: int = 0, **keys) -> tuple[str | None, str | None]:
        trainer = SimpleNamespace(args=SimpleNamespace(run_name=None), is_world_process_zero=lambda: rank == 0)
        with mock.patch.dict(os.environ):
            name_run(DictDefault({"wandb_name": "8b_sft", "seed": 1, "output_dir": str(tmp_path)} | keys), trainer)
            return trainer.args.run_name, os.environ.get("WANDB_RUN_ID")

    first = named(auto_resume_from_checkpoints=True)
    assert first[0].startswith("8b_sft seed 1 ")
    assert named(auto_resume_from_checkpoints=True) == first != named(auto_resume_from_checkpoints=False)
    assert named(rank=1) == (None, None)  # at 128 ranks it would be 128 looks of git at every file
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert named()[0] == f"8b_sft seed 1 {version('hermes3-recipes')}"
