"""The Axolotl plugin, driven through Axolotl's and accelerate's own classes."""

from unittest import mock

import pytest
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from hermes3.train.plugin import HermesPlugin

CPU = {"gpu": "cpu", "nodes": 1, "gpus_per_node": 1}


@pytest.mark.parametrize(
    ("cfg", "callbacks"),
    [
        ({"sample_packing": True}, ["RepackEveryEpoch", "Saving"]),
        ({}, ["Saving"]),
        ({"sample_packing": True, "rl": "dpo"}, ["Saving"]),
    ],
)
def test_only_packed_runs_repack(cfg, callbacks):
    added = HermesPlugin().add_callbacks_post_trainer(DictDefault(cfg), trainer=None)
    assert [type(one).__name__ for one in added] == callbacks


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({"rl": "dpo", "neftune_noise_alpha": 5}, {"neftune_noise_alpha": 5}),
        ({"rl": "dpo"}, {}),
        ({"neftune_noise_alpha": 5}, {}),  # Axolotl's own path for SFT
    ],
)
def test_neftune_reaches_the_preference_trainer(monkeypatch, cfg, expected):
    manager = PluginManager.get_instance()
    monkeypatch.setattr(manager, "plugins", type(manager.plugins)())
    manager.register("hermes3.train.plugin.HermesPlugin")
    assert manager.get_training_args(DictDefault(cfg)) == expected


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    cfg = DictDefault({"hardware": CPU | {"gpus_per_node": 2}})
    HermesPlugin().load_datasets(cfg, preprocess=True)
    with pytest.raises(ValueError, match="for 1 x 2 = 2 processes, this run has 1, and so another global batch"):
        HermesPlugin().load_datasets(cfg)


@pytest.mark.parametrize(
    ("gpu", "cuda", "env", "expected"),
    [
        ("cpu", False, {"RANK": "0"}, True),
        ("cpu", False, {}, False),  # no launcher started the process
        ("cpu", True, {"RANK": "0"}, False),
        ("h100-80gb", False, {"RANK": "0"}, False),  # a GPU whose driver fails: the run must fail too
    ],
)
def test_only_launched_recipes_for_cpus_train_on_cpus(monkeypatch, gpu, cuda, env, expected):
    """Elsewhere Axolotl's own choice stands."""
    monkeypatch.delenv("RANK", raising=False)
    cfg = DictDefault({"hardware": CPU | {"gpu": gpu}})
    with (
        mock.patch("torch.cuda.is_available", return_value=cuda),
        mock.patch.dict("os.environ", env),
        mock.patch("hermes3.train.plugin.use_gloo") as use_gloo,
    ):
        HermesPlugin().register(cfg)
        HermesPlugin().load_datasets(cfg)
    assert cfg.device_map == ({"": "cpu"} if expected else None)
    assert use_gloo.called == expected
