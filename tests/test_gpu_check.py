"""`make gpu-check` without a GPU: it says so; and its trainings on a stand-in for the model, through Axolotl."""

import json
import math
import sys
from functools import partial
from unittest import mock

import pytest
import ranks
import torch

from bench import gpu_check, gpu_run
from hermes3.recipe.hardware import gpu_of

TRAINED = ["dpo: first loss", "fsdp2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where some sections ran on a CPU: forked from a server that has imported Axolotl, not launched by torchrun."""
    out = tmp_path_factory.mktemp("gpu_check")
    (out / "results").mkdir()

    def start(recipe, env, limit, log) -> int:
        run = ranks.train(recipe, 1, **env)
        log.write_text(run.logs[0])
        return run.codes[0]

    with mock.patch.object(gpu_run, "torchrun", start):
        gpu_check.run_sections(gpu_of("cpu"), out, 600, TRAINED, again=False)
    return out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_it_ends_with_2_and_changes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "no CUDA device" in capsys.readouterr().err


def test_a_stand_in_trains_and_is_measured(out):
    for result in (gpu_check.result_of(out, name) for name in TRAINED):
        assert result["ok"], result["seen"]
        run = result["run"]
        assert {"gpu", "gpus", "recipe", "setting", "layers", "hidden", "versions", "date", "commit"} <= set(run)
        assert run["gpu"] == "cpu" and run["tokens_per_s"] > 0 and run["memory_gb"] > 0 and run["mfu"] is None
        assert all(seconds > 0 for seconds in run["step_seconds"])
    assert not list((out / "run").rglob("*.safetensors"))  # of the last one: nothing is saved


def test_the_first_loss_of_dpo_is_held_to_ln_2(out, monkeypatch):
    run = gpu_check.result_of(out, TRAINED[0])["run"]
    assert run["losses"][0] == pytest.approx(math.log(2), abs=5e-7)
    monkeypatch.setattr(gpu_check, "train", lambda *args: run | {"losses": [0.69140625]})
    with pytest.raises(gpu_run.Failed, match="in bf16: first loss 0.691406"):
        gpu_check.first_loss(gpu_of("cpu"), out, 60)


def test_a_run_goes_on_with_what_is_left_or_failed(tmp_path, monkeypatch):
    ran, fail = [], {"two"}

    def run(name, gpu, out, limit):
        ran.append(name)
        if name in fail:
            raise gpu_run.Failed("exit code 1")
        return "well", {"setting": name}

    sections = [gpu_check.Section(name, 50, partial(run, name)) for name in ("one", "two", "three")]
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    (tmp_path / "results").mkdir()

    def again(seconds: float = 100, only=None, again=False):
        ran.clear()
        gpu_check.run_sections(gpu_of("cpu"), tmp_path, seconds, only, again)
        return list(ran)

    assert again(seconds=gpu_check.LEAST - 1) == []
    assert again() == ["one", "two", "three"]
    fail.clear()
    assert again() == ["two"] and again() == []
    assert again(only=["three"]) == ["three"] and again(again=True) == ["one", "two", "three"]


def test_what_was_measured_is_written_down(out, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    for folder in ("bench", "docs"):
        (tmp_path / folder).mkdir()
    results = {one.name: gpu_check.result_of(out, one.name) for one in gpu_check.SECTIONS}
    runs = [results[name]["run"] for name in TRAINED]
    gpu_check.write_down(runs, results, gpu_of("h200"))
    written = [json.loads(file.read_text()) for file in sorted((tmp_path / "bench/baselines").glob("*.json"))]
    assert sorted(run["setting"] for run in written) == sorted(run["setting"] for run in runs)
    page = (tmp_path / "docs/benchmarks.md").read_text()
    assert "| fsdp2 | 2 |" in page and "| node |  |  |  |  |  |  |  | not run yet |" in page
