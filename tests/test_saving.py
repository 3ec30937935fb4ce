"""What makes a checkpoint complete, restart points between the epochs, and a run that is told to stop and goes on."""

import contextlib
import errno
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import transformers.trainer
from axolotl.utils.dict import DictDefault
from ranks import EPOCH, PAIRS
from safetensors.torch import load_file
from tiny_trainer import tiny_trainer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hermes3.files import UserError
from hermes3.train import saving
from hermes3.train.checkpoints import COMPLETE, RESTART_POINT, UNIVERSAL, epochs_of, newest_complete, step_of
from hermes3.train.saving import STOPPED, Saving, last_checkpoint


def write(run: Path, step: int, epoch: float | None) -> Path:
    """A checkpoint of a run; epoch None: a save that was broken off."""
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if epoch is not None:
        (checkpoint / COMPLETE).write_text(json.dumps({"step": step, "epoch": epoch}))
    return checkpoint


def test_a_run_resumes_from_the_newest_complete_checkpoint_unless_told_otherwise(tmp_path, caplog):
    def resumed(update=True, **keys):
        return last_checkpoint(DictDefault({"output_dir": str(tmp_path), **keys}), update)

    source = importlib.util.find_spec("axolotl.utils.train")
    source.loader.exec_module(axolotls := importlib.util.module_from_spec(source))  # as without our plugin
    half = write(tmp_path, 110, None)
    assert axolotls.determine_last_checkpoint(DictDefault({"output_dir": tmp_path}), update=False) == str(half)
    assert resumed(auto_resume_from_checkpoints=True) is None
    assert f"{half} has no {COMPLETE}" in caplog.text and half.exists()
    write(tmp_path, 90, 0.9)  # before 100 by number, after it by name
    newest = str(write(tmp_path, 100, 1.0))
    (tmp_path / "checkpoint-best").mkdir()
    assert resumed(auto_resume_from_checkpoints=True) == newest == resumed(update=False)
    assert resumed(auto_resume_from_checkpoints=True, resume_from_checkpoint="elsewhere") == "elsewhere"
    assert resumed() is None


def saving_trainer(folder: Path, restart_steps: int | None = None, rows: int = 1, **args) -> Trainer:
    trainer = tiny_trainer(folder, [[i, 1, 2] for i in range(rows)], **args)
    trainer.add_callback(Saving(trainer, restart_steps))
    return trainer


ONE_STEP = {"max_steps": 1, "save_steps": 1}


