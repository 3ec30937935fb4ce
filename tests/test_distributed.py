"""The distributed configurations train on two CPU ranks, through Axolotl: plain data parallel, ZeRO-3 and FSDP2."""

import json
import shutil
from functools import cache

import pytest
import torch
from ranks import EPOCH, HALF, ROOT, Run, sft_recipe, train
from transformers import AutoModelForCausalLM

from hermes3.model_folder import INDEX, check_model
from hermes3.recipe.read import read
from hermes3.train import checkpoints
from hermes3.train.checkpoints import COMPLETE, UNIVERSAL, consolidate, newest_complete, resize, whole_model

FP32 = (["torch.float32"], ["torch.float32"])  # weights, moments
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


def sharded(name: str, **fsdp) -> dict:
    """How a full-size recipe shards, computes and recomputes. `fsdp`: other values, for memory that only CUDA pins."""
    full = read(ROOT / f"recipes/{name}.yml")
    config = {"fsdp_config": full["fsdp_config"] | {"cpu_offload_pin_memory": False} | fsdp} if fsdp else {}
    return {key: full[key] for key in SHARDING if key in full} | config


BARE = {"plugins": ["ranks.OnCPU", "ranks.Recorder"]}  # without our plugin
EIGHT, SIX = {"max_steps": 8, "save_steps": 4}, {"max_steps": 6, "save_steps": 3, "bf16": True}
FULL, PARTS = (sharded("405b_sft_fsdp", final_state_dict_type=f"{form}_STATE_DICT") for form in ("FULL", "SHARDED"))
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "max_steps": 2, "save_steps": 2}
LORA |= {f"lora_{name}_kernel": False for name in ("mlp", "qkv", "o", "embedding")}  # they need CUDA
ADDED = json.loads((ROOT / sharded("8b_sft")["deepspeed"]).read_text())
MANY = {"processes": 1, "gradient_accumulation_steps": 24, "max_steps": 1, "save_strategy": "no", "max_grad_norm": 1e9}
RUNS = {
    "one rank": {"processes": 1, "save_strategy": "no"},
    "bare": {"save_steps": 14, "max_steps": 16, **BARE},  # it ends in its second epoch
    "bare, resumed": {"resume": ("bare", 14), "max_steps": 16, **BARE},
    "zero3": EIGHT | sharded("8b_sft") | {"save_steps": 2},
    "zero3, on one": EIGHT | sharded("8b_sft") | {"processes": 1, "resume": ("zero3", 4)},
    "zero3, on two": EIGHT | sharded("8b_sft") | {"resume": ("zero3, on one", 6)},
    "zero3, on one, bare": sharded("8b_sft") | BARE | {"processes": 1, "max_steps": 5, "resume": ("zero3", 4)},
    "fsdp2, on one": SIX | PARTS | {"processes": 1, "resume": ("fsdp2", 3)},
    "offloaded": EIGHT | sharded("405b_sft"),  # also, no rank gathers the whole model
    "offloaded, resumed": EIGHT | sharded("405b_sft") | {"resume": ("offloaded", 4)},
    "offloaded, bare": sharded("405b_sft") | {"max_steps": 1, "save_steps": 1, **BARE},
    "added in fp32": MANY | sharded("8b_sft"),
    "added in bf16": MANY | sharded("8b_sft") | {"deepspeed": {k: ADDED[k] for k in ADDED if k != "data_types"}},
    "data parallel": SIX,
    "data parallel, bare": SIX | BARE,
    "fsdp2": SIX | FULL,
    "fsdp2, resumed": SIX | PARTS | {"resume": ("fsdp2", 3)},  # its end is joined from shards, as the recipes have it
    "fsdp2, bare": SIX | FULL | BARE,
    "fsdp2, adapter": SIX | PARTS | LORA,
}


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """One of RUNS by its name: the demo's SFT with these values."""
    folder = tmp_path_factory.mktemp("distributed")

    @cache
    def run(name: str) -> Run:
        keys = {"save_strategy": "steps"} | RUNS[name]
        if config := keys.get("deepspeed"):  # with torch's Adam: DeepSpeed would compile its own, which takes minutes
            config = json.loads((ROOT / config).read_text()) if isinstance(config, str) else config
            keys["deepspeed"] = str(folder / f"{name}.json")
            extra = {"zero_force_ds_cpu_optimizer": False, "checkpoint": {"load_universal": "one, bare" in name}}
            (folder / f"{name}.json").write_text(json.dumps(config | extra))
        if resume := keys.pop("resume", None):
            checkpoint = run(resume[0]).folder / f"checkpoint-{resume[1]}"
            if name.startswith("zero3, on"):
                resize(checkpoint)
                shutil.copytree(checkpoint / UNIVERSAL, checkpoint, dirs_exist_ok=True)  # where DeepSpeed looks for it
            keys["resume_from_checkpoint"] = str(checkpoint)
        env = {"KEEP_MOMENTS": folder / name / "moments"} if name.startswith("added") else {}
        ended = train(sft_recipe(folder / name, base, **keys), keys.get("processes", 2), **env)
        assert set(ended.codes) == {0}, ended.logs[0][-3000:]
        return ended

    return run


