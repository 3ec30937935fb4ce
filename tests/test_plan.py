"""The plan's known points, hardware, network, errors, and memory (`pytest -s` prints it beside what is measured)."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from small_mix import write_counts
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from bench.gpu_run import llama_config
from hermes3.cli import app
from hermes3.files import UserError
from hermes3.mix.pack import preview
from hermes3.plan.cost import INTERRUPTIONS_PER_GPU_HOUR, usual_mfu
from hermes3.plan.memory import FSDP2, HOST_SHARE, OVERHEAD, REPLICATED, SETTINGS, ZERO3, Setting, memory, runnable
from hermes3.plan.network import BUS, traffic
from hermes3.plan.plan import Plan, plan
from hermes3.plan.shapes import PUBLISHED, Work, read_config, work_of
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import gpu_of

RECIPES = [path.relative_to(ROOT) for path in sorted((ROOT / "recipes").rglob("*.yml"))]
CASES = yaml.safe_load((ROOT / "tests/plan.yml").read_text(encoding="utf-8"))
GROUPS = ("kept", "warnings", "refused", "read", "files")
PARAMETERS = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}
EIGHT, SEVENTY, LARGEST = (PUBLISHED[f"meta-llama/Llama-3.1-{size}"] for size in PARAMETERS)
SMALL = replace(EIGHT, layers=2)
H100 = gpu_of("h100-80gb")
FULL, FSDP, ONE = Setting("ZeRO-3", ZERO3), Setting("FSDP2", FSDP2), Work(8192)
WEIGHTS = 2 * EIGHT.parameters


def edited(tmp_path: Path, recipe: str, **changes) -> Path:
    """A copy of a recipe with other values; None takes a key out."""
    values = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yml").read_text(encoding="utf-8")) | changes
    path = tmp_path / f"{recipe}_mine.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def full(recipe: str, **kwargs) -> Plan:
    """The plan of a shipped recipe on the paper's data: no mix of that name is built here."""
    return plan(Path(f"recipes/{recipe}.yml"), **kwargs)


def test_tied_embeddings_a_config_file_and_an_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    tied = replace(SMALL, hidden=256, vocab=1000, tied=True, name=str(tmp_path))
    with torch.device("meta"):
        model, small = (LlamaForCausalLM(llama_config(shape)) for shape in (tied, SMALL))
    model.config.save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == tied
    assert tied.parameters == sum(p.numel() for p in model.parameters())
    assert tied.layer == sum(p.numel() for p in model.model.layers[0].parameters())
    adapted = get_peft_model(small, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert SMALL.lora(32) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("recipe", CASES["paper"])
def test_the_paper_s_steps_and_the_mfu_behind_its_gpu_hours(recipe):
    """By hand, from the published sizes: 6 FLOPs per matrix parameter, 6 L h x 396 for attention to earlier tokens."""
    an_epoch, steps, gpu_hours, layers, width, mfu = CASES["paper"][recipe].values()
    planned, at_40 = full(recipe), full(recipe, mfu=0.4).cost
    assert (planned.schedule.steps_per_epoch[0], planned.schedule.steps) == (an_epoch, steps)
    multiplied = PARAMETERS[recipe.split("_")[0].upper()] - 128_256 * width - (2 * layers + 1) * width
    flops = (6 * multiplied + 6 * layers * width * 396) * 4 * 390e6
    assert planned.cost.paper_gpu_hours == gpu_hours
    assert planned.cost.paper_mfu == pytest.approx(flops / (gpu_hours * 3600 * 989.4e12), rel=1e-6)
    assert round(planned.cost.paper_mfu, 3) == mfu
    assert at_40.gpu_hours - at_40.host_gpu_hours == pytest.approx(flops / (0.4 * 3600 * 989.4e12), rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_shipped_recipe_fits_its_own_hardware(recipe):
    if recipe.stem.startswith("tiny") and not (ROOT / "outputs/tiny/sft/best/config.json").is_file():
        pytest.skip("the demo has not been run")
    planned = plan(recipe)
    assert planned.own.fits and planned.own.headroom > 0.05
    assert planned.nodes_to_run[planned.own.setting.name] <= planned.nodes


def test_a_mix_gives_the_steps(tmp_path):
    """Those of Axolotl's packer on the demo's mix, whichever folder it is in."""
    if not Path("mixes/tiny_sft/manifest.json").is_file():
        pytest.skip("the demo has not been run")
    shutil.copytree("mixes/tiny_sft", tmp_path / "mix", symlinks=True)
    packing = preview(tmp_path / "mix", Path("recipes/tiny_sft.yml"), validate(Path("recipes/tiny_sft.yml")))
    planned = full("tiny_sft", mix=tmp_path / "mix")
    assert (planned.schedule.steps, planned.schedule.steps_per_epoch) == (packing.steps, packing.steps_per_epoch)
    assert planned.schedule.tokens == pytest.approx(packing.tokens_per_step * packing.steps)
    assert not any("no mix" in warning for warning in planned.warnings)


def test_a_mix_of_few_rows_on_fewer_gpus_makes_one_smaller_step(tmp_path):
    mix = write_counts(tmp_path / "mix", [4000] * 10, [4000] * 10)  # five sequences of 8,192 tokens
    planned = full("8b_sft_1node", gpus=4, mix=mix)
    assert (planned.accumulation, planned.schedule.steps_per_epoch) == (12, [1] * 4)
    assert any("an epoch fills less than a batch of 48" in note for note in planned.warnings)


def test_pairs_of_a_mix_by_the_batch_are_dpo_s_steps(tmp_path):
    manifest = {"kind": "preference", "total": {"rows": 1_000, "tokens": 300_000}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    planned = full("8b_dpo", mix=tmp_path).schedule
    assert (planned.steps, planned.global_batch, planned.tokens, planned.row_tokens) == (16, 64, 300_000, 150)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"kind": "sft"}))
    with pytest.raises(UserError, match="holds no pairs"):
        full("8b_dpo", mix=tmp_path)


