"""Several processes on a machine without CUDA: what Axolotl, transformers and accelerate assume of a GPU.

`torchrun --nproc-per-node 2 -m axolotl.cli.train recipe.yml` then trains over gloo under plain data parallel, DeepSpeed
and FSDP2, with the code that the GPUs run. Where there is CUDA, nothing here acts.
"""

import os
from typing import Any

import torch

from hermes3.recipe.hardware import CPU


def on_cpu_ranks(recipe: dict[str, Any]) -> bool:
    """Whether a launcher started this process for a recipe that declares CPUs. One for GPUs must fail without them."""
    declared = (recipe.get("hardware") or {}).get("gpu")
    return declared == CPU and "RANK" in os.environ and not torch.cuda.is_available()


def use_gloo(recipe: dict[str, Any]) -> None:
    """Have the run of `recipe` use CPUs, for the life of this process. Call it before Axolotl validates the recipe."""
    import axolotl.utils.trainer
    from accelerate import ParallelismConfig, PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    axolotl.utils.trainer.check_cuda_p2p_ib_support = lambda: True  # it asks a driver that is not there
    # transformers refuses `bf16: true` off a GPU unless `use_cpu` is set, which accelerate takes for "no DeepSpeed"
    training_args.is_torch_bf16_gpu_available = lambda: True
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else "cpu:0", to which torch cannot load a checkpoint
    if not (recipe.get("deepspeed") or recipe.get("fsdp_config")):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    # Without a GPU accelerate finds no backend and counts one process, whatever WORLD_SIZE is; and it takes only a run
    # on several GPUs for an FSDP run
    os.environ.pop("ACCELERATE_USE_CPU", None)
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    build = ParallelismConfig.build_device_mesh
    ParallelismConfig.build_device_mesh = lambda self, device_type: build(self, "cpu")  # Axolotl asks for "cuda"
    if recipe.get("deepspeed"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes minutes; gloo serves too
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)  # Axolotl would start NCCL
