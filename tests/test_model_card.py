"""The model card: its metadata are read back by huggingface_hub, its prompts are the template's."""

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from lm_eval_files import CASES
from transformers import AutoTokenizer

from hermes3.files import UserError
from hermes3.report.model_card import write_card
from hermes3.report.tables import NAMES


@pytest.fixture
def model(base, tmp_path):
    """A whole model in a folder that may be written to."""
    return Path(shutil.copytree(base, tmp_path / "model", copy_function=os.symlink))


def card(model, recipe="recipes/8b_sft.yml", stage="SFT", name="somebody/hermes-8b"):
    """The card by a report of one stage, which has one score over all questions of its task."""
    report = model.with_name("report.json")
    report.write_text(json.dumps(CASES["card"]))
    write_card(model, report, stage, Path(recipe), name)
    return ModelCard.load(model / "README.md")


def test_the_card_holds_scores_with_intervals_its_making_and_the_templates_prompts(model):
    written = card(model)
    (result,) = written.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("arc_easy", "acc_norm", 0.75)
    assert (written.data.model_name, result.dataset_name) == ("hermes-8b", "ARC-E")
    assert result.metric_name == "accuracy, 95 % interval 0.6565 to 0.8251"
    assert result.metric_args == {"num_fewshot": 0, "samples": 100}
    hub = (written.data.base_model, written.data.license, written.data.pipeline_tag)
    assert hub == ("meta-llama/Llama-3.1-8B", "llama3.1", "text-generation")
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template
    question = prompt([NAMES["question"]], tokenize=False, add_generation_prompt=True)
    for part in (*CASES["card_parts"], question):
        assert part in written.text, part


def test_a_demo_states_no_base_no_licence_and_no_language_that_nothing_names(model):
    written = card(model, "recipes/tiny_sft.yml")
    assert (written.data.base_model, written.data.license, written.data.language) == (None, None, None)
    assert "No licence is stated here" in written.text and "No language is stated" in written.text


def test_language_and_licences_are_those_of_the_mix(model, tmp_path, monkeypatch):
    sources = [{"licence": "cc-by-nc-4.0", "rows_kept": 3}, {"licence": "mit", "rows_kept": 0}]
    mix = CASES["card"]["mixes"][0] | {"folder": str(tmp_path), "sources": sources}
    monkeypatch.setitem(CASES["card"], "mixes", [mix])
    (tmp_path / "README.md").write_text("---\nlanguage:\n- de\n- und\n---\n# A mix\n")
    written = card(model)
    assert written.data.language == ["de"] and "Licences of the mixes' sources: cc-by-nc-4.0." in written.text


@pytest.mark.parametrize("name", CASES["card_names"])
def test_a_name_that_is_none_of_the_hubs_is_refused_before_anything_is_written(model, name):
    with pytest.raises(UserError, match="--name"):
        card(model, name=name)
    assert not (model / "README.md").exists()


def test_a_stage_that_the_report_has_not_is_refused(model):
    with pytest.raises(UserError, match="no stage DPO; it has SFT"):
        card(model, stage="DPO")
