"""`hermes3 init`: what it writes for a user's rows is read by the mix, by `check` and by `plan`."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from hermes3.files import UserError, read_yaml
from hermes3.mix import spec as specs
from hermes3.plan.init import init
from hermes3.recipe.check import check_all
from hermes3.report import runs

ROWS = {
    "messages": {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day"}]},
    "instruction": {"instruction": "Greet", "input": "", "output": "Good day"},
    "question_answer": {"question": "Hello", "answer": "Good day"},
    "unread": {"question": "Hello", "answer": "Good day", "passage": "It is May."},
    "nothing": {"text": "Hello"},
    "preference": {"prompt": "Hello", "chosen": "Good day", "rejected": "No"},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder that has the shipped recipes."""
    for name in ("recipes", "deepspeed_configs", "data_mixes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def rows(adapter: str, n_rows: int = 1500) -> Path:
    Path("rows.jsonl").write_text(f"{json.dumps(ROWS[adapter])}\n" * n_rows)
    return Path("rows.jsonl")


@pytest.mark.parametrize(
    ("adapter", "size", "gpus", "trains", "batch"),
    [
        ("messages", "8B", 8, "everything", 48),
        ("sharegpt", "8B", 1, "LoRA", 48),
        ("unread", "8B", 1, "LoRA", 48),
        ("instruction", "70B", 8, "LoRA", 48),
        ("question_answer", "8B", 64, "everything", 64),
    ],
)
def test_a_spec_and_a_recipe_that_check_and_report_take(adapter, size, gpus, trains, batch, monkeypatch):
    spec, recipe, own = init("mine", f"meta-llama/Llama-3.1-{size}", rows(adapter), gpus, "h100-80gb")
    (_, source), loaded = next(specs.load(spec).sources()), read_yaml(recipe)
    known = {"sharegpt": "messages", "unread": "question_answer"}
    assert (source.adapter, source.path) == (known.get(adapter, adapter), "rows.jsonl")
    assert "1,500 rows" in spec.read_text() and ("does not read: passage" in spec.read_text()) == (adapter == "unread")
    assert specs.load(spec).tokenizer == own == Path(loaded["base_model"])
    hardware = loaded["hardware"]
    assert hardware["nodes"] * hardware["gpus_per_node"] == gpus
    assert gpus * loaded["micro_batch_size"] * loaded["gradient_accumulation_steps"] == batch
    assert ("adapter" in loaded) == (trains == "LoRA") and "reproduces" not in loaded
    [report] = check_all([recipe], None)
    assert report.errors == []
    monkeypatch.setattr(runs, "ROOT", Path.cwd())
    assert runs.recipe_of(Path("outputs/mine/sft")) == recipe


def test_what_it_cannot_write_is_refused():
    init("mine", "meta-llama/Llama-3.1-8B", rows("messages"), 8, "h100-80gb")
    llama = "meta-llama/Llama-3.1-8B"
    for name, base, adapter, gpus, message in [
        ("mine", llama, "messages", 8, "mine_mix.yml is there"),
        ("a/b", llama, "messages", 8, "a/b: give a name of letters"),
        ("other", llama, "messages", 12, "--gpus 12"),
        ("other", llama, "preference", 8, "preference pairs"),
        ("other", llama, "nothing", 8, "none of its first 1000 rows fits"),
        ("other", "mistralai/Mistral-7B", "messages", 8, "mistralai/Mistral-7B"),
    ]:
        data = rows(adapter)
        with pytest.raises(UserError, match=message):
            init(name, base, data, gpus, "h100-80gb")
    assert not Path("other").exists()
