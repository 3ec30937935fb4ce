"""The whole chain, run once by the `chain` fixture through `make demo`: what it leaves, and what it has learnt."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("chain")]


@pytest.fixture(scope="module")
def report(chain) -> dict:
    return json.loads((TINY / "report/report.json").read_text())


def scores(report: dict, task: str, metric: str) -> dict:
    return next(row["scores"] for row in report["scores"]["rows"] if (row["task"], row["metric"]) == (task, metric))


def history(folder: Path) -> list[dict]:
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((last / "trainer_state.json").read_text())["log_history"]


def train(recipe: Path, *overrides: str) -> None:
    """The launch that the Makefile and the README use."""
    command = [Path(sys.executable).with_name("accelerate"), "launch", "-m", "axolotl.cli.train", recipe, *overrides]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_an_interrupted_run_keeps_the_stages_that_were_done(chain):
    if not chain["interrupted"]:
        pytest.skip("the chain had run before this session, nothing was interrupted (`make clean` starts from nothing)")
    assert {"01-data", "03-base", "04-mix-sft", "06-eval-base"} <= set(chain["interrupted"])
    assert "07-sft" not in chain["interrupted"]
    for name, ended in chain["interrupted"].items():
        assert (TINY / "stages" / name).stat().st_mtime == ended, f"{name} was done again"


def test_a_finished_run_has_nothing_to_do():
    dry = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "stage.sh" not in dry.stdout


def test_the_mix_has_every_category_and_enough_rows():
    manifest = json.loads((ROOT / "mixes/tiny_sft/manifest.json").read_text())
    assert len(manifest["categories"]) == 8
    assert all(part["rows"] > 0 for part in manifest["categories"].values())
    assert manifest["total"]["rows"] >= 2000
    assert json.loads((ROOT / "mixes/tiny_dpo/manifest.json").read_text())["total"]["rows"] >= 400
    held_out = sum(len(file.read_text().splitlines()) for file in (TINY / "data/heldout").glob("*.jsonl"))
    assert held_out >= 200


@pytest.mark.parametrize("name", ["tiny_sft", "tiny_dpo"])
def test_a_mix_built_again_is_byte_identical(name, tmp_path):
    from hermes3.mix.build import build

    build(ROOT / f"data_mixes/{name}.yml", tmp_path / "again", quiet=True)
    files = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert len(files) == 7  # the mark of what made them among them
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (ROOT / "mixes" / name / file).read_bytes(), file


def test_sft_trained_on_packed_sequences():
    tokens = json.loads((ROOT / "mixes/tiny_sft/manifest.json").read_text())["total"]["tokens"]
    steps = history(TINY / "sft")[-1]["step"]
    # four epochs of 1,024-token packs; unpacked it would be one step a row, eleven times as many
    assert 4 * tokens / 1024 <= steps < 4 * tokens / 1024 * 1.05


@pytest.mark.parametrize(("phase", "steps", "logged"), [("sft", 60, 6), ("dpo", 4, 4)])
def test_training_run_again_has_equal_losses(phase, steps, logged, tmp_path):
    # both runs stay in the warmup, whose learning rates do not depend on the number of steps: they are the whole run's
    train(
        f"recipes/tiny_{phase}.yml",
        f"--max_steps={steps}",
        f"--output_dir={tmp_path}/{phase}",
        f"--dataset_prepared_path={tmp_path}/prepared",
        "--use_wandb=false",
    )
    again = [entry["loss"] for entry in history(tmp_path / phase) if "loss" in entry]
    first = [entry["loss"] for entry in history(TINY / phase) if "loss" in entry]
    assert len(again) == logged
    assert again == first[:logged]


def test_first_dpo_loss_is_ln_2():
    first = history(TINY / "dpo")[0]
    assert first["step"] == 1
    assert round(first["loss"], 4) == round(math.log(2), 4)


def test_sft_learns(report):
    def disjoint(task, metric):
        row = scores(report, task, metric)
        return row["SFT"]["low"] > row["base"]["high"]

    assert disjoint("tiny_choice", "acc")
    assert disjoint("tiny_tool_call", "valid")
    assert disjoint("tiny_json_mode", "valid")


def test_dpo_raises_preference_accuracy(report):
    row = scores(report, "tiny_preference", "acc")
    assert row["SFT+DPO"]["low"] > row["SFT"]["high"]


def test_dpo_leaves_the_end_of_turn(report):
    """SFT teaches to stop; DPO, whose loss compares answers and not when they end, must not unlearn it."""
    row = next(row for row in report["scores"]["rows"] if row["task"] == "tiny_end_of_turn")
    base, sft, dpo = (row["scores"][stage] for stage in ("base", "SFT", "SFT+DPO"))
    assert sft["low"] > base["high"]
    assert dpo["low"] > 0.9
    assert next(pair for pair in row["comparisons"] if pair["after"] == "SFT+DPO")["mark"] != "worse"


def test_the_dpo_folder_holds_the_adapter_alone():
    assert [path.name for path in (TINY / "dpo").glob("*.safetensors*")] == ["adapter_model.safetensors"]


def test_prompts_went_through_the_chat_template():
    samples = sorted((TINY / "sft/best_results").rglob("samples_tiny_tool_call_*.jsonl"))[-1]
    prompt = json.loads(samples.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("<|begin_of_text|><|im_start|>system\nYou are a function calling AI model.")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|begin_of_text|>") == 1


def test_the_merged_model_is_whole():
    from safetensors import safe_open

    def names(folder):
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            return set(tensors.keys())

    assert names(TINY / "dpo/merged") == names(TINY / "sft/best")


def test_dpo_starts_from_the_epoch_that_the_rule_chose():
    from hermes3.evaluate.select import choose
    from hermes3.train.checkpoints import epochs_of

    chosen = json.loads((TINY / "sft/select.json").read_text())
    assert set(chosen["totals"]) == set("1234")
    scores = {group: {int(epoch): one for epoch, one in given.items()} for group, given in chosen["scores"].items()}
    assert choose(scores)["epoch"] == chosen["epoch"]
    assert (TINY / "sft/best").resolve() == epochs_of(TINY / "sft")[chosen["epoch"]].resolve()
    assert (TINY / "sft/best_results").resolve() == TINY / f"eval/epoch_{chosen['epoch']}"
    assert yaml.safe_load((ROOT / "recipes/tiny_dpo.yml").read_text())["base_model"] == "outputs/tiny/sft/best"


def test_wandb_runs_are_on_disk():
    runs = list((TINY / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) >= 2
    assert all(run.stat().st_size > 0 for run in runs)


def test_the_report_is_one_page_without_outside_requests(report):
    page = (TINY / "report/index.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//|@import|url\(\s*["']?https?:""", page)
    assert "base" in page and "SFT+DPO" in page
    for stage in ("base", "SFT", "SFT+DPO"):
        assert set(scores(report, "tiny_choice", "acc")[stage]) >= {"value", "low", "high"}
    assert len(report["runs"]) == 2 and len(report["mixes"]) == 2
    assert any("accelerate launch -m axolotl.cli.train recipes/tiny_sft.yml" in line for line in report["commands"])


