"""Choosing an epoch: the rule, what it does where it decides nothing, and what is refused."""

import json
import os
import re
import shutil

import pytest
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from bench.lm_eval_results import Task, write
from hermes3.cli import app
from hermes3.evaluate.run import setting_of
from hermes3.evaluate.select import choose, select
from hermes3.files import UserError
from hermes3.results.suite import load
from hermes3.train.checkpoints import COMPLETE

LEVELS = {1: (0.3, 0.2), 2: (0.6, 0.5), 3: (0.7, 0.4)}  # epoch -> how often choices and tool calls are right
DATA = yaml.safe_load((ROOT / "tests/evaluation.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("scores", "epoch", "totals", "note"), DATA["choices"])
def test_the_rule_by_hand(scores, epoch, totals, note):
    chosen = choose(scores)
    assert chosen["epoch"] == epoch and chosen["totals"] == pytest.approx(totals)
    assert note in " ".join(chosen["notes"]) and bool(note) == bool(chosen["notes"])


@pytest.mark.parametrize("lacking", [{1: 0.4}, {1: 0.4, 2: float("nan")}])
def test_a_missing_score_is_refused(lacking):
    with pytest.raises(ValueError, match="b: no score of epoch 2"):
        choose({"a": {1: 0.1, 2: 0.2}, "b": lacking})


@pytest.fixture
def run(base, tmp_path):
    """A run of three epochs, evaluated: `folder`/run and results in `folder`/N."""
    (tmp_path / "two.yml").write_text(yaml.safe_dump(DATA["suite"], sort_keys=False))
    for epoch, (choice, tools) in LEVELS.items():
        checkpoint = tmp_path / f"run/checkpoint-{10 * epoch}"
        shutil.copytree(base, checkpoint)
        (checkpoint / COMPLETE).write_text(json.dumps({"step": 10 * epoch, "epoch": float(epoch)}))
        tasks = [
            Task("tiny_choice", 400, ("acc",), 0, 1, 20, choice),
            Task("tiny_tool_call", 400, ("valid", "exact"), 0, 1, 20, tools),
        ]
        write(tmp_path / str(epoch), tasks, model_name=str(checkpoint))
        record(tmp_path / str(epoch), checkpoint)
    return tmp_path


def record(folder, model, **changes):
    """The run.json that `hermes3 eval` leaves."""
    setting = setting_of(model, load("tiny"), "hf", "dtype=float32") | changes
    (folder / "run.json").write_text(json.dumps({"suite": "two", "setting": setting}))


def results(run, *epochs) -> dict:
    return {epoch: run / str(epoch) for epoch in epochs or LEVELS}


def test_an_epoch_is_chosen_recorded_linked_and_printed(run):
    select(run / "run", run / "two.yml", results(run, 1))
    assert os.readlink(run / "run/best") == "checkpoint-10"
    chosen = select(run / "run", run / "two.yml", results(run))
    # epoch 3 is best by choices, epoch 2 by tool calls, and nearer to the best of the other
    assert chosen["epoch"] == 2 and "a little too high" in chosen["notes"][0]
    assert set(chosen["scores"]) == {"Choice", "Tools"}, "a group that does not select counts"
    one = json.loads(next((run / "2").rglob("results_*.json")).read_text())["results"]
    assert chosen["scores"]["Choice"][2] == one["tiny_choice"]["acc,none"]
    of_tools = one["tiny_tool_call"]
    assert chosen["scores"]["Tools"][2] == pytest.approx((of_tools["valid,none"] + of_tools["exact,none"]) / 2)
    assert json.loads((run / "run/select.json").read_text())["totals"]["2"] == chosen["totals"][2]
    assert os.readlink(run / "run/best") == "checkpoint-20" and os.readlink(run / "run/best_results") == "../2"
    pairs = [f"{epoch}={folder}" for epoch, folder in results(run).items()]
    words = ["select", str(run / "run"), "--suite", str(run / "two.yml"), *pairs]
    printed = CliRunner().invoke(app, words).stdout
    assert "chosen: epoch 2" in printed and f"{run}/run/best -> " in printed
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["epoch"] == 2
    # what the choice leaves out is said
    notes = select(run / "run", run / "two.yml", results(run, 1, 3))["notes"]
    assert notes[0] == f"Epoch 2 of {run}/run was not among them."
    for epoch in LEVELS:
        record(run / str(epoch), run / f"run/checkpoint-{epoch}0", limit=400)
    assert "Only 400 questions per task" in select(run / "run", run / "two.yml", results(run))["notes"][0]


def edit(folder, part, **tasks):
    """Other values of tasks in one part of the results file below `folder`; None takes a task out."""
    path = next(folder.rglob("results_*.json"))
    content = json.loads(path.read_text())
    content[part] = {task: value for task, value in (content[part] | tasks).items() if value is not None}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: edit(run / "3", "results", tiny_tool_call=None), "3: Tools, .*: not measured .*--without Tools"),
        (lambda run: edit(run / "3", "n-shot", tiny_tool_call=5), "3: Tools, .*tiny_tool_call: not measured on"),
        (lambda run: edit(run / "3", "versions", tiny_choice="by a"), "3: Choice, .*: task versions 1.0 and by a"),
        (lambda run: record(run / "3", run / "run/checkpoint-30", limit=10), "3: limit is 10, in .*1 it is None"),
        (lambda run: record(run / "3", run / "run/checkpoint-20"), "of .*checkpoint-20, but epoch 3 is .*-30"),
        (lambda run: os.utime(run / "run/checkpoint-30/model.safetensors"), "has changed since it was evaluated"),
        (lambda run: (run / "3/run.json").unlink(), "no run.json; evaluate with `hermes3 eval RUN --epoch 3"),
        (lambda run: (run / "run/best").mkdir(), "best is there and no link"),
    ],
)
def test_what_is_no_fair_contest_is_refused(spoil, message, run):
    spoil(run)
    with pytest.raises(UserError, match=message):
        select(run / "run", run / "two.yml", results(run))