@pytest.fixture(scope="module")
def two(stopped_sft) -> Run:
    return stopped_sft.through


def test_two_ranks_train_as_one_does(two, runs):
    """With `token_weighted_loss`, not without our plugin. Each epoch has packs of its own."""
    one, bare = runs("one rank"), runs("bare")
    assert len(two.losses()) == 2 * EPOCH and two.steps() == one.steps()
    assert two.losses() == pytest.approx(one.losses(), rel=ROUNDING)
    assert bare.steps()[0] == two.steps()[0] and bare.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)
    assert sum(two.losses()[EPOCH:]) < sum(two.losses()[:EPOCH])
    assert sorted(two.steps()[:EPOCH]) != sorted(two.steps()[EPOCH:])
    ours, theirs = two.weights(), one.weights()
    assert max((ours[name] - theirs[name]).abs().max() for name in theirs) < ROUNDING


def test_a_run_killed_as_it_saves_goes_on_from_the_save_before(stopped_sft, two):
    """In its second epoch, with the packs and to the weights of the run that was left alone."""
    killed, resumed = stopped_sft.attempts[-2:]
    assert -9 in killed.codes and 0 not in killed.codes
    half = resumed.folder / f"checkpoint-{HALF}"
    assert stopped_sft.saved[-2] == [f"checkpoint-{step}" for step in (EPOCH, HALF - 5, HALF)]
    assert f"{half} has no {COMPLETE}: a save that was broken off" in resumed.logs[0]
    assert f"resuming from {resumed.folder}/checkpoint-{HALF - 5}" in resumed.logs[0]
    assert newest_complete(resumed.folder) == resumed.folder / f"checkpoint-{2 * EPOCH}"
    assert stopped_sft.last.steps() == two.steps()[:HALF] + two.steps()[HALF - 5 :]
    ours, theirs = stopped_sft.last.weights(), two.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_without_our_plugin_a_run_resumed_in_its_second_epoch_sees_other_packs(runs):
    """When this fails transformers or accelerate has mended it, and RepackEveryEpoch can go."""
    steps = runs("bare, resumed").steps()
    assert len(steps) == 2 and steps != runs("bare").steps()[14:]


@pytest.mark.parametrize("name", ["zero3", "offloaded"])
def test_zero3_keeps_fp32_weights_and_moments_and_computes_in_bf16(name, runs, two):
    run = runs(name)
    assert run.dtypes() == FP32 and run.steps() == two.steps()[:8]
    assert run.losses() == pytest.approx(two.losses()[:8], rel=BF16)
    assert run.losses() != pytest.approx(two.losses()[:8], rel=ROUNDING)


@pytest.mark.parametrize(
    ("name", "step", "parts"),
    [("offloaded", 4, "global_step4/*optim_states.pt"), ("fsdp2", 3, "pytorch_model_fsdp_0/*.distcp")],
)
def test_a_sharded_checkpoint_goes_on_as_it_was(name, step, parts, runs):
    run, resumed = runs(name), runs(f"{name}, resumed")
    assert len(list(run.folder.glob(f"checkpoint-{step}/{parts}"))) == 2
    assert (resumed.steps(), resumed.losses()) == (run.steps()[step:], run.losses()[step:])


@pytest.mark.parametrize(("name", "step"), [("zero3, on one", 4), ("zero3, on two", 6), ("fsdp2, on one", 3)])
def test_a_run_goes_on_with_another_number_of_ranks(name, step, runs):
    """To the same rows at each step, but for the order in which sums are taken."""
    resumed, through = runs(name), runs(name.split(",")[0])
    assert resumed.steps() == through.steps()[step:]
    assert resumed.losses() == pytest.approx(through.losses()[step:], rel=2**-12)  # at 4 ranks 4.3e-5 was seen
    assert resumed.lines()[-1] == through.lines()[-1]  # step counters, weight decays, dtypes


