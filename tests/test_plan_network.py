"""The plan's network on known points, and the memory of what the network or recomputation is spared for."""

from dataclasses import replace

import pytest

from hermes3.plan.cost import usual_mfu
from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Setting, memory
from hermes3.plan.network import BUS, traffic
from hermes3.plan.shapes import Work, published, work_of
from hermes3.recipe.hardware import gpu_of

EIGHT = published()["meta-llama/Llama-3.1-8B"]
LLAMA_2 = replace(EIGHT, name="Llama 2 7B", intermediate=11_008, kv_heads=32, vocab=32_000)
H100, A100 = gpu_of("h100-80gb"), gpu_of("a100-80gb")
FULL, FSDP, ONE = Setting("ZeRO-3", ZERO3), Setting("FSDP2", FSDP2), Work(8192)
WEIGHTS = 2 * EIGHT.parameters


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