def test_a_group_can_be_left_out_and_of_a_score_that_should_be_low_the_lowest_is_best(run):
    """Left out, as MT-Bench where there is no judge: that is said."""
    chosen = select(run / "run", run / "two.yml", results(run), ["Tools"])
    assert chosen["epoch"] == 3 and set(chosen["scores"]) == {"Choice"}
    assert "Chosen without Tools." in chosen["notes"]
    with pytest.raises(ValueError, match="no group is left"):
        select(run / "run", run / "two.yml", results(run), ["Tools", "Choice"])
    with pytest.raises(ValueError, match="--without Tolls: no group of two; there are Choice, Tools"):
        select(run / "run", run / "two.yml", results(run), ["Tolls"])
    with pytest.raises(ValueError, match="no epoch 5; there are 1, 2, 3"):
        select(run / "run", run / "two.yml", {5: run / "1"})
    for folder in results(run).values():
        edit(folder, "higher_is_better", tiny_choice={"acc": False})
    chosen = select(run / "run", run / "two.yml", results(run), ["Tools"])
    assert chosen["epoch"] == 1 and chosen["scores"]["Choice"][1] > 0


def test_a_published_table_prints_on_its_own_scale():
    lines = CliRunner().invoke(app, ["select", "--published", "table2"]).stdout.splitlines()
    printed = {(parts := re.split(r"  +", line))[0]: parts[1:] for line in lines}
    assert printed["GPT4All"] == ["76.85", "76.70", "76.59", "73.63"]
    assert printed["MT-Bench"] == ["8.37", "8.59", "8.99", "8.67"]
    assert printed["normalised mean"] == ["27.50", "63.65", "83.59", "37.10"] and "chosen: epoch 3" in printed
    refused = CliRunner().invoke(app, ["select", "--published", "table5"])
    assert "its columns are models, not the epochs of one run" in str(refused.exception)
