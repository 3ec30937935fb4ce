"""What a training step of a Llama holds in memory, by torch's FSDP2 tracker: `python tests/plan_tracker.py CASES`.
Every tensor is fake: transformers' model, Liger's Python, FSDP2 and AdamW run whole, and allocate as on a GPU, but no
kernel runs. FlashAttention-2 is an autograd function that saves what it saves, dropout is CUDA's, Triton's launches do
nothing, and the loss' gradient is taken to be 1: set for the whole process, as Liger's patches are. CASES: JSON list of
{fields of `Shape` as shape, fp32, fields of `Work`}, those with Liger last, each on 48 ranks. Prints a list of {peak
bytes of each moment, bytes of states}."""

import json
import sys

import torch
import torch.distributed as dist
import triton
from liger_kernel.transformers import apply_liger_kernel_to_llama
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface, LlamaForCausalLM

from bench.gpu_run import llama_config
from hermes3.plan.shapes import Shape


class Attention(torch.autograd.Function):
    """Saves what FlashAttention-2 saves: q, k, v, the output, and float32[batch, heads, tokens] of log-sums."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(*q.shape[:1], q.shape[2], q.shape[1], device=q.device))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def attend(module, query, key, value, mask, **kwargs):
    return Attention.apply(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)), None


def measure(case: dict) -> dict:
    """One case: two steps, of which the second, with optimizer states there, is measured."""
    if case["liger_norm"]:
        apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
    config = llama_config(Shape(**case["shape"]), max_position_embeddings=131_072, use_cache=False)
    config._attn_implementation = "as_saved"
    dist.init_process_group("fake", rank=0, world_size=48, store=FakeStore())
    mesh = init_device_mesh("cpu", (48,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        torch.set_default_dtype(torch.float32 if case["fp32"] else torch.bfloat16)
        model = LlamaForCausalLM(config).train()
        torch.set_default_dtype(torch.float32)
        if case["checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        tokens = torch.zeros(1, case["tokens"], dtype=torch.long)
        batch = {"input_ids": tokens, "position_ids": torch.arange(case["tokens"])[None]}
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs(tuple(batch.values()))
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                sizes = {}
                loss = model(**batch, labels=batch["input_ids"]).loss
                sizes["loss"] = peak(tracker)
                loss.backward()
                sizes["backward"] = peak(tracker)
                optimizer.step()
                optimizer.zero_grad()
                sizes["optimizer step"] = peak(tracker)
    kinds = next(iter(tracker.get_tracker_snapshot("current").values()))
    left = {getattr(kind, "value", kind).rsplit(".")[-1]: size for kind, size in kinds.items()}
    dist.destroy_process_group()
    return sizes | {"states": {"parameters": left["Sharded Param"], "optimizer": left["OptState"]}}


def peak(tracker: FSDPMemTracker) -> int:
    """Bytes at the peak since the last call."""
    highest = max(tracker._peak_mem.values())
    tracker._peak_mem, tracker._peak_mem_snap = {}, {}
    return highest


if __name__ == "__main__":
    triton.runtime.jit.JITFunction.run = lambda *args, **kwargs: None
    torch.equal = lambda *args: True
    torch.nn.functional.dropout = lambda x, p, *rest: torch.native_dropout(x, p, True)[0]  # as on CUDA: a mask of bools
    AttentionInterface.register("as_saved", attend)
    print(json.dumps([measure(case) for case in json.loads(sys.argv[1])]))
