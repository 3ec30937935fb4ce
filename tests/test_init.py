"""`hermes3 init`: what it writes for a user's rows is read by the mix, by `check` and by `plan`."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.files import UserError, read_yaml
from hermes3.mix import spec as specs
from hermes3.plan.init import init, look
from hermes3.recipe.check import check_all
from hermes3.report import runs

CASES = yaml.safe_load((ROOT / "tests/init.yml").read_text(encoding="utf-8"))
LLAMA = "meta-llama/Llama-3.1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder that has the shipped recipes."""
    for name in ("recipes", "deepspeed_configs", "data_mixes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def rows(kind: str, words: int = 1, count: int = 1500) -> Path:
    line = json.dumps(CASES["rows"][kind]) + "\n"
    Path("rows.jsonl").write_text(line.replace("Good day", "Good day " * words) * count)
    return Path("rows.jsonl")


@pytest.mark.parametrize("case", CASES["written"], ids=str)
def test_a_spec_and_a_recipe_that_check_and_report_take(case, monkeypatch):
    kind, adapter, size, gpus, lora, batch, steps = case.values()
    monkeypatch.setattr("hermes3.plan.init.STEPS", steps)
    spec, recipe, own = init("mine", f"{LLAMA}-{size}", rows(kind, 230), gpus, "h100-80gb")
    (_, source), loaded = next(specs.load(spec).sources()), read_yaml(recipe)
    assert (source.adapter, source.path) == (adapter, "rows.jsonl")
    assert "1,500 rows" in spec.read_text() and ("does not read: passage" in spec.read_text()) == (kind == "unread")
    assert specs.load(spec).tokenizer == own == Path(loaded["base_model"])
    hardware = loaded["hardware"]
    assert hardware["nodes"] * hardware["gpus_per_node"] == gpus
    assert gpus * loaded["micro_batch_size"] * loaded["gradient_accumulation_steps"] == batch
    assert ("adapter" in loaded) == lora and "reproduces" not in loaded
    [report] = check_all([recipe], None)
    assert report.errors == []
    monkeypatch.setattr(runs, "ROOT", Path.cwd())
    assert runs.recipe_of(Path("outputs/mine/sft")) == recipe


def test_a_small_base_trains_on_cpus(base):
    spec, recipe, own = init("mine", str(base), rows("messages", count=100), 1, "cpu")
    [report] = check_all([recipe], None)
    assert report.errors == [] and own == base and "# size:" not in recipe.read_text()
    assert read_yaml(recipe)["sequence_len"] == specs.load(spec).sequence_len == 1024


def test_tokens_are_counted_as_they_train(base, renderer):
    call = {"type": "function", "function": {"name": "greet", "arguments": {"whom": "Ida"}}}
    tools = [{"type": "function", "function": {"name": "greet", "parameters": {"type": "object", "properties": {}}}}]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    Path("rows.jsonl").write_text(json.dumps({"messages": turns, "tools": tools}))
    assert look(Path("rows.jsonl"), base)["tokens"] == len(renderer.render([(turns, tools)])[0].input_ids)


def test_what_it_cannot_write_is_refused():
    init("mine", f"{LLAMA}-8B", rows("messages", 230), 8, "h100-80gb")
    for case in CASES["refused"]:
        with pytest.raises(UserError, match=case["message"]):
            init(case["name"], f"{LLAMA}-8B", rows(case["rows"]), case["gpus"], "h100-80gb")
    assert not Path("other").exists()
