"""`make gpu-check` without a GPU: it says so; and its path, on a stand-in for the model, through Axolotl."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bench import gpu_check

ROOT = Path(__file__).parents[1]
STEPS = 4


@pytest.fixture(autouse=True)
def benchmarks_are_left_alone():
    before = (ROOT / "docs/benchmarks.md").read_bytes()
    yield
    assert (ROOT / "docs/benchmarks.md").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_it_ends_with_2_and_changes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "no CUDA device" in capsys.readouterr().err


def test_on_a_stand_in_it_trains_measures_and_compares(monkeypatch, tmp_path, capsys):
    small = ["--device", "cpu", "--layers", "2", "--width", "64", "--sequence-len", "256", "--steps", str(STEPS)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *small, "--out", str(tmp_path)])
    gpu_check.main()
    recipe = yaml.safe_load((tmp_path / "recipe.yml").read_text())
    real = yaml.safe_load((ROOT / "recipes/8b_sft.yml").read_text())
    for key in ("sample_packing", "optimizer", "learning_rate", "gradient_checkpointing", "micro_batch_size", "seed"):
        assert recipe[key] == real[key]
    meter = json.loads((tmp_path / "run/meter.json").read_text())
    assert len(meter["steps"]) == STEPS
    for step in meter["steps"]:
        assert 128 < step["tokens"] <= 256 and step["seconds"] > 0
    printed = capsys.readouterr().out
    for words in ("a stand-in", "tokens/s", "MFU", "resident memory", "needs CUDA, not run"):
        assert words in printed
