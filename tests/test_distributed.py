"""The distributed configurations train on two CPU ranks, through Axolotl: plain data parallel, ZeRO-3 and FSDP2."""

import json
import shutil

import pytest
import torch
from ranks import Run, train
from safetensors.torch import load_file
from stopped import EPOCH, HALF, ROOT, sft_recipe
from transformers import AutoModelForCausalLM

from hermes3.model_folder import INDEX, check_model
from hermes3.recipe.read import read
from hermes3.train import checkpoints
from hermes3.train.checkpoints import COMPLETE, consolidate, newest_complete, whole_model

BARE = ["ranks.OnCPU", "ranks.Recorder"]  # without our plugin
FP32 = (["torch.float32"], ["torch.float32"])  # weights, moments
ROUNDING = 1e-6  # fp32: the ranks' gradients are summed in another order than micro-batches'
BF16 = 2**-8  # relative, what rounding to bf16 may change
SHARDING = ("bf16", "deepspeed", "fsdp_version", "fsdp_config")
SHARDING += ("gradient_checkpointing", "gradient_checkpointing_kwargs")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Train the demo's SFT with other values. `deepspeed`: a file's name, or what it holds."""
    folder = tmp_path_factory.mktemp("distributed")

    def run(name: str, processes: int = 2, env: dict | None = None, **changes) -> Run:
        if config := changes.get(
            "deepspeed"
        ):  # with torch's Adam: DeepSpeed would compile its own, which takes minutes
            config = json.loads((ROOT / config).read_text()) if isinstance(config, str) else config
            changes["deepspeed"] = str(folder / f"{name}.json")
            (folder / f"{name}.json").write_text(json.dumps(config | {"zero_force_ds_cpu_optimizer": False}))
        recipe = sft_recipe(folder / name, base, processes, **{"save_strategy": "steps"} | changes)
        ended = train(recipe, processes, **(env or {}))
        assert set(ended.codes) == {0}, ended.logs[0][-3000:]
        return ended

    return run


# Plain data parallel


@pytest.fixture(scope="module")
def two(stopped_sft) -> Run:
    """Two epochs on two ranks."""
    return stopped_sft.through


@pytest.fixture(scope="module")
def bare(run) -> Run:
    """Without our plugin; it ends in its second epoch."""
    return run("bare", plugins=BARE, save_steps=14, max_steps=16)


def test_two_ranks_train_as_one_does(two, run):
    """Each epoch has packs of its own."""
    one = run("one", processes=1, save_strategy="no")
    assert len(two.losses()) == 2 * EPOCH and two.steps() == one.steps()
    assert two.losses() == pytest.approx(one.losses(), rel=ROUNDING)
    assert sum(two.losses()[EPOCH:]) < sum(two.losses()[:EPOCH])
    assert sorted(two.steps()[:EPOCH]) != sorted(two.steps()[EPOCH:])
    ours, theirs = two.weights(), one.weights()
    assert max((ours[name] - theirs[name]).abs().max() for name in theirs) < ROUNDING


def test_without_our_plugin_a_step_s_loss_is_the_mean_of_its_ranks_means(bare, two):
    """With `token_weighted_loss` it is the mean over the tokens of both, as on one rank."""
    assert bare.steps()[0] == two.steps()[0]
    assert bare.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)


def test_a_checkpoint_that_was_broken_off_is_passed_over(stopped_sft):
    """It lacks one rank's random state, and nothing that transformers or Axolotl looks at."""
    killed, resumed = stopped_sft.attempts[-2:]
    assert -9 in killed.codes and 0 not in killed.codes
    half = resumed.folder / f"checkpoint-{HALF}"
    assert stopped_sft.saved[-2] == [f"checkpoint-{step}" for step in (EPOCH, HALF - 5, HALF)]
    assert f"{half} has no {COMPLETE}: a save that was broken off" in resumed.logs[0]
    assert f"resuming from {resumed.folder}/checkpoint-{HALF - 5}" in resumed.logs[0]
    assert newest_complete(resumed.folder) == resumed.folder / f"checkpoint-{2 * EPOCH}"


def test_a_killed_run_goes_on_where_it_was_saved(stopped_sft, two):
    """In its second epoch, with the packs and to the weights of the run that was left alone."""
    steps = stopped_sft.last.steps()
    assert steps == two.steps()[:HALF] + two.steps()[HALF - 5 :]
    ours, theirs = stopped_sft.last.weights(), two.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_without_our_plugin_a_run_resumed_in_its_second_epoch_sees_other_packs(bare, run):
    """When this fails transformers or accelerate has mended it, and RepackEveryEpoch can go."""
    resumed = run("bare-resumed", plugins=BARE, resume_from_checkpoint=f"{bare.folder}/checkpoint-14", max_steps=16)
    assert len(resumed.steps()) == 2 and resumed.steps() != bare.steps()[14:]