def test_deepspeed_loads_one_decay_and_one_step_counter_for_all(runs):
    """When this fails DeepSpeed has mended it, and load_resized need not."""
    ours, bare = (runs(name).lines()[-1] for name in ("zero3", "zero3, on one, bare"))
    assert (ours["decays"], ours["counters"]) == ([0.01, 0.0], [8, 8])
    assert (bare["decays"], bare["counters"]) == ([0.01, 0.01], [6, 6])  # a step after four, counted by each group


@pytest.mark.parametrize(("name", "step"), [("zero3", 8), ("fsdp2", 6)])
def test_the_shards_hold_the_model_that_is_gathered(name, step, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SHARD_SIZE", "1MB")
    gathered = runs(name).weights()
    size = consolidate(runs(name).folder / f"checkpoint-{step}", tmp_path / "joined")
    assert size > sum(2 * tensor.numel() for tensor in gathered.values())
    assert len(list((tmp_path / "joined").glob("model-*.safetensors"))) > 2
    for folder in (tmp_path / "joined", *([runs("fsdp2, resumed").folder] if name == "fsdp2" else [])):
        check_model(folder)
        joined = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        assert all(torch.equal(joined[name], gathered[name].bfloat16()) for name in gathered | joined)
    assert "1 of 1 files" in runs("fsdp2, resumed").logs[0]  # Axolotl's merge at the end is ours


def test_what_is_no_whole_checkpoint_is_not_joined_and_what_is_once(runs, tmp_path, monkeypatch):
    run = runs("offloaded")
    assert not list(run.folder.rglob("*.safetensors"))
    checkpoint = shutil.copytree(run.folder / "checkpoint-4", tmp_path / "checkpoint-4")
    (checkpoint / INDEX).write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')
    assert whole_model(checkpoint, tmp_path / "out") == tmp_path / "out"
    check_model(tmp_path / "out")
    next(checkpoint.rglob("*rank_1*optim_states.pt")).unlink()
    assert whole_model(checkpoint, tmp_path / "out") == tmp_path / "out"  # as it was
    with pytest.raises(ValueError, match="checkpoint-4: not a whole checkpoint .* take the one before it"):
        consolidate(checkpoint, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_in_shards_is_written_once(runs):
    """When the second half fails transformers has mended it, and save_shards_once can go."""
    instead_of_weights = "Saving the full checkpoint instead"  # for each checkpoint, and when the run ends
    ours, bare = runs("offloaded"), runs("offloaded, bare")
    assert ours.logs[0].count(instead_of_weights) == 0
    assert bare.logs[0].count(instead_of_weights) >= 2  # a log may hold each line twice
    assert len(list(ours.folder.rglob("global_step*"))) == len(list(bare.folder.rglob("global_step*"))) == 2


def test_micro_batches_are_added_in_fp32(runs):
    """24 of the first step, on one rank, of whose sum Adam's first moment holds a tenth; see docs/traps.md."""
    assert ADDED["data_types"] == {"grad_accum_dtype": "fp32"}
    folders = [runs(f"added in {dtype}").folder for dtype in ("fp32", "bf16")]
    exact, coarse = (torch.load(folder.parent / "moments").double() for folder in folders)
    assert 3e-3 < (coarse - exact).norm() / exact.norm() < 8e-3  # 0.56 % seen


def test_bf16_trains_fp32_weights_and_computes_in_bf16(runs, two):
    """FSDP2 as plain data parallel, and an adapter under FSDP2."""
    fsdp2, data_parallel = runs("fsdp2"), runs("data parallel")
    assert fsdp2.steps() == data_parallel.steps()
    assert fsdp2.losses() == pytest.approx(data_parallel.losses(), rel=BF16)
    for run in fsdp2, data_parallel:
        assert run.losses()[0] == pytest.approx(two.losses()[0], rel=BF16)
        assert run.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)
    for run in fsdp2, data_parallel, runs("fsdp2, adapter"):
        assert run.dtypes() == FP32
        assert all(loss % 2**-5 for loss in run.losses())  # of 8 to 16 bf16 knows sixteenths; here a mean of two ranks


@pytest.mark.parametrize("name", ["fsdp2", "data parallel"])
def test_without_our_plugin_bf16_trains_bf16_weights(name, runs):
    """When this fails Axolotl has mended it, and keep_fp32 can go."""
    dtypes = runs(f"{name}, bare").dtypes()
    assert all("torch.bfloat16" in of for of in dtypes)  # all but norms and embeddings, unless sharded
