"""The model card: its metadata are read back by huggingface_hub, its prompts are the template's."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from hermes3.cli import main
from hermes3.report.model_card import QUESTION, push, write_card

CASES = yaml.safe_load(Path(__file__).with_name("report_cases.yml").read_text(encoding="utf-8"))


@pytest.fixture
def report(tmp_path):
    """A report of one stage with one score."""
    (tmp_path / "report.json").write_text(json.dumps(CASES["card"]))
    return tmp_path / "report.json"


@pytest.fixture
def model(base, tmp_path):
    """A whole model in a folder that may be written to."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def card(model, report, recipe="recipes/8b_sft.yml", stage="SFT"):
    write_card(model, report, stage, Path(recipe), "somebody/hermes-8b")
    return ModelCard.load(model / "README.md")


def test_the_card_holds_scores_with_intervals_its_making_and_the_templates_prompts(model, report):
    written = card(model, report)
    (result,) = written.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("arc_easy", "acc_norm", 0.75)
    assert result.metric_name.endswith("95 % interval 0.6565 to 0.8251")
    assert result.metric_args == {"num_fewshot": 0, "samples": 100}
    hub = (written.data.base_model, written.data.license, written.data.pipeline_tag)
    assert hub == ("meta-llama/Llama-3.1-8B", "llama3.1", "text-generation")
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template
    for part in (*CASES["card_parts"], prompt([QUESTION], tokenize=False, add_generation_prompt=True)):
        assert part in written.text, part


def test_a_demo_has_no_base_on_the_hub(model, report):
    assert card(model, report, "recipes/tiny_sft.yml").data.base_model is None


def test_bad_input_is_refused(model, report, tmp_path):
    with pytest.raises(ValueError, match="no stage DPO; it has SFT"):
        card(model, report, stage="DPO")
    (tmp_path / "half.json").write_text(report.read_text()[:50])
    with pytest.raises(ValueError, match="half.json: not a report"):
        card(model, tmp_path / "half.json")
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        card(model, report)


def test_nothing_is_uploaded_unless_asked(model, report, monkeypatch, capsys):
    """Uploading itself needs an account; here the Hub's client stands in."""
    calls, hub = [], "huggingface_hub.HfApi"
    monkeypatch.setattr(f"{hub}.create_repo", lambda self, name, **options: calls.append((name, options)))
    monkeypatch.setattr(f"{hub}.upload_folder", lambda self, **options: calls.append(options) or "there")
    arguments = ["hermes3", "card", str(model), "--report", str(report), "--stage", "SFT"]
    arguments += ["--recipe", "recipes/8b_sft.yml", "--name", "somebody/hermes-8b"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        main()
    assert not calls and str(model / "README.md") in capsys.readouterr().out
    assert push(model, "somebody/hermes-8b") == "there"
    assert calls[0] == ("somebody/hermes-8b", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == model and "checkpoint-*" in calls[1]["ignore_patterns"]
