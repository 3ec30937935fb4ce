"""Which folders are whole models: told before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermes3.evaluate.run import run
from hermes3.model_folder import INDEX, check_model
from hermes3.results.suite import load


@pytest.fixture
def sharded(base, tmp_path) -> Path:
    """The base model in two files, as large ones are saved."""
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for file in ("config.json", "chat_template.jinja"):
        shutil.copy(base / file, tmp_path)
    return tmp_path


def test_whole_models_pass(base, sharded):
    check_model(base)
    check_model(sharded)


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(folder)


def test_a_folder_without_one_of_its_files_is_refused(sharded):
    (sharded / "chat_template.jinja").unlink()
    refuse(sharded, "no chat_template.jinja")
    (sharded / "model-2.safetensors").unlink()
    refuse(sharded, "names model-2.safetensors")
    (sharded / INDEX).unlink()
    refuse(sharded, "no model.safetensors.*hermes3 consolidate")
    (sharded / "config.json").unlink()
    refuse(sharded, "no config.json")


def test_an_adapter_is_refused(sharded):
    (sharded / "adapter_config.json").write_text("{}")
    refuse(sharded, "merge-lora.*merged")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.base_layer.weight", "lm_head.lora_A.weight"])
def test_a_model_with_an_adapter_inside_is_refused(sharded, name):
    """It may be in any shard, and the folder may have no other trace of it; test_dpo.py has Axolotl write one."""
    index = json.loads((sharded / INDEX).read_text())
    save_file({name: torch.zeros(1)}, sharded / "model-3.safetensors")
    (sharded / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {name: "model-3.safetensors"}}))
    refuse(sharded, f"with an adapter inside.*{name}")


def test_a_shard_of_another_model_is_refused(sharded):
    shutil.copy(sharded / "model-1.safetensors", sharded / "model-2.safetensors")
    refuse(sharded, "model-2.safetensors holds .* and it does not")


@pytest.mark.parametrize("left", [4, 100, 100_000])
def test_a_broken_off_copy_is_refused(sharded, left):
    shard = sharded / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    refuse(sharded, "model-1.safetensors.*again")


def test_evaluation_refuses_before_it_starts(sharded, tmp_path):
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        run(sharded, tmp_path / "out", load("tiny"))
