"""Which folders are whole models: told before anything is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermes3.model_folder import INDEX, check_model


@pytest.fixture
def sharded(base, tmp_path) -> Path:
    """The base model in two files, as large ones are saved."""
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    add_shard(tmp_path, 1, {name: weights[name] for name in names[::2]})
    add_shard(tmp_path, 2, {name: weights[name] for name in names[1::2]})
    for file in ("config.json", "chat_template.jinja"):
        shutil.copy(base / file, tmp_path)
    check_model(tmp_path)
    return tmp_path


def add_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> None:
    file, index = f"model-{number}.safetensors", folder / INDEX
    save_file(tensors, folder / file)
    before = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    index.write_text(json.dumps({"weight_map": before | dict.fromkeys(tensors, file)}))


CASES = [
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat_template.jinja"),
    (lambda folder: (folder / INDEX).unlink(), "no model.safetensors.*hermes3 consolidate"),
    (lambda folder: (folder / "model-2.safetensors").unlink(), "model-2.safetensors: .*again"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge-lora.*merged"),
    (lambda folder: add_shard(folder, 3, {"q.base_layer.weight": torch.zeros(1)}), "adapter inside .q.base_layer"),
    (lambda folder: add_shard(folder, 3, {"k.lora_A.weight": torch.zeros(1)}), "with an adapter inside .k.lora_A"),
    (lambda folder: save_file({}, folder / "model-2.safetensors"), "model-2.safetensors holds .* and it does not"),
    (lambda folder: os.truncate(folder / "model-1.safetensors", 4), "model-1.safetensors: .*again"),
    (lambda folder: os.truncate(folder / "model-1.safetensors", 100_000), "model-1.safetensors: .*again"),
]


@pytest.mark.parametrize(("harm", "message"), CASES)
def test_a_folder_that_is_no_whole_model_is_refused(harm, message, sharded):
    harm(sharded)
    with pytest.raises(ValueError, match=message):
        check_model(sharded)
