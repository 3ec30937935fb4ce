"""The Axolotl plugin, driven through Axolotl's and accelerate's own classes."""

from unittest import mock

import pytest
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from hermes3.train.fixes import RepackEveryEpoch
from hermes3.train.plugin import HermesPlugin
from hermes3.train.saving import RestartPoints


@pytest.fixture
def manager(monkeypatch):
    """Axolotl's plugin manager with our plugin alone; the process's own plugins come back afterwards."""
    manager = PluginManager.get_instance()
    monkeypatch.setattr(manager, "plugins", type(manager.plugins)())
    manager.register("hermes3.train.plugin.HermesPlugin")
    return manager


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


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    cfg = DictDefault({"hardware": {"gpu": "cpu", "nodes": 1, "gpus_per_node": 2}})
    HermesPlugin().load_datasets(cfg, preprocess=True)
    message = "the recipe is for 1 x 2 = 2 processes, this run has 1, and so another global batch"
    with pytest.raises(ValueError, match=message):
        HermesPlugin().load_datasets(cfg)


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