def test_the_last_lines_say_where_the_report_is_and_the_scores(chain):
    tail = chain["log"][-800:]
    assert "outputs/tiny/report/index.html" in tail
    for stage in ("base", "SFT", "SFT+DPO"):
        assert re.search(rf"^{re.escape(stage)} +\d+\.\d %", tail, re.MULTILINE), tail


def test_real_data_trains(tmp_path):
    """open_small.yml on the files that it declares, if they are beside this checkout, and 20 steps on the result."""
    data = ROOT.parent / "shared/data"
    if not data.is_dir():
        pytest.skip(f"no {data}: the public files that data_mixes/open_small.yml declares are not on this machine")
    from hermes3.mix.build import build

    manifest = build(ROOT / "data_mixes/open_small.yml", tmp_path / "open", data_root=data, quiet=True).manifest
    assert all(part["rows"] > 100 for part in manifest["categories"].values())
    assert abs(manifest["categories"]["math"]["tokens"] - 300_000) < 1024
    assert not any(reason.startswith("adapt/") for reason in manifest["rejects"]), manifest["rejects"]

    recipe = yaml.safe_load((ROOT / "recipes/tiny_sft.yml").read_text())
    recipe["datasets"][0]["path"] = str(tmp_path / "open/train")
    recipe |= {"dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "sft")}
    recipe |= {"max_steps": 20, "logging_steps": 1, "use_wandb": False}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    train(tmp_path / "recipe.yml")
    losses = [entry["loss"] for entry in history(tmp_path / "sft") if "loss" in entry]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1


def test_the_lm_eval_command_is_plain():
    command = [Path(sys.executable).with_name("hermes3"), "eval", "outputs/tiny/sft/best", "--suite", "tiny"]
    shown = subprocess.run([*command, "--out", "x", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert " lm_eval run --model hf " in shown.stdout
    assert "--apply_chat_template" in shown.stdout