def test_other_hardware_keeps_the_batch_and_given_figures_act():
    own, fewer = full("8b_sft"), full("8b_sft", gpus=8)
    assert (fewer.accumulation, fewer.schedule.steps, fewer.nodes) == (6, own.schedule.steps, 1)
    assert fewer.cost.gpu_hours == pytest.approx(own.cost.gpu_hours)
    assert sum(fewer.own.gpu.values()) > sum(own.own.gpu.values())
    assert full("8b_sft", gpu="a100-80gb").cost.hours / own.cost.hours == pytest.approx(989.4 / 312)
    with pytest.raises(UserError, match="global batch of 48 cannot be made by 40 GPUs"):
        full("8b_sft", gpus=40)
    figures = full("8b_sft", mfu=0.5, price=3.0, bandwidth=1e9)
    assert figures.cost.mfu == 0.5 and figures.cost.usd == pytest.approx(3 * figures.cost.gpu_hours)
    assert figures.cost.gpu_hours == pytest.approx(147 * figures.cost.paper_mfu / 0.5, rel=1e-3)
    assert figures.checkpoints.weights_seconds == pytest.approx(2 * PARAMETERS["8B"] / 1e9)


def test_checkpoints_failures_and_their_interval():
    planned = full("70b_sft")
    saved, per_hour = planned.checkpoints, 419 / (54 * 24 * 16_384)
    assert planned.cost.interruption_chance == pytest.approx(1 - math.exp(-planned.cost.gpu_hours * per_hour))
    # no other interval loses less to saves and to repeated work
    between = 3600 / (planned.gpus * INTERRUPTIONS_PER_GPU_HOUR)
    intervals = {f: f * saved.interval_seconds for f in (0.8, 1, 1.25)}
    lost = {f: saved.state_seconds / seconds + seconds / 2 / between for f, seconds in intervals.items()}
    assert min(lost, key=lost.get) == 1 and lost[1] == pytest.approx(saved.lost_share)


def test_storage_is_of_all_that_is_kept_as_it_is_trained(tmp_path):
    parts, whole, adapter, fsdp = (full(name) for name in ("405b_sft", "70b_sft", "8b_dpo", "405b_sft_fsdp"))
    assert parts.checkpoints.weights_seconds is None and parts.checkpoints.kept == 5  # four epochs and a restart point
    assert parts.checkpoints.storage == fsdp.checkpoints.storage == 5 * 12 * PARAMETERS["405B"]
    assert whole.checkpoints.weights == 2 * PARAMETERS["70B"] and whole.own.setting.gathered == 2
    assert whole.checkpoints.storage == 5 * 14 * PARAMETERS["70B"] + 2 * PARAMETERS["70B"]
    assert adapter.checkpoints.storage < 0.01 * whole.checkpoints.storage
    for changes, weights, state in CASES["saved"]:
        saved = plan(edited(tmp_path, "8b_sft", **changes)).checkpoints
        assert (saved.weights, saved.state) == (weights * PARAMETERS["8B"], state * PARAMETERS["8B"])
    # the paper: 45 % of efficiency with parameters on the host
    assert fsdp.own.setting.name == "FSDP2, fp32 weights, all on the host"
    assert fsdp.cost.mfu == pytest.approx(0.55 * full("8b_sft_fsdp").cost.mfu)