def test_a_save_over_a_complete_checkpoint_makes_it_incomplete_until_it_ends(tmp_path):
    saving_trainer(tmp_path, **ONE_STEP).train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-1"
    mark = json.loads((tmp_path / "checkpoint-1" / COMPLETE).read_text())
    assert (mark["step"], mark["epoch"]) == (1, 1.0) and {"optimizer.pt", "model.safetensors"} < mark["files"].keys()
    again = saving_trainer(tmp_path, **ONE_STEP, learning_rate=1.0)
    with mock.patch.object(again, "_save_rng_state", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        again.train()
    assert newest_complete(tmp_path) is None
    again.train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-1"


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    saving_trainer(folder, max_steps=2, save_steps=1).train()
    return folder


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth", "trainer_state.json", COMPLETE])
@pytest.mark.parametrize("left", [b"", None, bytes], ids=["empty", "gone", "zeros"])
def test_a_checkpoint_that_lost_a_file_is_passed_over_aloud(two_saves, tmp_path, name, left, caplog):
    """Its node lost power: what the file system had not yet got is cut off, or zeros. An older one is whole."""
    run = shutil.copytree(two_saves, tmp_path / "run")
    file = run / "checkpoint-2" / name
    size = file.stat().st_size
    file.unlink() if left is None else file.write_bytes(bytes(size) if left is bytes else left)
    cfg = DictDefault({"output_dir": str(run), "auto_resume_from_checkpoints": True})
    assert last_checkpoint(cfg) == str(run / "checkpoint-1")
    assert name in caplog.text and "checkpoint-2" in caplog.text


@pytest.mark.parametrize(("number", "lost"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_file_that_does_not_reach_the_disk_fails_the_save(tmp_path, monkeypatch, number, lost):
    def fsync(descriptor):
        raise OSError(number, "of the disk")

    monkeypatch.setattr(saving.os, "fsync", fsync)
    with pytest.raises(OSError, match="of the disk") if lost else contextlib.nullcontext():
        saving_trainer(tmp_path, **ONE_STEP).train()
    assert (newest_complete(tmp_path) is None) == lost


@pytest.mark.parametrize("save_only_model", [False, True])
def test_a_checkpoint_whose_optimizer_was_not_saved_is_incomplete(tmp_path, save_only_model, caplog):
    """Axolotl logs such a failure and goes on; `save_only_model` asks for no optimizer."""
    trainer = saving_trainer(tmp_path, **ONE_STEP, save_only_model=save_only_model)
    trainer._save_optimizer_and_scheduler = lambda folder: None
    trainer.train()
    assert bool(newest_complete(tmp_path)) == save_only_model
    assert ("its optimizer was not saved" in caplog.text) != save_only_model


def test_epochs_are_told_from_restart_points_and_broken_off_saves(tmp_path):
    with pytest.raises(ValueError, match="save_strategy: epoch"):
        epochs_of(tmp_path)
    first, second = write(tmp_path, 12, 1.0), write(tmp_path, 23, 1.917)  # packed a batch short of 24
    write(tmp_path, 18, 1.5)
    (write(tmp_path, 24, 2.0) / RESTART_POINT).touch()
    write(tmp_path, 1, 0.01)
    write(tmp_path, 36, None)
    assert epochs_of(tmp_path) == {1: first, 2: second}


class Note(TrainerCallback):
    """What is on disk after each save; ends the run as step `stop` begins, like a crash."""

    def __init__(self, stop: int | None):
        self.seen, self.stop = [], stop

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(steps_in(Path(args.output_dir)))

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.stop:
            raise KeyboardInterrupt


def steps_in(folder: Path) -> list[int]:
    return sorted(map(step_of, folder.glob("checkpoint-*")))


def run(folder: Path, steps: int | None = 2, stop: int | None = None, resume=None, broken=()) -> list[list[int]]:
    """What is on disk after each save of three epochs of five steps. `broken`: steps whose optimizer is not saved."""
    epochs = {"num_train_epochs": 3, "save_strategy": "epoch", "save_total_limit": 8}
    trainer, note = saving_trainer(folder, steps, rows=5, **epochs), Note(stop)
    save = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = lambda out: None if trainer.state.global_step in broken else save(out)
    trainer.add_callback(note)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=resume)
    return note.seen


def test_every_epoch_is_kept_and_one_restart_point_at_most(tmp_path):
    # 5, 10 and 15 end an epoch; at 10 the restart point is the epoch's own checkpoint, and saved once
    assert run(tmp_path) == [[2], [4], [5], [5, 6], [5, 8], [5, 10], [5, 10, 12], [5, 10, 14], [5, 10, 15]]
    assert not list(tmp_path.rglob(RESTART_POINT))


def test_a_run_that_died_goes_on_from_its_restart_point_and_has_lost_its_epoch_without(tmp_path):
    run(tmp_path, steps=None, stop=9)
    assert steps_in(tmp_path) == [5]
    run(tmp_path, stop=9, resume=True)
    assert steps_in(tmp_path) == [5, 8]
    assert run(tmp_path, resume=True)[0] == [5, 10]  # it went on at 8, which is gone once the next is whole
    assert steps_in(tmp_path) == [5, 10, 15]


def test_a_restart_point_stays_until_the_next_checkpoint_is_complete(tmp_path):
    assert run(tmp_path, broken={6, 8})[3:6] == [[5, 6], [5, 6, 8], [5, 10]]


def test_an_epoch_that_came_out_a_step_short_keeps_its_restart_point(tmp_path):
    """As its checkpoint: it is not saved twice."""
    batches = mock.MagicMock()
    batches.__len__.return_value, batches.__iter__.return_value = 12, iter([[i] for i in range(11)])
    trainer = saving_trainer(tmp_path, 11, rows=12, num_train_epochs=1, save_strategy="epoch")
    loader = DataLoader(trainer.train_dataset, batch_sampler=batches, collate_fn=trainer.data_collator)
    trainer.get_train_dataloader = lambda: loader
    trainer.add_callback(note := Note(None))
    trainer.train()
    assert note.seen == [[11]] and epochs_of(tmp_path) == {1: tmp_path / "checkpoint-11"}


def test_no_run_goes_on_unconverted_or_with_another_global_batch(tmp_path, monkeypatch):
    engine = SimpleNamespace(dp_world_size=2, global_samples=32, global_steps=4, train_batch_size=lambda: 16)
    engine._config, engine.optimizer = SimpleNamespace(), SimpleNamespace(optimizer=torch.optim.Adam([torch.ones(1)]))
    for rank in range(4):
        (tmp_path / "global_step4").mkdir(exist_ok=True)
        (tmp_path / f"global_step4/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    monkeypatch.setattr(transformers.trainer, "deepspeed_load_checkpoint", lambda *args: None)
    saving.load_resized()
    with pytest.raises(UserError, match="4 ranks saved it, and 2 are to go on; run `hermes3 resize"):
        transformers.trainer.deepspeed_load_checkpoint(engine, str(tmp_path))
    (tmp_path / UNIVERSAL).mkdir()
    with pytest.raises(UserError, match="its global batch was 8; set gradient_accumulation_steps"):
        transformers.trainer.deepspeed_load_checkpoint(engine, str(tmp_path))


# Told to stop: through Axolotl on CPUs


def test_every_rank_leaves_at_the_end_of_a_step_which_is_saved(stopped_sft):
    first, at_epoch, _, at_end = stopped_sft.attempts
    assert first.codes == at_epoch.codes == [STOPPED, STOPPED], first.logs[0][-2000:]
    # the last step of an epoch: its checkpoint is the epoch's, and no restart point
    assert stopped_sft.saved[:2] == [["checkpoint-3"], [f"checkpoint-{EPOCH}"]]
    # the last step of all: there is nothing left to go on with
    assert at_end.codes == [0, 0], at_end.logs[0][-2000:]
    assert epochs_of(at_end.folder) == {n: at_end.folder / f"checkpoint-{n * EPOCH}" for n in (1, 2)}
    assert stopped_sft.final == [False, False, False, True]  # nobody takes what was stopped for the model


def test_dpo_goes_on_as_if_it_had_never_stopped(stopped_dpo):
    """Bit for bit; SFT: test_distributed.py::test_a_killed_run_goes_on_where_it_was_saved."""
    through, last = stopped_dpo.through, stopped_dpo.last
    assert through.codes == last.codes == [0], through.logs[0][-2000:] + last.logs[0][-2000:]
    assert len(last.losses()) == PAIRS // 2
    assert (last.steps(), last.losses()) == (through.steps(), through.losses())
    one, other = (load_file(run.folder / "adapter_model.safetensors") for run in (last, through))
    assert one and all(torch.equal(one[name], other[name]) for name in one | other)
