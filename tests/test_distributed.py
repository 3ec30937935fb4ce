"""The distributed configurations train on two CPU ranks, through Axolotl: plain data parallel, ZeRO-3 and FSDP2.

Two ranks take in one micro-batch what one rank takes in two (`gradient_accumulation_steps` 2), so that a run on either
is held to the other. A run takes 5 to 10 seconds.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import ranks
import torch
from ranks import Run, train
from safetensors.torch import load_file
from small_mix import SEQUENCE_LEN, write_mix, write_recipe
from transformers import AutoModelForCausalLM

from hermes3.model_folder import INDEX, check_model
from hermes3.recipe.read import read
from hermes3.train.checkpoints import COMPLETE, newest_complete, whole_model
from hermes3.train.consolidate import consolidate

ROOT = Path(__file__).parents[1]
OURS = ["hermes3.train.plugin.HermesPlugin", "ranks.Recorder"]
BARE = ["ranks.OnCPU", "ranks.Recorder"]
EPOCH = 12  # steps
SAVED = 16  # a checkpoint within the second epoch
ROUNDING = 1e-6  # fp32: the ranks' gradients are summed in another order than micro-batches'
BF16 = 2**-8  # relative, what rounding to bf16 may change
SHARDING = (
    "bf16",
    "deepspeed",
    "fsdp_version",
    "fsdp_config",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The server that forks the ranks starts with these variables."""
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT / "tests")):
        yield


@pytest.fixture(scope="module")
def mix(tmp_path_factory) -> Path:
    """60 rows in 24 packs in each epoch: of an odd number two ranks would leave one out, and one rank would not."""
    lengths = np.random.default_rng(2).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
    return write_mix(tmp_path_factory.mktemp("distributed") / "mix", lengths.tolist())


@pytest.fixture(scope="module")
def recipe(mix, base):
    """Write a recipe into a folder of the given name. `processes` as in `hardware`."""

    def write(name: str, processes: int = 2, plugins: list[str] = OURS, **changes) -> Path:
        changes = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 8, "warmup_steps": 2} | changes
        changes |= {"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": processes}, "plugins": plugins}
        changes |= {"gradient_accumulation_steps": 2 // processes, "token_weighted_loss": True}
        return write_recipe(mix.parent / name, mix, base, **changes)

    return write


def done(run: Run) -> Run:
    assert set(run.codes) == {0}, run.logs[0][-3000:]
    return run


def same_weights(one: Run, other: Run) -> bool:
    one, other = one.weights(), other.weights()
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.fixture(scope="module")
def two(recipe) -> Run:
    """Three epochs, launched as a user does."""
    path = recipe("two")
    command = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "-m", "axolotl.cli.train", path]
    with (path.parent / "launcher.log").open("wb") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    return done(ranks.result(path, [code, code]))


@pytest.fixture(scope="module")
def one(recipe) -> Run:
    return done(train(recipe("one", processes=1), 1))


@pytest.fixture(scope="module")
def bare(recipe) -> Run:
    """Without our plugin."""
    return done(train(recipe("bare", plugins=BARE)))


# Plain data parallel


def test_two_ranks_train_as_one_does(two, one):
    assert len(two.losses()) == 3 * EPOCH
    assert two.steps() == one.steps()
    assert two.losses() == pytest.approx(one.losses(), rel=ROUNDING)
    assert max(two.losses()[-EPOCH:]) < min(two.losses()[:EPOCH])
    one, two = one.weights(), two.weights()
    assert max((one[name] - two[name]).abs().max() for name in one) < ROUNDING


def test_each_epoch_has_packs_of_its_own_on_two_ranks(two):
    epochs = [two.steps()[start : start + EPOCH] for start in range(0, 3 * EPOCH, EPOCH)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_without_our_plugin_a_step_s_loss_is_the_mean_of_its_ranks_means(bare, two):
    """With `token_weighted_loss` it is the mean over the tokens of both, as on one rank."""
    assert bare.steps()[0] == two.steps()[0]
    assert bare.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)


