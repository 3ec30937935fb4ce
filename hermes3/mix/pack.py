"""How a mix packs under a recipe: Axolotl's own packer over the rows' lengths, in the order that training draws.

The trainer shuffles and packs anew each epoch (`hermes3.train.fixes`), and ends an epoch at the number of packs that it
drew before the first; no step takes packs beyond that, or too few for every rank."""

import logging
import math
import warnings
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hermes3.files import UserError
from hermes3.mix import manifest

flatten = chain.from_iterable
# Keys that change which rows are trained on, or how often, in ways that are not followed here
NOT_FOLLOWED = ("curriculum_sampling", "val_set_size", "dataloader_drop_last")


@dataclass(frozen=True)
class Packing:
    rows: int
    tokens: int
    gpus: int
    capacity: int  # tokens of a pack: sequence_len, times micro_batch_size where attention takes one long row
    packs: int  # of the first epoch
    efficiency: float  # of the first epoch: tokens / (packs * capacity)
    steps_per_epoch: list[int]  # optimizer steps
    steps: int
    tokens_per_step: float  # mean, padding not counted
    rows_left_out: list[int]  # of each epoch, in packs that no step takes


def preview(mix: Path, recipe: Path, resolved: dict[str, Any]) -> Packing:
    """The packs and steps of training on the mix in folder `mix`; `resolved`: `recipe` as Axolotl resolves it.

    `UserError` for a recipe that does not pack, and for a mix that is none, holds pairs or is too long."""
    logging.disable(logging.WARNING)  # what libraries warn of while they are imported is not shown; their errors are
    with warnings.catch_warnings(action="ignore"):
        import axolotl.utils.data.shared  # noqa: F401
        from axolotl.utils.dict import DictDefault
    logging.disable(logging.NOTSET)
    cfg = DictDefault(resolved)
    if not cfg.sample_packing:
        raise UserError(f"{recipe}: sample_packing: this recipe does not pack, there is nothing to preview")
    if keys := [key for key in NOT_FOLLOWED if cfg[key]]:
        raise UserError(f"{recipe}: {keys[0]}: packing cannot be previewed with it")
    lengths = read_lengths(mix, cfg)
    if (longest := lengths.max()) > cfg.sequence_len:
        wrong = f"a row has {longest:,} tokens, sequence_len of {recipe} is {cfg.sequence_len:,}"
        raise UserError(f"{mix}: {wrong}; build the mix for that length")
    gpus, accumulation = cfg.hardware.nodes * cfg.hardware.gpus_per_node, cfg.gradient_accumulation_steps
    packer = trainer_packer(lengths, cfg, gpus)
    capacity, per_rank = packer.batch_max_len, len(packer) // gpus
    # as axolotl.utils.trainer.calculate_total_num_steps, then transformers' Trainer.set_initial_training_values. The
    # former draws packs from whatever the process is seeded with: with our plugin, the recipe's seed
    steps = cfg.max_steps or math.floor(max(1, len(packer) // (accumulation * gpus)) * cfg.num_epochs)
    epochs = [epoch_batches(packer, i) for i in range(math.ceil(steps / max(1, math.ceil(per_rank / accumulation))))]
    steps_per_epoch, rows_left_out, tokens = [], [], 0
    for batches in epochs:
        n = len(batches) // gpus
        # the last step of a short epoch is not made if it lacks micro-batches
        done = min(n // accumulation + (n == per_rank and n % accumulation > 0), steps - sum(steps_per_epoch))
        taken = list(flatten(flatten(batches[: min(done * accumulation, n) * gpus])))
        steps_per_epoch.append(done)
        rows_left_out.append(len(lengths) - len(taken))
        tokens += int(lengths[taken].sum())
    if not (total := sum(steps_per_epoch)):
        wrong = f"its rows fill {len(packer)} x {capacity:,} tokens, a step takes {gpus} x as many, one for each GPU"
        raise UserError(f"{mix}: {wrong}; plan on --gpus 1, and set `hardware` so to train, or take more rows")
    packs = sum(map(len, epochs[0]))
    full = float(lengths[list(flatten(flatten(epochs[0])))].sum() / (packs * capacity))
    sizes = (len(lengths), int(lengths.sum()), gpus, capacity, packs, full)
    return Packing(*sizes, steps_per_epoch, total, tokens / total, rows_left_out)


def read_lengths(mix: Path, cfg: Any) -> np.ndarray:
    """Tokens, int64[rows], in the order that Axolotl's loading gives the rows."""
    from axolotl.utils.data.shared import merge_datasets
    from datasets import Dataset

    if (kind := manifest.read(mix)["kind"]) != "sft":
        raise UserError(f"{mix}: a mix of kind {kind} is not packed")
    rows = Dataset(pq.read_table(mix / "rows", columns=["n_tokens"]).combine_chunks())
    # shuffles; as Arrow 1 M rows take 2 s, not 10
    return merge_datasets([rows], cfg).with_format("arrow")[:]["n_tokens"].to_numpy()


def trainer_packer(lengths: np.ndarray, cfg: Any, gpus: int) -> Any:
    """The packer that Axolotl's trainer makes after seeding; its `len` is the number of batches drawn for an epoch."""
    import torch
    from accelerate.data_loader import SeedableRandomSampler
    from axolotl.utils.samplers import MultipackBatchSampler
    from torch.utils.data import RandomSampler

    # as AxolotlTrainer._create_multipack_sampler
    real_batches = cfg.multipack_real_batches
    real_batches = not cfg.attn_supports_packing if real_batches is None else real_batches
    size, length = (cfg.micro_batch_size, 1) if real_batches else (1, cfg.micro_batch_size)
    settings = {"batch_size": size, "batch_max_len": cfg.sequence_len * length, "drop_last": True}
    settings |= {"group_size": cfg.sample_packing_group_size, "bin_size": cfg.sample_packing_bin_size}
    settings |= {"sequential": bool(cfg.sample_packing_sequentially), "num_processes": 1}  # more give the same packs
    packer = MultipackBatchSampler(RandomSampler(lengths), lengths=lengths, **settings)
    packer.num_count_samples = 1 if gpus >= 4 else 4  # the packer would read it off this process's WORLD_SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        drawn, step = len(packer), gpus * cfg.gradient_accumulation_steps
    packer._len_across_ranks = drawn // step * step or drawn  # as hermes3.train.fixes.whole_steps
    packer.sampler = SeedableRandomSampler(lengths, data_seed=cfg.seed)  # as accelerate does afterwards
    return packer


def epoch_batches(packer: Any, epoch: int) -> list[list[list[int]]]:
    """Row numbers by batch and pack, of one epoch (from 0), the batches of all ranks in turn."""
    packer.sampler.set_epoch(epoch)
    packer.set_epoch(epoch)
    return list(packer)
