"""Restart points beside the epochs' checkpoints, in transformers' own trainer."""

import contextlib
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hermes3.train.checkpoints import RESTART_POINT, newest_complete
from hermes3.train.saving import RestartPoints, mark_complete


class Stop(TrainerCallback):
    """Ends the run like a crash, and notes what was on disk after each save."""

    def __init__(self, at: int | None):
        self.at, self.seen = at, []

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(checkpoints(Path(args.output_dir)))

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def run(folder: Path, steps: int | None, stop: int | None = None, resume: bool = False, also=(), broken=()) -> Stop:
    """Three epochs of five steps. `broken`: steps whose optimizer cannot be saved, which Axolotl only logs."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    args = TrainingArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=1, save_strategy="epoch", save_total_limit=8,
        use_cpu=True, report_to=[], disable_tqdm=True, seed=42,
    )  # fmt: skip
    rows = [{"input_ids": torch.tensor([i, 1, 2]), "labels": torch.tensor([i, 1, 2])} for i in range(5)]
    watch = Stop(stop)
    callbacks = [*([RestartPoints(steps)] if steps else []), *also, watch]
    trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=rows, callbacks=callbacks)
    save = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = lambda out: None if trainer.state.global_step in broken else save(out)
    mark_complete(trainer)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=resume or None)
    return watch


def test_every_epoch_is_kept_and_one_restart_point_at_most(tmp_path):
    seen = run(tmp_path, steps=2).seen
    # 5, 10 and 15 end an epoch; at 10 the restart point is the epoch's own checkpoint, and saved once
    assert seen == [[2], [4], [5], [5, 6], [5, 8], [5, 10], [5, 10, 12], [5, 10, 14], [5, 10, 15]]
    assert not list(tmp_path.rglob(RESTART_POINT))


def test_a_run_that_died_goes_on_from_its_restart_point(tmp_path):
    run(tmp_path, steps=2, stop=9)
    assert checkpoints(tmp_path) == [5, 8]
    again = run(tmp_path, steps=2, resume=True)
    assert again.seen[0] == [5, 10]  # it went on at 8, which is gone once the next is whole
    assert checkpoints(tmp_path) == [5, 10, 15]


@pytest.mark.parametrize("event", ["on_save", "on_epoch_end"])
def test_a_run_that_died_where_a_restart_point_becomes_an_epochs_checkpoint_keeps_it(tmp_path, event):
    """Step 10 ends an epoch and is a restart point: it is saved as such, and must not go for it."""

    def die(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise KeyboardInterrupt

    run(tmp_path, steps=2, also=[type("Die", (TrainerCallback,), {event: die})()])
    assert checkpoints(tmp_path) == [5, 10]
    run(tmp_path, steps=2, resume=True)
    assert checkpoints(tmp_path) == [5, 10, 15]


def test_a_restart_point_stays_until_the_next_checkpoint_is_complete(tmp_path):
    run(tmp_path, steps=2, stop=9, broken={8})
    assert checkpoints(tmp_path) == [5, 6, 8]
    assert newest_complete(tmp_path).name == "checkpoint-6"


def test_restart_points_that_are_not_complete_go_with_the_first_checkpoint_that_is(tmp_path):
    assert run(tmp_path, steps=2, broken={6, 8}).seen[3:6] == [[5, 6], [5, 6, 8], [5, 10]]


def test_without_it_a_run_that_died_has_lost_its_epoch(tmp_path):
    run(tmp_path, steps=None, stop=9)
    assert checkpoints(tmp_path) == [5]
