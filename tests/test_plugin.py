"""The Axolotl plugin, driven through Axolotl's and accelerate's own classes."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import DataLoader, RandomSampler

from hermes3.train.data_order import RepackEveryEpoch
from hermes3.train.plugin import HermesPlugin
from hermes3.train.saving import RestartPoints

LENGTHS = [1 + i * 7 % 13 for i in range(60)]


pytestmark = pytest.mark.usefixtures("quick_gc")  # the packer collects at every packing


@pytest.fixture
def manager(monkeypatch):
    """Axolotl's plugin manager with our plugin alone; the process's own plugins come back afterwards."""
    manager = PluginManager.get_instance()
    monkeypatch.setattr(manager, "plugins", type(manager.plugins)())
    manager.register("hermes3.train.plugin.HermesPlugin")
    return manager


def dataloader(processes: int = 2):
    """The first rank's loader, made as the trainer makes it: the seed, RandomSampler, packer, accelerate."""
    torch.manual_seed(42)
    dataset = list(range(len(LENGTHS)))
    packer = MultipackBatchSampler(
        RandomSampler(dataset), batch_size=1, batch_max_len=16, lengths=LENGTHS, bin_size=200, num_processes=1
    )
    len(packer)  # as Axolotl does, which fills the cache
    loader = DataLoader(dataset, batch_sampler=packer, collate_fn=lambda batch: batch)
    return prepare_data_loader(loader, num_processes=processes, process_index=0, use_seedable_sampler=True)


def packs(loader, epoch: int, callback: RepackEveryEpoch) -> list:
    """One epoch's packs of sample indices, in the order of the trainer's own calls."""
    callback.on_epoch_begin(None, None, None, train_dataloader=loader)
    loader.set_epoch(epoch)
    return list(loader.batch_sampler)


def started(epoch: float = 0) -> RepackEveryEpoch:
    callback = RepackEveryEpoch()
    callback.on_train_begin(None, SimpleNamespace(epoch=epoch), None)
    return callback


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_gets_the_packs_of_its_epoch(processes):
    loader, callback = dataloader(processes), started()
    first_run = [packs(loader, epoch, callback) for epoch in range(3)]
    assert first_run[0] != first_run[1] != first_run[2] != first_run[0]
    assert packs(dataloader(processes), 1, started(1.4)) == first_run[1]
    assert packs(dataloader(processes), 2, started(2.0)) == first_run[2]


@pytest.mark.parametrize("resumed_at", [0, 1.4])
def test_asking_for_the_length_first_changes_nothing(resumed_at):
    other, loader = dataloader(), dataloader()
    other_callback, callback = started(resumed_at), started(resumed_at)
    for epoch in range(int(resumed_at), 3):
        callback.on_epoch_begin(None, None, None, train_dataloader=loader)
        len(loader)  # packs, before accelerate has told the shuffler its epoch
        loader.set_epoch(epoch)
        assert list(loader.batch_sampler) == packs(other, epoch, other_callback)


@pytest.mark.parametrize(
    ("cfg", "packs"),
    [({"sample_packing": True}, True), ({}, False), ({"sample_packing": True, "rl": "dpo"}, False)],
)
def test_only_packed_runs_repack(manager, cfg, packs):
    callbacks = [type(callback) for callback in manager.add_callbacks_post_trainer(DictDefault(cfg), trainer=None)]
    assert callbacks == [RepackEveryEpoch, RestartPoints] if packs else callbacks == [RestartPoints]


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({"rl": "dpo", "neftune_noise_alpha": 5}, {"neftune_noise_alpha": 5}),
        ({"rl": "dpo"}, {}),
        ({"neftune_noise_alpha": 5}, {}),  # Axolotl's own path for SFT
    ],
)
def test_neftune_reaches_the_preference_trainer(manager, cfg, expected):
    assert manager.get_training_args(DictDefault(cfg)) == expected


@pytest.mark.parametrize(
    ("gpu", "cuda", "rank", "expected"),
    [
        ("cpu", False, "0", True),
        ("cpu", False, None, False),  # no launcher started the process
        ("cpu", True, "0", False),
        ("h100-80gb", False, "0", False),  # a GPU whose driver fails: the run must fail too
    ],
)
def test_only_launched_recipes_for_cpus_train_on_cpus(monkeypatch, gpu, cuda, rank, expected):
    """Elsewhere Axolotl's own choice stands."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    use_gloo = mock.Mock()
    monkeypatch.setattr("hermes3.train.plugin.use_gloo", use_gloo)
    cfg = DictDefault({"hardware": {"gpu": gpu, "nodes": 1, "gpus_per_node": 1}})
    HermesPlugin().register(cfg)
    assert HermesPlugin().load_datasets(cfg) is None
    assert cfg.device_map == ({"": "cpu"} if expected else None)
    assert use_gloo.called == expected