@pytest.mark.parametrize("case", [case for group in GROUPS for case in CASES[group]], ids=str)
def test_what_a_changed_recipe_takes_or_why_it_cannot_be_planned(tmp_path, case):
    changes = case["changes"]
    if "text" in case:
        (tmp_path / case["file"]).write_text(case["text"])
        changes = {key: str(tmp_path / name) for key, name in changes.items()}
    path = edited(tmp_path, case.get("recipe", "8b_sft"), **changes)
    if "message" in case:
        with pytest.raises(UserError, match=case["message"]):
            plan(path)
        return
    planned = plan(path)
    assert planned.checkpoints.kept == case.get("kept", planned.checkpoints.kept)
    assert planned.shape.parameters == PARAMETERS[case.get("size", "8B" if "8b" in path.stem else "405B")]
    assert planned.own.setting.name == case.get("setting", planned.own.setting.name)
    if "warning" in case:
        assert any(case["warning"] in line for line in planned.warnings) != case.get("not", False)


def test_json_is_the_plan_and_text_names_its_parts():
    page = json.loads(CliRunner().invoke(app, ["plan", "recipes/405b_sft.yml", "--json"]).output)
    own = page["settings"][0]
    fits = {one["setting"]: one["fits"] for one in page["settings"]}
    assert (own["setting"], own["fits"], fits["ZeRO-3"]) == ("ZeRO-3, optimizer on the host", True, False)
    assert {"parameters", "layer inputs", "loss", "gathered weights"} <= set(own["gpu"])
    assert sum(own["gpu"].values()) == own["moments"][own["peak"]]
    text = " ".join(CliRunner().invoke(app, ["plan", "recipes/405b_sft.yml"]).output.split())
    names = ("405,853,388,800 parameters", "387 per epoch, 1,550 in all", "layer inputs", "note:", "(modelled)")
    assert all(words in text for words in (*names, "cheapest 8", "quickest 16", "the paper's 2,086"))


def test_zero_3_moves_three_times_the_model():
    """Rajbhandari et al. 2020, arXiv 1910.02054, section 7.2.2; with accumulation, in each micro-batch."""
    sent = traffic(EIGHT, ONE, FULL, H100, 6, 8, compute=1.0)
    assert sent.bytes_per_node == pytest.approx(3 * WEIGHTS * 5 / 6)
    assert sent.seconds == pytest.approx(3 * WEIGHTS * 47 / 48 / (BUS * 400e9)) == pytest.approx(0.131, abs=1e-3)
    assert traffic(EIGHT, replace(ONE, accumulation=6), FULL, H100, 6, 8, 6.0).bytes_per_node == 6 * sent.bytes_per_node


@pytest.mark.parametrize("case", CASES["hidden"], ids=str)
def test_what_was_hidden_is_hidden(case):
    shape, gpu, gbps, tokens, speed, kept = case.values()
    arithmetic = tokens / speed
    fast, slow = (
        traffic(replace(EIGHT, **shape), Work(tokens), FSDP, replace(gpu_of(gpu), network=rate), 16, 8, arithmetic)
        for rate in (gbps / 8 * 1e9, 12.5e9)
    )
    assert arithmetic / (arithmetic + fast.exposed) == pytest.approx(kept, abs=0.03)
    assert slow.seconds > 3 and slow.exposed > 0.5  # one adapter of 100 Gb/s per node rules


def test_copies_per_node_spare_a_slow_network():
    slow, arithmetic = replace(H100, network=12.5e9), 1.3
    settings = [FULL, replace(FULL, group=8), FSDP, replace(FSDP, group=8)]
    zero, hpz, fsdp, copies = (traffic(EIGHT, ONE, one, slow, 6, 8, arithmetic) for one in settings)
    assert zero.seconds == pytest.approx(fsdp.seconds)
    assert hpz.bytes_per_node == pytest.approx(2 / 3 * zero.bytes_per_node)
    assert copies.bytes_per_node == pytest.approx(2 * WEIGHTS * 5 / 6)  # gradients alone, there and back
    assert zero.exposed > hpz.exposed > 0 and zero.exposed > copies.exposed > 0
    adapter = traffic(EIGHT, Work(8192, rank=32), Setting("data parallel", REPLICATED), slow, 6, 8, arithmetic)
    assert adapter.exposed == 0
    late = traffic(EIGHT, ONE, replace(FULL, overlap=False), H100, 6, 8, 100.0)
    assert late.exposed == pytest.approx(late.seconds / 3)