def sharding(name: str) -> dict:
    """How a full-size recipe shards, computes and recomputes."""
    full = read(ROOT / f"recipes/{name}.yml")
    return {key: full[key] for key in SHARDING if key in full}


# DeepSpeed ZeRO-3, by the JSON files of the full-size recipes

ZERO = {"max_steps": 8, "save_steps": 4}


@pytest.fixture(scope="module")
def zero3(run) -> Run:
    return run("zero3", **ZERO, **sharding("8b_sft"))


@pytest.fixture(scope="module")
def offloaded(run) -> Run:
    """Also, no rank gathers the whole model."""
    return run("offloaded", **ZERO, **sharding("405b_sft"))


def test_zero3_keeps_fp32_weights_and_moments_and_computes_in_bf16(zero3, offloaded, two):
    for run in zero3, offloaded:
        assert run.dtypes() == FP32 and run.steps() == two.steps()[:8]
        assert run.losses() == pytest.approx(two.losses()[:8], rel=BF16)
        assert run.losses() != pytest.approx(two.losses()[:8], rel=ROUNDING)


def test_a_sharded_zero3_checkpoint_goes_on_as_it_was(offloaded, run):
    checkpoint = offloaded.folder / "checkpoint-4"
    assert len(list(checkpoint.glob("global_step4/*optim_states.pt"))) == 2
    resumed = run("offloaded-resumed", **ZERO, **sharding("405b_sft"), resume_from_checkpoint=str(checkpoint))
    assert (resumed.steps(), resumed.losses()) == (offloaded.steps()[4:], offloaded.losses()[4:])


