"""The whole chain, run once by the `chain` fixture through `make demo`: what it leaves, and what it has learnt."""

import filecmp
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY
from safetensors import safe_open

from hermes3.evaluate.select import choose
from hermes3.mix.build import build
from hermes3.train.checkpoints import epochs_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("chain")]
STAGES = ("base", "SFT", "SFT+DPO")


def load(name: str) -> dict:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def row_of(task: str, metric: str) -> dict:
    rows = load("outputs/tiny/report/report.json")["scores"]["rows"]
    return next(row for row in rows if (row["task"], row["metric"]) == (task, metric))


def history(folder: Path) -> list[dict]:
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return load(last / "trainer_state.json")["log_history"]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in history(folder) if "loss" in entry]


def train(recipe: Path, *overrides: str) -> None:
    """The launch that the Makefile and the README use."""
    command = [Path(sys.executable).with_name("accelerate"), "launch", "-m", "axolotl.cli.train", recipe, *overrides]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_an_interrupted_run_keeps_the_stages_that_were_done_and_a_finished_one_has_nothing_to_do(chain):
    dry = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "stage.sh" not in dry.stdout
    if not chain["interrupted"]:
        pytest.skip("the chain had run before this session, nothing was interrupted (`make clean` starts from nothing)")
    assert {"01-data", "03-base", "04-mix-sft", "06-eval-base"} <= set(chain["interrupted"])
    assert "07-sft" not in chain["interrupted"]
    for name, ended in chain["interrupted"].items():
        assert (TINY / "stages" / name).stat().st_mtime == ended, f"{name} was done again"


@pytest.mark.parametrize(("name", "categories", "rows"), [("tiny_sft", 8, 2000), ("tiny_dpo", 1, 400)])
def test_a_mix_has_every_category_and_enough_rows_and_built_again_it_is_byte_identical(
    name, categories, rows, tmp_path
):
    manifest = load(f"mixes/{name}/manifest.json")
    assert len(manifest["categories"]) >= categories and manifest["total"]["rows"] >= rows
    assert all(part["rows"] > 0 for part in manifest["categories"].values())
    build(ROOT / f"data_mixes/{name}.yml", tmp_path / "again", quiet=True)
    files = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert len(files) == 7  # the mark of what made them among them
    assert filecmp.cmpfiles(tmp_path / "again", ROOT / "mixes" / name, files, shallow=False) == (files, [], [])


def test_sft_trained_on_packed_sequences_and_dpo_begins_at_ln_2():
    tokens = load("mixes/tiny_sft/manifest.json")["total"]["tokens"]
    steps = history(TINY / "sft")[-1]["step"]
    # four epochs of 1,024-token packs; unpacked it would be one step a row, eleven times as many
    assert 4 * tokens / 1024 <= steps < 4 * tokens / 1024 * 1.05
    first = history(TINY / "dpo")[0]
    assert first["step"] == 1 and round(first["loss"], 4) == round(math.log(2), 4)


@pytest.mark.parametrize(("phase", "steps", "logged"), [("sft", 60, 6), ("dpo", 4, 4)])
def test_training_run_again_has_equal_losses(phase, steps, logged, tmp_path):
    # both runs stay in the warmup, whose learning rates do not depend on the number of steps: they are the whole run's
    folders = (f"--output_dir={tmp_path}/{phase}", f"--dataset_prepared_path={tmp_path}/prepared")
    train(f"recipes/tiny_{phase}.yml", f"--max_steps={steps}", *folders, "--use_wandb=false")
    again = losses(tmp_path / phase)
    assert len(again) == logged
    assert again == losses(TINY / phase)[:logged]


@pytest.mark.parametrize(
    ("task", "metric", "before", "after"),
    [
        ("tiny_choice", "acc", "base", "SFT"),
        ("tiny_tool_call", "valid", "base", "SFT"),
        ("tiny_json_mode", "valid", "base", "SFT"),
        ("tiny_end_of_turn", "ended", "base", "SFT"),
        ("tiny_preference", "acc", "SFT", "SFT+DPO"),
    ],
)
def test_a_stage_learns_what_it_trains(task, metric, before, after):
    scores = row_of(task, metric)["scores"]
    assert scores[after]["low"] > scores[before]["high"]


def test_dpo_leaves_the_end_of_turn():
    """DPO, whose loss compares answers and not when they end, must not unlearn it."""
    row = row_of("tiny_end_of_turn", "ended")
    assert row["scores"]["SFT+DPO"]["low"] > 0.9
    assert next(pair for pair in row["comparisons"] if pair["after"] == "SFT+DPO")["mark"] != "worse"


def test_dpo_starts_from_the_chosen_epoch_and_leaves_an_adapter_and_a_whole_merged_model():
    chosen = load("outputs/tiny/sft/select.json")
    scores = {group: {int(epoch): one for epoch, one in values.items()} for group, values in chosen["scores"].items()}
    assert set(chosen["totals"]) == set("1234") and choose(scores)["epoch"] == chosen["epoch"]
    assert (TINY / "sft/best").resolve() == epochs_of(TINY / "sft")[chosen["epoch"]].resolve()
    assert (TINY / "sft/best_results").resolve() == TINY / f"eval/epoch_{chosen['epoch']}"
    assert yaml.safe_load((ROOT / "recipes/tiny_dpo.yml").read_text())["base_model"] == "outputs/tiny/sft/best"
    assert [path.name for path in (TINY / "dpo").glob("*.safetensors*")] == ["adapter_model.safetensors"]
    models = [safe_open(TINY / folder / "model.safetensors", "pt") for folder in ("dpo/merged", "sft/best")]
    assert set(models[0].keys()) == set(models[1].keys())


def test_the_report_and_the_last_lines_have_the_scores_and_wandb_has_runs(chain):
    report = load("outputs/tiny/report/report.json")
    assert len(report["runs"]) == 2 and len(report["mixes"]) == 2
    assert any("accelerate launch -m axolotl.cli.train recipes/tiny_sft.yml" in line for line in report["commands"])
    tail = chain["log"][-800:]
    assert "outputs/tiny/report/index.html" in tail
    for stage in STAGES:
        assert {"value", "low", "high"} <= set(row_of("tiny_choice", "acc")["scores"][stage])
        assert re.search(rf"^{re.escape(stage)} +\d+\.\d %", tail, re.MULTILINE), tail
    runs = list((TINY / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) >= 2 and all(run.stat().st_size > 0 for run in runs)
