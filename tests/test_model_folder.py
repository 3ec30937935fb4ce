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
    index(tmp_path, {name: file for file, part in shards.items() for name in part})
    for file in ("config.json", "chat_template.jinja"):
        shutil.copy(base / file, tmp_path)
    check_model(tmp_path)
    return tmp_path


def index(folder: Path, more: dict[str, str]) -> None:
    """Enter `more`, {tensor: file}, in the index."""
    before = json.loads((folder / INDEX).read_text())["weight_map"] if (folder / INDEX).exists() else {}
    (folder / INDEX).write_text(json.dumps({"weight_map": before | more}))


def with_adapter_inside(folder: Path, name: str) -> None:
    save_file({name: torch.zeros(1)}, folder / "model-3.safetensors")
    index(folder, {name: "model-3.safetensors"})


def broken_off(folder: Path, left: int) -> None:
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])


INNER, LORA = "model.layers.0.self_attn.q_proj.base_layer.weight", "lm_head.lora_A.weight"
CASES = [
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat_template.jinja"),
    (lambda folder: (folder / INDEX).unlink(), "no model.safetensors.*hermes3 consolidate"),
    (lambda folder: (folder / "model-2.safetensors").unlink(), "names model-2.safetensors.*missing"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge-lora.*merged"),
    (lambda folder: with_adapter_inside(folder, INNER), f"with an adapter inside.*{INNER}"),
    (lambda folder: with_adapter_inside(folder, LORA), f"with an adapter inside.*{LORA}"),
    (
        lambda folder: shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors"),
        "model-2.safetensors holds .* and it does not",
    ),
    *((lambda folder, left=left: broken_off(folder, left), "model-1.safetensors.*again") for left in (4, 100, 100_000)),
]


@pytest.mark.parametrize(("harm", "message"), CASES, ids=[message for _, message in CASES])
def test_a_folder_that_is_no_whole_model_is_refused(harm, message, sharded):
    harm(sharded)
    with pytest.raises(ValueError, match=message):
        check_model(sharded)
    with pytest.raises(ValueError, match=message):  # before anything starts
        run(sharded, sharded / "out", load("tiny"))
