"""The plan's network on known points, and the memory of what the network or recomputation is spared for."""

from dataclasses import replace

import pytest

from hermes3.plan.memory import FSDP2, REPLICATED, ZERO3, Setting, memory
from hermes3.plan.network import BUS, traffic
from hermes3.plan.shapes import Work, published, work_of
from hermes3.recipe.hardware import gpu_of

EIGHT = published()["meta-llama/Llama-3.1-8B"]
LLAMA_2 = replace(EIGHT, name="Llama 2 7B", intermediate=11_008, kv_heads=32, vocab=32_000)
H100, A100 = gpu_of("h100-80gb"), gpu_of("a100-80gb")
FULL, ONE = Setting("ZeRO-3", ZERO3), Work(8192)
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
    arithmetic, fast = tokens / speed, replace(gpu, network=gbps / 8 * 1e9)
    sent = traffic(shape, Work(tokens), Setting("FSDP2", FSDP2), fast, nodes, 8, arithmetic)
    assert arithmetic / (arithmetic + sent.exposed) == pytest.approx(kept, abs=0.03)
    slow = traffic(shape, Work(tokens), Setting("FSDP2", FSDP2), replace(gpu, network=12.5e9), nodes, 8, arithmetic)
    assert slow.seconds > 3 and slow.exposed > 0.5  # one adapter of 100 Gb/s per node rules


def test_copies_per_node_spare_a_slow_network():
    slow, arithmetic = replace(H100, network=12.5e9), 1.3
    settings = [FULL, replace(FULL, group=8), Setting("FSDP2", FSDP2), Setting("copy per node", FSDP2, group=8)]
    zero, hpz, fsdp, copies = (traffic(EIGHT, ONE, one, slow, 6, 8, arithmetic) for one in settings)
    assert zero.seconds == pytest.approx(fsdp.seconds)
    assert hpz.bytes_per_node == pytest.approx(2 / 3 * zero.bytes_per_node)
    assert copies.bytes_per_node == pytest.approx(2 * WEIGHTS * 5 / 6)  # gradients alone, there and back
    assert zero.exposed > hpz.exposed > 0 and zero.exposed > copies.exposed > 0
    adapter = Setting("data parallel", REPLICATED)
    assert traffic(EIGHT, Work(8192, rank=32), adapter, slow, 6, 8, arithmetic).exposed == 0
    late = traffic(EIGHT, ONE, replace(FULL, overlap=False), H100, 6, 8, 100.0)
    assert late.exposed == pytest.approx(late.seconds / 3)


def test_copies_cost_memory():
    def gpu(setting: Setting, work: Work = ONE) -> dict[str, int]:
        return memory(EIGHT, work, setting, H100, 6, 8).gpu

    states = ("parameters", "gradients", "optimizer")
    whole, copies = gpu(Setting("FSDP2", FSDP2)), gpu(Setting("copies", FSDP2, group=8))
    assert sum(copies.get(part, 0) for part in ("parameters", "optimizer")) == pytest.approx(
        6 * sum(whole.get(part, 0) for part in ("parameters", "optimizer")), rel=1e-6
    )
    assert gpu(replace(FULL, group=8))["weights, a copy per group"] == round(WEIGHTS / 8)
    assert all(gpu(replace(FULL, group=8)).get(part) == gpu(FULL).get(part) for part in states)
    # accelerate lets FSDP2 reduce the last micro-batch alone, so that whole gradients wait
    accumulated = gpu(Setting("FSDP2", FSDP2), replace(ONE, accumulation=2))
    assert accumulated["gradients, not yet reduced"] == WEIGHTS


def test_offloaded_layer_inputs_and_selected_outputs():
    fsdp = Setting("FSDP2", FSDP2)
    plain = memory(EIGHT, ONE, fsdp, H100, 6, 8)
    offloaded = memory(EIGHT, replace(ONE, offloaded=True), fsdp, H100, 6, 8)
    one = ONE.layer_input(EIGHT)
    assert (plain.gpu["layer inputs"], offloaded.gpu["layer inputs"]) == (32 * one, 2 * one)
    assert offloaded.host["layer inputs"] == 8 * 32 * one
    recipe = {"sequence_len": 8192, "bf16": True, "gradient_checkpointing": True}
    work, _ = work_of(recipe | {"selective_checkpointing": True})
    assert work.saved == ("attention",) and work.selected(EIGHT) == 8192 * (2 * 4096 + 4 * 32)
    work, warnings = work_of(recipe | {"selective_checkpointing": {"save_modules": ["mlp.down_proj"]}})
    assert work.saved == ("attention", "down_proj") and warnings == []
    assert memory(EIGHT, work, fsdp, H100, 6, 8).gpu["selected outputs"] == 32 * work.selected(EIGHT)
