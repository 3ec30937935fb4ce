"""The packing preview against Axolotl's own training, and the guard against data prepared from another mix."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from accelerate.data_loader import prepare_data_loader
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.integrations.base import PluginManager
from axolotl.train import setup_model_and_trainer
from axolotl.utils.dict import DictDefault
from small_mix import SEQUENCE_LEN, write_counts, write_mix, write_recipe
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed

from hermes3.mix import pack
from hermes3.recipe.check import validate
from hermes3.recipe.read import read
from hermes3.recipe.rules import check_prepared
from hermes3.train.fixes import RepackEveryEpoch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("quick_gc")  # the packer collects at every packing


@pytest.fixture(scope="module")
def mix(tmp_path_factory) -> Path:
    """60 rows whose packs, in three epochs, are as many, fewer and more than were drawn for the length of an epoch."""
    lengths = np.random.default_rng(88).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
    return write_mix(tmp_path_factory.mktemp("pack") / "mix", lengths.tolist())


@pytest.fixture(scope="module", params=[1, 5])
def run(request, axolotl_process, base, mix) -> tuple[Path, Trainer, list[list[int]]]:
    """A whole training as `axolotl train` makes it, 1 or 5 micro-batches a step: recipe, trainer, rows by pack."""
    recipe = write_recipe(mix.parent / str(request.param), mix, base, gradient_accumulation_steps=request.param)
    cfg = load_cfg(str(recipe))
    PluginManager.get_instance().load_datasets(cfg)  # as `axolotl train` does: our plugin seeds
    trainer = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0]
    row_of = {row["input_ids"][0]: number for number, row in enumerate(trainer.train_dataset)}
    seen = []

    def record(module, args, inputs):
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten()
        firsts = inputs["input_ids"][0, starts].tolist()
        seen.append([row_of[first] for first in firsts if first in row_of])  # the rest is padding

    trainer.model.register_forward_pre_hook(record, with_kwargs=True)
    trainer.train()
    return recipe, trainer, seen


def test_the_model_sees_the_packs_that_are_previewed_in_as_many_steps(run, mix):
    recipe, trainer, seen = run
    cfg = DictDefault(validate(recipe))
    lengths = pack.read_lengths(mix, cfg)
    assert lengths.tolist() == [len(row["input_ids"]) for row in trainer.train_dataset]
    packer = pack.trainer_packer(lengths, cfg, gpus=1)
    epochs = [pack.epoch_batches(packer, epoch) for epoch in range(3)]
    five = cfg.gradient_accumulation_steps == 5  # without whole_steps 24 packs were five steps of five
    assert [len(packer), *map(len, epochs)] == ([20] * 4 if five else [24, 24, 23, 24])  # 25 in the last, cut to 24
    assert seen == [batch[0] for batches in epochs for batch in batches][: len(seen)]
    assert len(seen) == (3 * 20 if five else 24 + 23 + 24)
    packing = pack.preview(mix, recipe, validate(recipe))
    tokens = [sum(lengths[rows]) for rows in seen]
    assert packing.steps == trainer.state.global_step == sum(packing.steps_per_epoch)
    assert packing.rows_left_out[-1] == 60 - sum(map(len, seen[-len(epochs[2]) :]))
    assert packing.steps_per_epoch == ([4, 4, 4] if five else [24, 23, 24])
    assert packing.tokens_per_step == pytest.approx(sum(tokens) / packing.steps)
    first = len(epochs[0])
    assert (packing.packs, packing.efficiency) == (first, pytest.approx(sum(tokens[:first]) / (first * SEQUENCE_LEN)))


@pytest.mark.parametrize("gpus", [2, 5])  # for few ranks four packings are drawn, for many one
def test_an_epoch_is_as_long_as_the_trainer_draws_it_and_ranks_take_the_packs_in_turn(run, gpus, monkeypatch):
    recipe, trainer, _ = run
    monkeypatch.setattr(type(trainer.args), "world_size", gpus)
    cfg = DictDefault(validate(recipe))
    lengths = np.array([len(row["input_ids"]) for row in trainer.train_dataset])
    drawn = set()
    for cfg.seed in range(10):
        set_seed(cfg.seed)  # as Trainer does when it is made
        with mock.patch.dict(os.environ, WORLD_SIZE=str(gpus)):
            drawn.add(length := len(trainer._get_train_sampler()))
        assert len(pack.trainer_packer(lengths, cfg, gpus)) == length
    assert len(drawn) > 1 or cfg.gradient_accumulation_steps * gpus == 10  # of which 24 and 25 hold two
    cfg = DictDefault(validate(recipe))
    packer = pack.trainer_packer(lengths, cfg, gpus)
    batches = pack.epoch_batches(packer, 1)
    monkeypatch.setenv("WORLD_SIZE", str(gpus))
    for rank in range(gpus):
        set_seed(cfg.seed)
        loader = DataLoader(trainer.train_dataset, batch_sampler=trainer._get_train_sampler())
        loader = prepare_data_loader(loader, num_processes=gpus, process_index=rank, use_seedable_sampler=True)
        callback = RepackEveryEpoch()
        for callback.epoch in range(2):
            callback.on_epoch_begin(None, None, None, train_dataloader=loader)
        assert len(loader) == len(packer) // gpus
        assert list(loader.batch_sampler) == batches[rank : len(batches) // gpus * gpus : gpus]


def lognormal(mean: int, rows: int = 100_000) -> list[int]:
    """Lengths of conversations, in tokens; the spread of one e-fold is that of open instruction data."""
    return np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1, rows).clip(8, 8192).astype(int).tolist()


@pytest.mark.parametrize("name", ["8b_sft", "405b_sft"])
def test_the_papers_recipes_fill_998_of_1000_and_another_seed_draws_other_packs(name, tmp_path):
    recipe = ROOT / f"recipes/{name}.yml"
    resolved = validate(recipe)
    lengths = lognormal(400)
    packing = pack.preview(write_counts(tmp_path / "mix", lengths, lengths), recipe, resolved)
    assert packing.efficiency >= 0.998
    assert max(packing.rows_left_out) < 0.04 * len(lengths)  # 128 GPUs leave up to 127 of 4,880 packs
    assert packing.tokens_per_step == pytest.approx(packing.gpus * 8192, rel=0.002)
    if name == "8b_sft":
        other = pack.preview(tmp_path / "mix", recipe, resolved | {"seed": 1})
        assert other.rows_left_out != packing.rows_left_out
        lengths = lognormal(30)  # Axolotl's default of 200 rows per sequence would leave a quarter empty
        assert pack.preview(write_counts(tmp_path / "short", lengths, lengths), recipe, resolved).efficiency > 0.99


UNPACKABLE = yaml.safe_load((ROOT / "tests/unpackable.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", UNPACKABLE["cases"])
def test_what_cannot_be_packed_is_refused(case, tmp_path):
    if lengths := case.get("lengths"):
        write_counts(tmp_path / "mix", lengths, lengths, case.get("kind", "sft"))
    with pytest.raises(ValueError, match=case["message"]):
        pack.preview(tmp_path / "mix", Path("mine.yml"), UNPACKABLE["resolved"] | case.get("recipe", {}))


def test_what_libraries_warn_of_while_they_are_imported_is_not_shown_but_their_errors_are(tmp_path):
    noise = "import logging, warnings\nwarnings.warn('noise')\nlogging.warning('noise')\nlogging.error('no disk')"
    (tmp_path / "axolotl.py").write_text(noise)
    command = [sys.executable, "-c", "from hermes3.mix import pack; pack.preview(None, None, {})"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "no disk" in ran.stderr and "noise" not in ran.stderr


def load(recipe: Path) -> list[int]:
    """The first token of every row that Axolotl's loading gives, sorted."""
    return sorted(row["input_ids"][0] for row in load_datasets(cfg=load_cfg(str(recipe))).train_dataset)


