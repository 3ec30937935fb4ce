"""A run that is told to stop, and goes on, is the run that was never told: bit for bit, through Axolotl on CPUs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stopped import EPOCH

from hermes3.train.checkpoints import epochs_of

STOPPED = 75


def same(one: Path, other: Path) -> bool:
    one, other = load_file(one), load_file(other)
    return bool(one) and all(torch.equal(one[name], other[name]) for name in one | other)


def checkpoints(seen: list[str]) -> list[str]:
    return [name for name in seen if name.startswith("checkpoint")]


def test_every_rank_leaves_at_the_end_of_a_step_which_is_saved(stopped_sft):
    first, at_epoch, at_end = stopped_sft.attempts
    assert first.codes == at_epoch.codes == [STOPPED, STOPPED], first.logs[0][-2000:]
    assert checkpoints(stopped_sft.seen[0]) == ["checkpoint-3"]
    # the last step of an epoch: its checkpoint is the epoch's, and no restart point
    assert checkpoints(stopped_sft.seen[1]) == [f"checkpoint-{EPOCH}"]
    # the last step of all: there is nothing left to go on with
    assert at_end.codes == [0, 0], at_end.logs[0][-2000:]
    assert epochs_of(at_end.folder) == {n: at_end.folder / f"checkpoint-{n * EPOCH}" for n in (1, 2)}


def test_a_model_is_only_final_once_it_is(stopped_sft, stopped_dpo):
    assert ["model.safetensors" in seen for seen in stopped_sft.seen] == [False, False, True]
    assert ["adapter_model.safetensors" in seen for seen in stopped_dpo.seen] == [False, True]


@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_it_goes_on_as_if_it_had_never_stopped(phase, request):
    stopped = request.getfixturevalue(f"stopped_{phase}")
    through, last = stopped.through, stopped.last
    assert set(through.codes) == set(last.codes) == {0}, through.logs[0][-2000:] + last.logs[0][-2000:]
    assert len(last.losses()) == (2 * EPOCH if phase == "sft" else EPOCH)
    assert last.steps() == through.steps()
    assert last.losses() == through.losses()
    name = "model.safetensors" if phase == "sft" else "adapter_model.safetensors"
    assert same(last.folder / name, through.folder / name)