def test_the_shards_hold_the_model_that_is_gathered(zero3, offloaded, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SHARD_SIZE", "1MB")
    gathered = zero3.weights()
    assert {tensor.dtype for tensor in gathered.values()} == {torch.bfloat16}
    assert consolidate(zero3.folder / "checkpoint-8", tmp_path / "joined") > sum(
        2 * w.numel() for w in gathered.values()
    )
    assert len(list((tmp_path / "joined").glob("model-*.safetensors"))) > 2
    joined = AutoModelForCausalLM.from_pretrained(tmp_path / "joined", dtype="auto").state_dict()
    assert all(torch.equal(joined[name], gathered[name]) for name in gathered | joined)

    assert not list(offloaded.folder.rglob("*.safetensors"))
    checkpoint = shutil.copytree(offloaded.folder / "checkpoint-4", tmp_path / "checkpoint-4")
    (checkpoint / INDEX).write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')
    for _ in range(2):  # joined once
        assert whole_model(checkpoint, tmp_path / "offloaded") == tmp_path / "offloaded"
        monkeypatch.setattr(checkpoints, "consolidate", None)
    check_model(tmp_path / "offloaded")


def test_what_is_no_whole_checkpoint_is_not_joined(offloaded, tmp_path):
    checkpoint = shutil.copytree(offloaded.folder / "checkpoint-4", tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="did not make it; name another folder"):
        consolidate(checkpoint, tmp_path)
    next(checkpoint.rglob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(ValueError, match="checkpoint-4: not a whole checkpoint .* take the one before it"):
        consolidate(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_shards_is_written_once(offloaded, run):
    """When the second half fails transformers has mended it, and save_shards_once can go."""
    instead_of_weights = "Saving the full checkpoint instead"  # for each checkpoint, and when the run ends
    assert offloaded.logs[0].count(instead_of_weights) == 0
    assert len(list(offloaded.folder.rglob("global_step*"))) == 2
    bare = run("bare-offloaded", plugins=BARE, max_steps=1, save_steps=1, **sharding("405b_sft"))
    assert bare.logs[0].count(instead_of_weights) >= 2  # a log may hold each line twice
    assert len(list(bare.folder.rglob("global_step*"))) == 2


def test_micro_batches_are_added_in_fp32(run, tmp_path):
    """24 of the first step, on one rank, of whose sum Adam's first moment holds a tenth; see docs/traps.md."""
    shipped = json.loads((ROOT / sharding("8b_sft")["deepspeed"]).read_text())
    assert shipped["data_types"] == {"grad_accum_dtype": "fp32"}
    keys = {
        "gradient_accumulation_steps": 24,
        "max_steps": 1,
        "save_strategy": "no",
        "max_grad_norm": 1e9,
        "bf16": True,
    }
    for name, config in ("fp32", shipped), ("bf16", {key: shipped[key] for key in shipped if key != "data_types"}):
        run(f"added-{name}", processes=1, deepspeed=config, env={"KEEP_MOMENTS": tmp_path / name}, **keys)
    exact, coarse = (torch.load(tmp_path / name).double() for name in ("fp32", "bf16"))
    assert 3e-3 < (coarse - exact).norm() / exact.norm() < 8e-3  # 0.56 % seen


# FSDP2, and plain data parallel in bf16


@pytest.fixture(scope="module")
def bf16(run):
    """Six steps at 7e-6. `fsdp`: as 405b_sft_fsdp, but for the form of the end, and memory that only CUDA pins."""

    def bf16(name: str, fsdp: bool, final: str = "FULL_STATE_DICT", **changes) -> Run:
        values = {"bf16": True, "max_steps": 6, "save_steps": 3, "learning_rate": 7.0e-6}
        if fsdp:
            values |= sharding("405b_sft_fsdp")
            values["fsdp_config"] |= {"final_state_dict_type": final, "cpu_offload_pin_memory": False}
        return run(name, **values | changes)

    return bf16


@pytest.fixture(scope="module")
def fsdp2(bf16) -> Run:
    return bf16("fsdp2", fsdp=True)


@pytest.fixture(scope="module")
def resumed(fsdp2, bf16) -> Run:
    """The second half of `fsdp2`, whose end is joined from shards, as the recipes have it."""
    final = read(ROOT / "recipes/405b_sft_fsdp.yml")["fsdp_config"]["final_state_dict_type"]
    return bf16("fsdp2-resumed", fsdp=True, final=final, resume_from_checkpoint=f"{fsdp2.folder}/checkpoint-3")


@pytest.fixture(scope="module")
def moved(base):
    """The share of the layers' matrices that training changed, of their elements to which 7e-6 is less than 1/1000."""
    before = load_file(base / "model.safetensors")
    names = [name for name in before if "proj" in name]
    before = torch.cat([before[name].flatten().bfloat16().float() for name in names])  # as Axolotl loads it

    def moved(run: Run) -> float:
        weights = run.weights()
        after = torch.cat([weights[name].flatten().float() for name in names])
        return (after != before)[before.abs() > 7e-3].float().mean().item()

    return moved


def test_a_sharded_fsdp2_checkpoint_goes_on_as_it_was(fsdp2, resumed):
    assert len(list(fsdp2.folder.glob("checkpoint-3/pytorch_model_fsdp_0/*.distcp"))) == 2
    assert (resumed.steps(), resumed.losses()) == (fsdp2.steps()[3:], fsdp2.losses()[3:])


def test_fsdp2_shards_are_joined_for_each_checkpoint_and_at_the_end(fsdp2, resumed, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SHARD_SIZE", "1MB")
    consolidate(fsdp2.folder / "checkpoint-6", tmp_path / "joined")
    assert "1 of 1 files" in resumed.logs[0]  # Axolotl's merge at the end is ours
    weights = fsdp2.weights()
    for folder in (tmp_path / "joined", resumed.folder):
        check_model(folder)
        joined = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        assert all(torch.equal(joined[name], weights[name].bfloat16()) for name in joined | weights)


def test_bf16_trains_fp32_weights_and_computes_in_bf16(fsdp2, bf16, two, moved):
    """FSDP2 as plain data parallel."""
    data_parallel = bf16("bf16", fsdp=False, save_steps=6)
    assert fsdp2.steps() == data_parallel.steps()
    assert fsdp2.losses() == pytest.approx(data_parallel.losses(), rel=BF16)
    for run in fsdp2, data_parallel:
        assert run.dtypes() == FP32 and moved(run) > 0.9
        assert run.losses()[0] == pytest.approx(two.losses()[0], rel=BF16)
        assert run.losses()[0] != pytest.approx(two.losses()[0], rel=ROUNDING)
        assert all(loss % 2**-5 for loss in run.losses())  # of 8 to 16 bf16 knows sixteenths; here a mean of two ranks


def test_an_adapter_and_its_loss_are_fp32_under_fsdp2(bf16):
    keys = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "max_steps": 2}
    keys |= {f"lora_{name}_kernel": False for name in ("mlp", "qkv", "o", "embedding")}  # they need CUDA
    run = bf16("lora", fsdp=True, final="SHARDED_STATE_DICT", save_steps=2, **keys)
    assert run.dtypes() == FP32
    assert all(loss % 2**-5 for loss in run.losses())


@pytest.mark.parametrize("fsdp", [True, False])
def test_without_our_plugin_bf16_trains_bf16_weights(fsdp, bf16, moved):
    """When this fails Axolotl has mended it, and keep_fp32 can go."""
    run = bf16(f"bare-{fsdp}", fsdp, plugins=BARE, save_steps=6)
    assert all("torch.bfloat16" in dtypes for dtypes in run.dtypes())  # all but norms and embeddings, unless sharded
    assert moved(run) < 0.1