def test_axolotl_prepares_through_the_link_and_only_the_guard_notices_changed_data(axolotl_process, base, tmp_path):
    """When the assertion on stale rows fails, Axolotl has mended it and the guard can go."""
    mix = write_mix(tmp_path / "mix", [20] * 6)
    recipe = write_recipe(tmp_path, mix, base)
    assert load(recipe) == [10, 11, 12, 13, 14, 15]
    assert list((mix / "prepared-0123456789ab").glob("*/dataset_info.json"))
    newer = write_mix(tmp_path / "newer", [20] * 4, digest="fedcba987654" + "0" * 52)
    for part in (newer / "train").iterdir():
        part.rename(mix / "train" / part.name)
    assert load(recipe) == [10, 11, 12, 13, 14, 15]  # stale
    (newer / "manifest.json").rename(mix / "manifest.json")
    with pytest.raises(ValueError, match="leads to .*prepared-0123456789ab, not to prepared-fe"):
        check_prepared(recipe, read(recipe))
    (newer / "prepared").rename(mix / "prepared")
    (newer / "prepared-fedcba987654").rename(mix / "prepared-fedcba987654")
    check_prepared(recipe, read(recipe))
    assert load(recipe) == [10, 11, 12, 13]


@pytest.mark.parametrize("case", yaml.safe_load((ROOT / "tests/prepared.yml").read_text(encoding="utf-8")))
def test_prepared_data_that_could_be_another_mix_s_are_refused(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write_mix(Path("mix"), [20, 20])
    subprocess.run(case.get("spoil", "true"), shell=True, check=True)
    recipe = {"datasets": [{"path": "mix/train"}], "dataset_prepared_path": "mix/prepared"} | case.get("changes", {})
    with pytest.raises(ValueError, match=f"^mine.yml: {case['message']}") if "message" in case else nullcontext():
        check_prepared(Path("mine.yml"), recipe)
