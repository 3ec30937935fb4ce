"""What makes a checkpoint complete, which are an epoch's, and a whole model from one."""

import json
from pathlib import Path

import pytest
import torch
from axolotl.utils.dict import DictDefault
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hermes3.train import saving
from hermes3.train.checkpoints import COMPLETE, RESTART_POINT, epochs_of, newest_complete, whole_model
from hermes3.train.saving import mark_complete


def write(run: Path, step: int, epoch: float | None, *files: str) -> Path:
    """A checkpoint of a run; epoch None: a save that was broken off."""
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for file in files:
        (checkpoint / file).touch()
    if epoch is not None:
        (checkpoint / COMPLETE).write_text(json.dumps({"step": step, "epoch": epoch}))
    return checkpoint


def trainer(folder: Path, **changes) -> Trainer:
    """One step on one row."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    args = TrainingArguments(
        folder, max_steps=1, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, **changes
    )
    row = {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}
    made = Trainer(LlamaForCausalLM(config), args, train_dataset=[row])
    mark_complete(made)
    return made


def test_the_newest_complete_checkpoint_is_by_number(tmp_path):
    assert newest_complete(tmp_path) is None
    write(tmp_path, 90, 0.9)
    newest = write(tmp_path, 100, 1.0)
    write(tmp_path, 110, None)
    write(tmp_path, 20, 0.2)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete(tmp_path) == newest


def test_a_run_resumes_from_it_unless_told_otherwise(tmp_path, caplog):
    def resumed(update=True, **keys):
        return saving._last_checkpoint(DictDefault({"output_dir": str(tmp_path), **keys}), update)

    half = write(tmp_path, 5, None)
    assert resumed(auto_resume_from_checkpoints=True) is None
    assert f"{half} has no {COMPLETE}" in caplog.text and half.exists()
    whole = str(write(tmp_path, 3, 0.3))
    assert resumed(auto_resume_from_checkpoints=True) == whole
    assert resumed(auto_resume_from_checkpoints=True, resume_from_checkpoint="elsewhere") == "elsewhere"
    assert resumed() is None
    assert resumed(update=False) == whole


def test_a_save_over_a_complete_checkpoint_makes_it_incomplete_until_it_ends(tmp_path):
    run = trainer(tmp_path)
    run.train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-1"
    assert json.loads((tmp_path / "checkpoint-1" / COMPLETE).read_text()) == {"step": 1, "epoch": 1.0}

    again = trainer(tmp_path)
    again._save_rng_state = lambda folder: 1 / 0
    with pytest.raises(ZeroDivisionError):
        again.train()
    assert newest_complete(tmp_path) is None


@pytest.mark.parametrize("save_only_model", [False, True])
def test_a_checkpoint_whose_optimizer_was_not_saved_is_incomplete(tmp_path, save_only_model, caplog):
    """Axolotl logs such a failure and goes on; `save_only_model` asks for no optimizer."""
    run = trainer(tmp_path, save_only_model=save_only_model)
    run._save_optimizer_and_scheduler = lambda folder: None
    run.train()
    assert bool(newest_complete(tmp_path)) == save_only_model
    assert ("its optimizer was not saved" in caplog.text) != save_only_model


def test_epochs_are_told_from_restart_points_and_broken_off_saves(tmp_path):
    with pytest.raises(ValueError, match="save_strategy: epoch"):
        epochs_of(tmp_path)
    first, second = write(tmp_path, 12, 1.0), write(tmp_path, 23, 1.917)  # packed a batch short of 24
    write(tmp_path, 18, 1.5)
    write(tmp_path, 24, 2.0, RESTART_POINT)
    write(tmp_path, 1, 0.01)
    write(tmp_path, 36, None)
    assert epochs_of(tmp_path) == {1: first, 2: second}


def test_a_whole_model_is_taken_as_it_is_and_an_adapter_refused(base, tmp_path):
    assert whole_model(base, tmp_path / "out") == base
    with pytest.raises(ValueError, match="LoRA adapter"):
        whole_model(write_adapter(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_adapter(folder: Path) -> Path:
    for name in ("config.json", "adapter_config.json"):
        (folder / name).write_text("{}")
    return folder


def test_nothing_heavy_is_imported_to_ask():
    """`hermes3` asks for a run's epochs; torch takes seconds."""
    import subprocess
    import sys

    code = "import sys, hermes3.train.checkpoints; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
