"""Several processes on a machine without CUDA: what Axolotl, transformers and accelerate take for granted of a GPU.

`torchrun --nproc-per-node 2 -m axolotl.cli.train recipe.yml` then trains over gloo under plain data parallel, DeepSpeed
and FSDP2, with the code that the GPUs run. Where there is CUDA, nothing here acts.
"""

import os
from typing import Any

import torch

from hermes3.recipe.hardware import CPU


def on_cpu_ranks(recipe: dict[str, Any]) -> bool:
    """Whether a launcher such as torchrun started this process for a recipe that declares CPUs, on a machine of them.

    A run that was meant for GPUs and finds none must fail, not train on CPUs.
    """
    declared = (recipe.get("hardware") or {}).get("gpu")
    return declared == CPU and "RANK" in os.environ and not torch.cuda.is_available()


def use_gloo(recipe: dict[str, Any]) -> None:
    """Have the run of `recipe` find CPUs, for the life of this process. Call it before Axolotl validates the recipe."""
    from transformers import training_args

    # transformers refuses `bf16: true` off a GPU unless `use_cpu` is set, which accelerate takes for "no DeepSpeed"
    training_args.is_torch_bf16_gpu_available = lambda: True
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else "cpu:0", to which torch cannot load a checkpoint
    if not (recipe.get("deepspeed") or recipe.get("fsdp_config")):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    from accelerate import ParallelismConfig, PartialState
    from accelerate.utils import DistributedType

    # Without a GPU accelerate finds no backend, and then counts one process, whatever WORLD_SIZE is; and only a run of
    # several GPUs does it take for an FSDP run
    os.environ.pop("ACCELERATE_USE_CPU", None)
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    # Axolotl asks for a mesh of "cuda"
    build = ParallelismConfig.build_device_mesh
    ParallelismConfig.build_device_mesh = lambda self, device_type: build(self, "cpu")
    if recipe.get("deepspeed"):
        import deepspeed

        # one process alone Axolotl would start with NCCL
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