def test_a_killed_run_goes_on_where_it_was_saved(two, recipe):
    path = recipe("killed", auto_resume_from_checkpoints=True)
    killed = train(path, KILL_AT=SAVED + 2)
    assert killed.codes == [-9, -9]
    assert killed.steps() == two.steps()[: SAVED + 2]
    resumed = done(train(path))
    assert resumed.steps()[SAVED + 2 :] == two.steps()[SAVED:]
    assert resumed.losses()[SAVED + 2 :] == two.losses()[SAVED:]
    assert same_weights(resumed, two)


def test_a_checkpoint_that_was_broken_off_is_passed_over(two, recipe):
    """It lacks one rank's random state, and nothing that transformers or Axolotl looks at."""
    path = recipe("broken-off", auto_resume_from_checkpoints=True)
    killed = train(path, KILL_SAVING=f"{SAVED} 1 _save_rng_state")
    assert -9 in killed.codes and 0 not in killed.codes
    half = killed.folder / f"checkpoint-{SAVED}"
    assert (half / "trainer_state.json").exists() and not (half / COMPLETE).exists()
    assert newest_complete(killed.folder) == killed.folder / f"checkpoint-{SAVED // 2}"
    resumed = done(train(path))
    assert f"{half} has no {COMPLETE}: a save that was broken off" in resumed.logs[0]
    assert resumed.steps()[SAVED:] == two.steps()[SAVED // 2 :]
    assert same_weights(resumed, two)
    assert newest_complete(killed.folder) == killed.folder / f"checkpoint-{3 * EPOCH}"


def test_without_our_plugin_a_checkpoint_that_was_broken_off_is_resumed_from(recipe):
    """It fails on it, at each restart anew. When Axolotl has mended that, hermes3/train/saving.py may shrink."""
    path = recipe("bare-broken-off", plugins=BARE, auto_resume_from_checkpoints=True)
    half = train(path, KILL_SAVING=f"{SAVED} 0 _save_optimizer_and_scheduler").folder / f"checkpoint-{SAVED}"
    resumed = train(path)
    assert resumed.codes == [1, 1]
    assert f"resume from checkpoint at {half}" in resumed.logs[0]
    assert f"FileNotFoundError: [Errno 2] No such file or directory: '{half}/trainer_state.json'" in resumed.logs[0]


def test_without_our_plugin_a_run_resumed_in_its_second_epoch_sees_other_packs(bare, two, recipe):
    """When this fails transformers or accelerate has mended it, and RepackEveryEpoch can go."""
    assert bare.steps() == two.steps()  # unless it resumes, each epoch is shuffled anew
    path = recipe("bare-resumed", plugins=BARE, resume_from_checkpoint=str(bare.folder / f"checkpoint-{SAVED}"))
    resumed = done(train(path))
    assert resumed.steps()[: 2 * EPOCH - SAVED] != bare.steps()[SAVED : 2 * EPOCH]


def test_another_number_of_processes_is_refused(recipe):
    refused = train(recipe("refused", processes=2), 1)
    assert refused.codes == [1]
    assert "the recipe is for 1 x 2 = 2 processes, this run has 1, and so another global batch" in refused.logs[0]


def sharding(name: str) -> dict:
    """How a full-size recipe shards, computes and recomputes."""
    full = read(ROOT / f"recipes/{name}.yml")
    return {key: full[key] for key in SHARDING if key in full}


# DeepSpeed ZeRO-3, by the JSON files of the full-size recipes


@pytest.fixture(scope="module")
def zero(recipe):
    """One epoch as recipe `like` shards it."""

    def run(name: str, like: str, processes: int = 2, **changes) -> Run:
        return done(train(recipe(name, processes, num_epochs=1, **sharding(like), **changes), processes))

    return run


@pytest.fixture(scope="module")
def zero3(zero) -> Run:
    return zero("zero3", "8b_sft")


@pytest.fixture(scope="module")
def offloaded(zero) -> Run:
    """Also, no rank gathers the whole model."""
    return zero("offloaded", "405b_sft")


def test_zero3_on_two_ranks_trains_as_on_one(zero3, zero):
    alone = zero("zero3-one", "8b_sft", processes=1)
    assert zero3.steps() == alone.steps()
    assert zero3.losses() == pytest.approx(alone.losses(), rel=1e-4)


@pytest.fixture(scope="module")
def in_fp32(recipe) -> Run:
    """The same epoch on one rank, without DeepSpeed."""
    return done(train(recipe("fp32", processes=1, num_epochs=1), 1))


@pytest.mark.parametrize("config", ["zero3", "offloaded"])
def test_zero3_keeps_fp32_weights_and_moments_and_computes_in_bf16(config, request, in_fp32):
    run = request.getfixturevalue(config)
    assert run.dtypes() == (["torch.float32"], ["torch.float32"])
    assert run.steps() == in_fp32.steps()
    assert run.losses() == pytest.approx(in_fp32.losses(), rel=BF16)
    assert run.losses() != pytest.approx(in_fp32.losses(), rel=ROUNDING)


@pytest.mark.parametrize(("config", "like"), [("zero3", "8b_sft"), ("offloaded", "405b_sft")])
def test_a_sharded_zero3_checkpoint_goes_on_as_it_was(config, like, zero, request):
    run = request.getfixturevalue(config)
    checkpoint = run.folder / "checkpoint-8"
    shards = sorted(path.name for path in checkpoint.glob("global_step8/*optim_states.pt"))
    assert len(shards) == 2
    resumed = zero(f"{config}-resumed", like, resume_from_checkpoint=str(checkpoint))
    assert resumed.steps() == run.steps()[8:]
    assert resumed.losses() == run.losses()[8:]


def test_the_shards_hold_the_model_that_is_gathered(zero3, offloaded, tmp_path):
    gathered = zero3.weights()
    assert {tensor.dtype for tensor in gathered.values()} == {torch.bfloat16}
    size = consolidate(zero3.folder / f"checkpoint-{EPOCH}", tmp_path / "joined", max_shard_size="1MB")
    assert size == sum(2 * tensor.numel() for tensor in gathered.values())
    assert len(list((tmp_path / "joined").glob("model-*.safetensors"))) > 2
    joined = AutoModelForCausalLM.from_pretrained(tmp_path / "joined", dtype="auto").state_dict()
    assert all(torch.equal(joined[name], gathered[name]) for name in gathered | joined)

    assert not list(offloaded.folder.rglob("*.safetensors"))
    checkpoint = shutil.copytree(offloaded.folder / "checkpoint-8", tmp_path / "checkpoint-8")
    (checkpoint / INDEX).write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')
    for _ in range(2):  # joined once
        assert whole_model(checkpoint, tmp_path / "offloaded") == tmp_path / "offloaded"
    check_model(tmp_path / "offloaded")
    assert load_file(tmp_path / "offloaded/model.safetensors").keys() == gathered.keys()


def test_what_is_no_whole_checkpoint_is_not_joined(offloaded, zero3, tmp_path):
    with pytest.raises(ValueError, match="neither file latest .* give a folder checkpoint-N"):
        consolidate(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="is there already"):
        consolidate(offloaded.folder / "checkpoint-8", tmp_path)
    shutil.copytree(offloaded.folder / "checkpoint-8", tmp_path / "checkpoint-8")
    next((tmp_path / "checkpoint-8").rglob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(ValueError, match="checkpoint-8: not a whole checkpoint .* take the one before it"):
        consolidate(tmp_path / "checkpoint-8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_shards_is_written_once(offloaded, zero):
    """When the second half fails transformers has mended it, and save_shards_once can go."""
    instead_of_weights = "Saving the full checkpoint instead"  # for each checkpoint, and when the run ends
    assert offloaded.logs[0].count(instead_of_weights) == 0
    assert len(list(offloaded.folder.rglob("global_step*"))) == 2
    bare = zero("bare-offloaded", "405b_sft", plugins=BARE)
    assert bare.logs[0].count(instead_of_weights) >= 3  # a log may hold each line twice


# FSDP2, and plain data parallel in bf16


@pytest.fixture(scope="module")
def bf16(recipe):
    """Six steps at 7e-6. `fsdp`: as 405b_sft_fsdp, but for fp32 weights at the end, and memory that only CUDA pins."""

    def run(name: str, fsdp: bool, processes: int = 2, final: str = "FULL_STATE_DICT", **changes) -> Run:
        values = {"bf16": True, "max_steps": 6, "save_steps": 3, "learning_rate": 7.0e-6, "lr_scheduler": "constant"}
        if fsdp:
            values |= sharding("405b_sft_fsdp")
            values["fsdp_config"] |= {"final_state_dict_type": final, "cpu_offload_pin_memory": False}
        return done(train(recipe(name, processes, **values | changes), processes))

    return run


@pytest.fixture(scope="module")
def fsdp2(bf16) -> Run:
    return bf16("fsdp2", fsdp=True)


def moved(run: Run, base: Path) -> float:
    """The share of the layers' matrices that training changed, of their elements to which 7e-6 is less than 1/1000."""
    before, after = load_file(base / "model.safetensors"), run.weights()
    names = [name for name in before if "proj" in name]
    before = torch.cat([before[name].flatten().bfloat16().float() for name in names])  # as Axolotl loads it
    after = torch.cat([after[name].flatten().float() for name in names])
    return (after != before)[before.abs() > 7e-3].float().mean().item()


def test_fsdp2_on_two_ranks_trains_as_on_one(fsdp2, bf16):
    alone = bf16("fsdp2-one", fsdp=True, processes=1)
    assert fsdp2.steps() == alone.steps()
    assert fsdp2.losses() == pytest.approx(alone.losses(), rel=3e-4)  # the ranks' gradients are summed in bf16


def test_a_sharded_fsdp2_checkpoint_goes_on_as_it_was(fsdp2, bf16):
    checkpoint = fsdp2.folder / "checkpoint-3"
    assert len(list(checkpoint.glob("pytorch_model_fsdp_0/*.distcp"))) == 2
    resumed = bf16("fsdp2-resumed", fsdp=True, resume_from_checkpoint=str(checkpoint))
    assert resumed.steps() == fsdp2.steps()[3:]
    assert resumed.losses() == fsdp2.losses()[3:]
    assert same_weights(resumed, fsdp2)


def test_fsdp2_shards_are_joined_for_each_checkpoint_and_at_the_end(fsdp2, bf16, tmp_path):
    run = bf16(
        "fsdp2-joined",
        fsdp=True,
        final=read(ROOT / "recipes/405b_sft_fsdp.yml")["fsdp_config"]["final_state_dict_type"],
    )
    for step in (3, 6):
        consolidate(run.folder / f"checkpoint-{step}", tmp_path / f"{step}", max_shard_size="1MB")
        check_model(tmp_path / f"{step}")
    check_model(run.folder)
    assert "1 of 1 files" in run.logs[0]  # Axolotl's merge at the end is ours
    by_hand, at_the_end = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        for folder in (tmp_path / "6", run.folder)
    )
    assert by_hand.keys() == at_the_end.keys()
    for name, tensor in fsdp2.weights().items():
        assert torch.equal(by_hand[name], tensor.bfloat16()) and torch.equal(at_the_end[name], tensor.bfloat16())


@pytest.mark.parametrize("fsdp", [True, False])
def test_bf16_trains_fp32_weights_and_computes_in_bf16(fsdp, request, bf16, two, base):
    run = request.getfixturevalue("fsdp2") if fsdp else bf16("bf16", fsdp)
    assert run.dtypes() == (["torch.float32"], ["torch.float32"])
    assert moved(run, base) > 0.9
    assert run.losses()[0] == pytest.approx(two.losses()[0], rel=BF16)
    assert run.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)
    assert all(loss % 2**-5 for loss in run.losses())  # of 8 to 16 bf16 knows sixteenths; here a mean of two ranks


@pytest.mark.parametrize("fsdp", [True, False])
def test_without_our_plugin_bf16_trains_bf16_weights(fsdp, bf16, base):
    """When this fails Axolotl has mended it, and keep_fp32 can go."""
    run = bf16(f"bare-{fsdp}", fsdp, plugins=BARE)
    assert all("torch.bfloat16" in dtypes for dtypes in run.dtypes())  # all but norms and embeddings, unless sharded
    assert moved(run, base) < 0.1
