"""The plan's known points, its hardware, its network, its errors, and its speed of starting."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from bench.gpu_run import llama_config
from hermes3.cli import app
from hermes3.files import UserError
from hermes3.mix.pack import preview
from hermes3.plan.cost import INTERRUPTIONS_PER_GPU_HOUR, flops_per_token, usual_mfu
from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Setting, memory
from hermes3.plan.network import BUS, traffic
from hermes3.plan.plan import Plan, plan
from hermes3.plan.shapes import Shape, Work, published, read_config, work_of
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import gpu_of

RECIPES = [path.relative_to(ROOT) for path in sorted((ROOT / "recipes").rglob("*.yml"))]
CASES = yaml.safe_load((ROOT / "tests/plan.yml").read_text(encoding="utf-8"))
PUBLISHED = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}
EIGHT = published()["meta-llama/Llama-3.1-8B"]
SMALL = replace(EIGHT, layers=2)
LLAMA_2 = replace(EIGHT, name="Llama 2 7B", intermediate=11_008, kv_heads=32, vocab=32_000)
H100, A100 = gpu_of("h100-80gb"), gpu_of("a100-80gb")
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


def llama(shape: Shape) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(llama_config(shape))


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size):
    assert published()[f"meta-llama/Llama-3.1-{size}"].parameters == PUBLISHED[size]


def test_tied_embeddings_a_config_file_and_an_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    tied = replace(SMALL, hidden=256, vocab=1000, tied=True, name=str(tmp_path))
    model = llama(tied)
    model.config.save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == tied
    assert tied.parameters == sum(p.numel() for p in model.parameters())
    assert tied.layer == sum(p.numel() for p in model.model.layers[0].parameters())
    adapted = get_peft_model(llama(SMALL), LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert SMALL.lora(32) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("recipe", "an_epoch", "steps", "gpu_hours", "layers", "width", "mfu"),
    [
        ("8b_sft", 1_033, 4_133, 147, 32, 4_096, 0.135),
        ("70b_sft", 1_033, 4_133, 648, 80, 8_192, 0.283),
        ("405b_sft", 387, 1_550, 2_086, 126, 16_384, 0.510),
    ],
)
def test_the_paper_s_steps_and_the_mfu_behind_its_gpu_hours(recipe, an_epoch, steps, gpu_hours, layers, width, mfu):
    """By hand, from the published sizes: 6 FLOPs per matrix parameter, 6 L h x 396 for attention to earlier tokens."""
    planned, at_40 = full(recipe), full(recipe, mfu=0.4).cost
    assert (planned.schedule.steps_per_epoch[0], planned.schedule.steps) == (an_epoch, steps)
    multiplied = PUBLISHED[recipe.split("_")[0].upper()] - 128_256 * width - (2 * layers + 1) * width
    flops = (6 * multiplied + 6 * layers * width * 396) * 4 * 390e6
    assert planned.cost.paper_gpu_hours == gpu_hours
    assert planned.cost.paper_mfu == pytest.approx(flops / (gpu_hours * 3600 * 989.4e12), rel=1e-6)
    assert round(planned.cost.paper_mfu, 3) == mfu
    assert at_40.gpu_hours - at_40.host_gpu_hours == pytest.approx(flops / (0.4 * 3600 * 989.4e12), rel=1e-3)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = llama(SMALL), 64
    model.config._attn_implementation = "eager"
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    # its attention is over all pairs of tokens, not the causal half
    flops = flops_per_token(SMALL, Work(tokens), 2 * tokens) * tokens
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)


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
    assert figures.checkpoints.weights_seconds == pytest.approx(2 * PUBLISHED["8B"] / 1e9)
    assert not any("price" in warning or "storage" in warning for warning in figures.warnings)


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
    assert parts.checkpoints.storage == fsdp.checkpoints.storage == 5 * 12 * PUBLISHED["405B"]
    assert whole.checkpoints.weights == 2 * PUBLISHED["70B"] and whole.own.setting.gathered == 2
    assert whole.checkpoints.storage == 5 * 14 * PUBLISHED["70B"] + 2 * PUBLISHED["70B"]
    assert adapter.checkpoints.storage < 0.01 * whole.checkpoints.storage
    for changes, weights, state in (
        ({"deepspeed": None}, 4, 12),
        ({"deepspeed": None, "plugins": None}, 2, 6),
        ({"save_only_model": True}, 2, 2),
    ):
        saved = plan(edited(tmp_path, "8b_sft", **changes)).checkpoints
        assert (saved.weights, saved.state) == (weights * PUBLISHED["8B"], state * PUBLISHED["8B"])
    # the paper: 45 % of efficiency with parameters on the host
    assert fsdp.own.setting.name == "FSDP2, fp32 weights, all on the host"
    assert fsdp.cost.mfu == pytest.approx(0.55 * full("8b_sft_fsdp").cost.mfu)


@pytest.mark.parametrize("case", [*CASES["kept"], *CASES["warnings"], *CASES["refused"], *CASES["read"]], ids=str)
def test_what_a_changed_recipe_takes_or_why_it_cannot_be_planned(tmp_path, case):
    path = edited(tmp_path, case.get("recipe", "8b_sft"), **case["changes"])
    if "message" in case:
        with pytest.raises(UserError, match=case["message"]):
            plan(path)
        return
    planned = plan(path)
    assert planned.checkpoints.kept == case.get("kept", planned.checkpoints.kept)
    assert planned.shape.parameters == PUBLISHED[case.get("size", "8B" if "8b" in path.stem else "405B")]
    assert planned.own.setting.name == case.get("setting", planned.own.setting.name)
    if "warning" in case:
        assert any(case["warning"] in line for line in planned.warnings) != case.get("not", False)


@pytest.mark.parametrize("case", CASES["files"], ids=str)
def test_a_file_that_cannot_be_read_is_named(tmp_path, case):
    file = tmp_path / case["file"]
    file.write_text(case["text"].replace("{RECIPE}", Path("recipes/8b_sft.yml").read_text()))
    changes = {"base_model": str(tmp_path)} if file.name == "config.json" else {"deepspeed": str(file)}
    with pytest.raises(UserError, match=case["message"]):
        plan(file if file.suffix == ".yml" else edited(tmp_path, "8b_sft", **changes))


def test_json_is_the_plan_and_text_names_its_parts():
    page = json.loads(CliRunner().invoke(app, ["plan", "recipes/405b_sft.yml", "--json"]).output)
    own = page["settings"][0]
    fits = {one["setting"]: one["fits"] for one in page["settings"]}
    assert (own["setting"], own["fits"], fits["ZeRO-3"]) == ("ZeRO-3, optimizer on the host", True, False)
    assert {"parameters", "layer inputs", "loss", "gathered weights"} <= set(own["gpu"])
    assert sum(own["gpu"].values()) == own["moments"][own["peak"]]
    text = " ".join(CliRunner().invoke(app, ["plan", "recipes/405b_sft.yml"]).output.split())
    names = ["405,853,388,800 parameters", "387 per epoch, 1,550 in all", "the fewest", "layer inputs", "note:"]
    for words in (*names, "(modelled)", "cheapest 8", "quickest 16", "the paper's 2,086"):
        assert words in text


def test_a_plan_without_a_mix_and_check_import_neither_torch_nor_axolotl():
    code = (
        "import sys, hermes3.recipe.check; from pathlib import Path; from hermes3.plan.plan import plan;"
        "plan(Path('recipes/405b_sft.yml'));"
        "print([name for name in ('torch', 'axolotl', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_zero_3_moves_three_times_the_model():
    """Rajbhandari et al. 2020, arXiv 1910.02054, section 7.2.2; with accumulation, in each micro-batch."""
    sent = traffic(EIGHT, ONE, FULL, H100, 6, 8, arithmetic=1.0)
    assert sent.bytes_per_node == pytest.approx(3 * WEIGHTS * 5 / 6)
    assert sent.seconds == pytest.approx(3 * WEIGHTS * 47 / 48 / (BUS * 400e9)) == pytest.approx(0.131, abs=1e-3)
    assert traffic(EIGHT, replace(ONE, accumulation=6), FULL, H100, 6, 8, 6.0).bytes_per_node == 6 * sent.bytes_per_node


@pytest.mark.parametrize(
    ("shape", "gpu", "nodes", "gbps", "tokens", "speed", "kept"),
    [
        # torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: 8B, FSDP2, compile, 400 Gb/s per GPU: 6,667 tokens/s
        # per GPU on 8, 6,514 on 128
        (EIGHT, H100, 16, 3200, 2 * 8192, 6_667, 6_514 / 6_667),
        # IBM and PyTorch, Maximizing training throughput using PyTorch FSDP, 2024: Llama 2 7B on 128 A100, 800 Gb/s per
        # node: 3,700 tokens/s per GPU, near linear to 512
        (LLAMA_2, A100, 16, 800, 2 * 4096, 3_700, 1.0),
    ],
)
def test_what_was_hidden_is_hidden(shape, gpu, nodes, gbps, tokens, speed, kept):
    arithmetic = tokens / speed
    fast, slow = (
        traffic(shape, Work(tokens), FSDP, replace(gpu, network=rate), nodes, 8, arithmetic)
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
    for part in ("parameters", "optimizer"):
        assert copies[part] == pytest.approx(6 * whole[part], rel=1e-6)
    assert hpz["weights, a copy per group"] == round(WEIGHTS / 8)
    assert all(hpz.get(part) == zero.get(part) for part in ("parameters", "gradients", "optimizer"))
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
    rows = [
        ("8b_sft", "h200", "as shipped", 32, 0.1),
        ("8b_sft", "h100-80gb", "as shipped", 8, 0.2),
        ("8b_sft", "h100-80gb", "as shipped", 30, 0.3),
        ("8b_sft", "h100-80gb", "no recompute", 32, 0.4),
        ("8b_sft_lora", "h200", "as shipped", 4, 0.5),
        ("8b_dpo", "h200", "as shipped", 32, 0.6),
    ]
    keys, same = ("recipe", "gpu", "setting", "layers", "mfu"), {"gpus": 1, "hidden": 4096, "date": "2026-01-01"}
    runs = [dict(zip(keys, row, strict=True)) | same for row in rows]
    monkeypatch.setattr("hermes3.plan.cost.measurements", lambda: runs)
    mfu, source, warnings, _ = usual_mfu(EIGHT, ONE, FULL, H100)
    assert (mfu, source) == (0.3, "measured on 1 h100-80gb, 2026-01-01: 8b_sft, 30 layers, as shipped")
    assert len(warnings) == 1 and usual_mfu(replace(EIGHT, layers=30), ONE, FULL, H100)[2] == []
    assert usual_mfu(EIGHT, replace(ONE, rank=32), FULL, H100)[0] == 0.5
    assert usual_mfu(EIGHT, replace(ONE, rank=32, preference=True), FULL, H100)[0] == 0.6
    assert usual_mfu(EIGHT, ONE, FULL, gpu_of("cpu"))[:2] == (0.35, "assumed")
    assert usual_mfu(EIGHT, ONE, replace(FULL, offload="all"), H100)[0] == pytest.approx(0.3 * 0.55)
