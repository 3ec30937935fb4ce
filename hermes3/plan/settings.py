"""How model states can be spread over GPUs and hosts, and which of the ways a recipe takes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ZERO3, FSDP2, REPLICATED = "zero3", "fsdp2", "replicated"


@dataclass(frozen=True)
class Setting:
    """One way. `fp32`: weights and moments of the optimizer are fp32, else bf16 throughout.

    `offload`: what stays in host memory: "", "optimizer" (with the fp32 weights), or "all". `gathered`: bytes a
    parameter that rank 0 collects in its host's memory at a save; 0: each rank saves its part. `buckets`: ZeRO's sizes,
    in elements.
    """

    name: str
    engine: str
    fp32: bool = True
    offload: str = ""
    gathered: int = 0
    buckets: tuple[tuple[str, float | None], ...] = ()

    def gathering(self) -> "Setting":
        """The same with whole saves: FSDP2 gathers the weights that it trains, ZeRO-3 their bf16 copies."""
        return replace(self, gathered=4 if self.engine == FSDP2 and self.fp32 else 2)

    def bucket(self, key: str, hidden: int) -> int:
        """Elements. "auto" is what transformers' HfTrainerDeepSpeedConfig.trainer_config_finalize fills in."""
        given = dict(self.buckets).get(key)
        auto = {"reduce_bucket_size": hidden * hidden, "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden)}
        fallback = {"stage3_max_reuse_distance": 1e9, "sub_group_size": 1e9}  # DeepSpeed's own
        return int(given if given is not None else {**auto, **fallback}[key])


SETTINGS = (
    Setting("ZeRO-3", ZERO3),
    Setting("ZeRO-3, optimizer on the host", ZERO3, offload="optimizer"),
    Setting("ZeRO-3, optimizer and parameters on the host", ZERO3, offload="all"),
    Setting("FSDP2, fp32 weights", FSDP2),
    Setting("FSDP2, bf16 throughout", FSDP2, fp32=False),
    Setting("FSDP2, fp32 weights, all on the host", FSDP2, offload="all"),
    Setting("FSDP2, bf16 throughout, all on the host", FSDP2, fp32=False, offload="all"),
)
# The paper: PyTorch FSDP, CPU offload, 405B on at least 7 nodes; precision and hosts are not stated. Assumed:
# accelerate's FSDP keeps fp32 weights, and one host also holds the whole model in bf16. docs/planning.md has the rest
PAPER = Setting("the paper's FSDP, as assumed", FSDP2, offload="all", gathered=2)
PAPER_MODEL, PAPER_NODES = "meta-llama/Llama-3.1-405B", 7
BUCKETS = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_reuse_distance", "sub_group_size")
OFFLOADS = {(False, False): "", (True, False): "optimizer", (True, True): "all"}


def setting_of(path: Path, recipe: dict[str, Any]) -> Setting:
    """The recipe's own. `ValueError` for a DeepSpeed file that is missing, or that is not ZeRO-3."""
    if recipe.get("fsdp_config"):
        return _fsdp2(recipe)
    deepspeed = recipe.get("deepspeed")
    if not deepspeed:
        return Setting("every process holds the whole model", REPLICATED, fp32=_keeps_fp32(recipe))
    if isinstance(deepspeed, str):
        if not Path(deepspeed).is_file():
            raise ValueError(f"{path}: deepspeed: no file {deepspeed} (relative to the working directory)")
        deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    zero = deepspeed.get("zero_optimization", {})
    on_host = tuple(zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param"))
    if zero.get("stage") != 3 or on_host not in OFFLOADS:
        raise ValueError(
            f"{path}: deepspeed: only ZeRO stage 3 is planned for, with the optimizer, or the optimizer and the "
            f"parameters offloaded; stage is {zero.get('stage')}"
        )
    numbers = tuple((key, None if zero.get(key) in (None, "auto") else float(zero[key])) for key in BUCKETS)
    same = next(one for one in SETTINGS if one.engine == ZERO3 and one.offload == OFFLOADS[on_host])
    same = replace(same, buckets=numbers)
    return same.gathering() if zero.get("stage3_gather_16bit_weights_on_model_save") else same


def _keeps_fp32(recipe: dict[str, Any]) -> bool:
    """HermesPlugin trains fp32 weights (hermes3/train/fixes.py), Axolotl alone bf16 ones; adapters are apart."""
    return any(str(name).endswith("HermesPlugin") for name in recipe.get("plugins") or []) and not recipe.get("adapter")


def _fsdp2(recipe: dict[str, Any]) -> Setting:
    fsdp = recipe["fsdp_config"]
    offload = "all" if fsdp.get("offload_params") else ""
    same = next(s for s in SETTINGS if (s.engine, s.fp32, s.offload) == (FSDP2, _keeps_fp32(recipe), offload))
    whole = "FULL_STATE_DICT" in (fsdp.get("state_dict_type"), fsdp.get("final_state_dict_type"))
    return same.gathering() if whole else same