def test_copies_cost_memory():
    def gpu(setting: Setting, work: Work = ONE) -> dict[str, int]:
        return memory(EIGHT, work, setting, H100, 6, 8).gpu

    whole, copies, zero, hpz = (gpu(one) for one in (FSDP, replace(FSDP, group=8), FULL, replace(FULL, group=8)))
    assert all(copies[part] == pytest.approx(6 * whole[part], rel=1e-6) for part in ("parameters", "optimizer"))
    assert hpz["weights, a copy per group"] == round(WEIGHTS / 8)
    assert all(hpz.get(part) == zero.get(part) for part in ("parameters", "gradients", "optimizer"))
    alone = memory(EIGHT, ONE, Setting("alone", REPLICATED), H100, 1, 1).gpu
    assert alone["parameters"] + alone["optimizer"] == 12 * EIGHT.parameters
    # accelerate lets FSDP2 reduce the last micro-batch alone, so that whole gradients wait
    assert gpu(FSDP, replace(ONE, accumulation=2))["gradients, not yet reduced"] == WEIGHTS


def test_offloaded_layer_inputs_and_selected_outputs():
    plain, offloaded = (memory(EIGHT, work, FSDP, H100, 6, 8) for work in (ONE, replace(ONE, offloaded=True)))
    one = ONE.layer_input(EIGHT)
    assert (plain.gpu["layer inputs"], offloaded.gpu["layer inputs"]) == (32 * one, 2 * one)
    assert offloaded.host["layer inputs"] == 8 * 32 * one
    recipe = {"sequence_len": 8192, "bf16": True, "gradient_checkpointing": True}
    work, _ = work_of(recipe | {"selective_checkpointing": True})
    assert work.saved == ("attention",) and work.selected(EIGHT) == 8192 * (2 * 4096 + 4 * 32)
    work, warnings = work_of(recipe | {"selective_checkpointing": {"save_modules": ["mlp.down_proj"]}})
    assert work.saved == ("attention", "down_proj") and warnings == []
    assert memory(EIGHT, work, FSDP, H100, 6, 8).gpu["selected outputs"] == 32 * work.selected(EIGHT)


def test_the_nearest_measured_mfu_is_taken_and_named(monkeypatch):
    same = {"gpus": 1, "hidden": 4096, "date": "2026-01-01"}
    runs = [run | same for run in CASES["measured"]]
    monkeypatch.setattr("hermes3.plan.cost.measurements", lambda: runs)
    mfu, source, warnings, _ = usual_mfu(EIGHT, ONE, FULL, H100)
    assert (mfu, source) == (0.3, "measured on 1 h100-80gb, 2026-01-01: 8b_sft, 30 layers, as shipped")
    assert len(warnings) == 1 and usual_mfu(replace(EIGHT, layers=30), ONE, FULL, H100)[2] == []
    assert usual_mfu(EIGHT, replace(ONE, rank=32), FULL, H100)[0] == 0.5
    assert usual_mfu(EIGHT, replace(ONE, rank=32, preference=True), FULL, H100)[0] == 0.6
    assert usual_mfu(EIGHT, ONE, FULL, gpu_of("cpu"))[:2] == (0.35, "assumed")
    assert usual_mfu(EIGHT, ONE, replace(FULL, offload="all"), H100)[0] == pytest.approx(0.3 * 0.55)


PAPER = Setting("the paper's FSDP, as assumed", FSDP2, offload="all", gathered=2)


def setting(engine: str, offload: str = "", fp32: bool = True) -> Setting:
    return next(one for one in SETTINGS if (one.engine, one.fp32, one.offload) == (engine, fp32, offload))


def compare(what: str, planned: float, measured: float, most: float = 0.10) -> None:
    error = planned / measured - 1
    print(f"{what:58} plan {planned / 1e6:10,.1f} MB, measured {measured / 1e6:10,.1f} MB, error {error:+.1%}")
    assert abs(error) <= most, what


LIGER, PLAIN = (Work(8192, liger_norm=on, liger_glu=on, fused_loss=on) for on in (True, False))


@pytest.mark.parametrize("case", CASES["tracked"], ids=lambda case: case["name"])
def test_peak_of_a_sharded_step(case):
    work = replace(LIGER if case["liger"] else PLAIN, checkpointing=case["checkpointing"])
    shape = replace({"8B": EIGHT, "70B": SEVENTY}[case["size"]], layers=case["layers"])
    name, measured = case["name"], case["measured"]
    planned = memory(shape, work, setting(FSDP2, fp32=case["fp32"]), H100, nodes=6, per_node=8)
    moments = {moment: size - OVERHEAD for moment, size in planned.moments.items()}
    compare(f"{name}: peak", max(moments.values()), max(measured[moment] for moment in moments), 0.02)
    if work.fused_loss:  # unfused, the logits' gradients come in the backward pass, and are the peak of both
        for moment in ("loss", "backward"):
            compare(f"{name}: {moment}", moments[moment], measured[moment])
    for part in ("parameters", "optimizer"):
        compare(f"{name}: {part}", planned.gpu[part], measured[part])


def test_activations_of_a_layer_with_an_adapter():
    """Bytes that autograd saved without sharding, weights apart: transformers 5.20.1, PEFT 0.21.2, Liger's Python."""
    for work, measured in (PLAIN, 2_102e6), (LIGER, 1_733e6):
        adapted = replace(work, checkpointing=False, rank=32, dropout=True)
        compare("LoRA, 1 layer: activations", adapted.layer_input(EIGHT) + adapted.layer(EIGHT), measured)


@pytest.mark.parametrize("shape", [EIGHT, SEVENTY, LARGEST], ids=lambda shape: shape.name[-4:].strip("-"))
@pytest.mark.parametrize("offload", ["", "optimizer", "all"])
def test_model_states_are_those_that_deepspeed_estimates(shape, offload):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    nodes, per_node = 16, 8
    sizes = shape.parameters, 1, per_node, nodes  # its largest layer is a buffer for gathering, planned apart
    where = offload != "", offload == "all"
    host, gpu, buffer = estimate_zero3_model_states_mem_needs(*sizes, *where, additional_buffer_factor=1)
    planned = memory(shape, LIGER, setting(ZERO3, offload), H100, nodes, per_node)
    states = {part: planned.gpu.get(part, 0) for part in ("parameters", "gradients", "optimizer")}
    at_step = planned.moments["optimizer step"] - OVERHEAD  # with the fp32 gradients of one group at a time
    if offload:
        assert sum(states.values()) == pytest.approx(gpu - buffer, rel=1e-6)
        # DeepSpeed 0.18 keeps bf16 gradients on the host beside the fp32 ones, 2 bytes that its estimator leaves out
        held = sum(size for part, size in planned.host.items() if part in ("parameters", "gradients", "optimizer"))
        assert held == pytest.approx(host + 2 * shape.parameters / nodes, rel=1e-6)
    else:  # it counts 4 bytes of fp32 gradients more, less 2 of bf16 ones: they are made 1e9 at a time
        assert sum(states.values()) == pytest.approx((gpu - buffer) * 16 / 18, rel=1e-6)
        assert sum(states.values()) < at_step <= sum(states.values()) + 6e9


@pytest.mark.parametrize(("fp32", "gathered", "host", "nodes"), CASES["all_on_the_host"])
def test_nodes_that_405b_needs_with_all_on_the_host(fp32, gathered, host, nodes):
    """The paper: at least 7. Under which assumptions the plan says so too, and what others give, by hand."""
    way = replace(PAPER, fp32=fp32, gathered=gathered)
    states = (16 if way.fp32 else 8) * LARGEST.parameters
    by_hand = -(-states // (HOST_SHARE * host - way.gathered * LARGEST.parameters))
    gpu = replace(H100, host_memory=host)
    assert by_hand == nodes and memory(LARGEST, LIGER, way, gpu, nodes, 8).fits
    fewer = memory(LARGEST, LIGER, way, gpu, nodes - 1, 8)
    assert sum(fewer.gpu.values()) <= fewer.gpu_room  # the host is what lacks


def test_a_host_holds_the_model_that_fsdp_reads_and_more_nodes_never_need_more_memory():
    planned = memory(LARGEST, LIGER, setting(FSDP2, "all"), H100, 16, 8)
    assert planned.host_peak == "reading"
    assert sum(planned.host.values()) == pytest.approx(2 * LARGEST.parameters * (1 + 1 / 16))
    for way in SETTINGS:
        sizes = [sum(memory(SEVENTY, LIGER, way, H100, nodes, 8).gpu.values()) for nodes in (1, 2, 4, 8, 16)]
        assert sizes == sorted(sizes, reverse=True)
    # with fewer nodes than make the batch at once, whole gradients wait
    for micro_batches, nodes in (128, [16]), (56, [7]):
        assert [held.nodes for held in runnable(LARGEST, LIGER, PAPER, H100, 8, micro_batches)] == nodes
