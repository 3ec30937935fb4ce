"""Choosing an epoch: the rule, what it does where it decides nothing, and what is refused."""

import json
import os
import shutil

import pytest

from bench.lm_eval_results import Task, write
from hermes3.cli import app
from hermes3.evaluate.select import choose, link, named, select, table
from hermes3.evaluate.setting import setting_of
from hermes3.train.checkpoints import COMPLETE

LEVELS = {1: (0.3, 0.2), 2: (0.6, 0.5), 3: (0.7, 0.4)}  # epoch -> how often choices and tool calls are right
SUITE = """\
name: two
groups:
  Choice: {tasks: {tiny_choice: acc}, num_fewshot: 0}
  Tools: {tasks: {tiny_tool_call: [valid, exact]}, num_fewshot: 0}
  Shots: {tasks: {tiny_json_mode: valid}, num_fewshot: 2, selects: false}
batch_size: 1
max_length: 8
device: cpu
dtype: float32
seed: 1
"""


def test_the_rule_by_hand():
    chosen = choose({"a": {1: 10.0, 2: 20.0, 3: 15.0}, "b": {1: 0.5, 2: 0.1, 3: 0.4}})
    assert chosen["totals"] == {1: 50.0, 2: 50.0, 3: pytest.approx(62.5)}
    assert chosen["epoch"] == 3 and chosen["notes"] == []


def test_a_group_that_is_equal_everywhere_decides_nothing():
    chosen = choose({"a": {1: 0.4, 2: 0.4}, "b": {1: 0.1, 2: 0.2}})
    assert chosen["epoch"] == 2 and chosen["totals"] == {1: 0.0, 2: 50.0}
    assert "a is 0.4 at every epoch" in chosen["notes"][0]


def test_a_single_epoch_has_no_contest():
    chosen = choose({"a": {3: 0.4}})
    assert chosen["epoch"] == 3 and chosen["totals"] == {3: None} and "nothing to choose from" in chosen["notes"][0]


def test_of_equal_epochs_the_first_is_taken_and_said():
    chosen = choose({"a": {2: 1.0, 3: 0.0, 4: 1.0}})
    assert chosen["epoch"] == 2 and "Epochs 2, 4 are equal" in chosen["notes"][0]


@pytest.mark.parametrize("lacking", [{1: 0.4}, {1: 0.4, 2: float("nan")}])
def test_a_missing_score_is_refused(lacking):
    with pytest.raises(ValueError, match="b: no score of epoch 2"):
        choose({"a": {1: 0.1, 2: 0.2}, "b": lacking})


@pytest.fixture
def run(base, tmp_path):
    """A run of three epochs, evaluated: `folder`/run and results in `folder`/N."""
    (tmp_path / "two.yml").write_text(SUITE)
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
    setting = setting_of(model, "hf", "dtype=float32", 42, None) | changes
    (folder / "run.json").write_text(json.dumps({"suite": "two", "setting": setting, "own_tasks": "x", "commands": []}))


def results(run, *epochs) -> dict:
    return {epoch: run / str(epoch) for epoch in epochs or LEVELS}


def test_an_epoch_is_chosen_recorded_and_linked(run):
    chosen = select(run / "run", run / "two.yml", results(run))
    # epoch 3 is best by choices, epoch 2 by tool calls, and nearer to the best of the other
    assert chosen["epoch"] == 2
    assert set(chosen["scores"]) == {"Choice", "Tools"}, "a group that does not select counts"
    one = json.loads(next((run / "2").rglob("results_*.json")).read_text())["results"]
    assert chosen["scores"]["Choice"][2] == one["tiny_choice"]["acc,none"]
    of_tools = one["tiny_tool_call"]
    assert chosen["scores"]["Tools"][2] == pytest.approx((of_tools["valid,none"] + of_tools["exact,none"]) / 2)
    assert json.loads((run / "run/select.json").read_text())["totals"]["2"] == chosen["totals"][2]
    assert os.readlink(run / "run/best") == "checkpoint-20"
    assert os.readlink(run / "run/best_results") == "../2"
    assert "chosen: epoch 2" in table(chosen) and f"{run}/run/best -> " in table(chosen)


def test_the_link_follows_a_later_choice(run):
    select(run / "run", run / "two.yml", results(run, 1))
    assert os.readlink(run / "run/best") == "checkpoint-10"
    chosen = select(run / "run", run / "two.yml", results(run))
    assert (run / "run/best").resolve() == run / "run/checkpoint-20"
    assert chosen["notes"] == []
    notes = select(run / "run", run / "two.yml", results(run, 1, 3))["notes"]
    assert notes == [f"Epoch 2 of {run}/run was not among them."]


def spoil(run, what):
    folder = run / "3"
    samples = next(folder.rglob("samples_tiny_tool_call_*.jsonl"))
    if what == "cut":
        samples.write_text(samples.read_text()[:-30])
    elif what == "missing task":
        path = next(folder.rglob("results_*.json"))
        found = json.loads(path.read_text())
        for part in ("results", "n-samples", "versions", "n-shot"):
            del found[part]["tiny_tool_call"]
        path.write_text(json.dumps(found))
    elif what == "shots":
        path = next(folder.rglob("results_*.json"))
        path.write_text(path.read_text().replace('"tiny_tool_call": 0', '"tiny_tool_call": 5'))
    elif what == "another judge":
        path = next(folder.rglob("results_*.json"))
        found = json.loads(path.read_text())
        found["versions"]["tiny_choice"] = "rated by another judge"
        path.write_text(json.dumps(found))
    elif what == "fewer questions":
        shutil.rmtree(folder)
        fewer = [Task("tiny_choice", 40, ("acc",), 0, 1, 20, 0.7)]
        fewer += [Task("tiny_tool_call", 400, ("valid", "exact"), 0, 1, 20, 0.4)]
        write(folder, fewer, model_name=str(run / "run/checkpoint-30"))
        record(folder, run / "run/checkpoint-30")
    elif what == "another limit":
        record(folder, run / "run/checkpoint-30", limit=10)
    elif what == "another template":
        record(folder, run / "run/checkpoint-30", chat_template_sha="0")
    elif what == "another epoch":
        record(folder, run / "run/checkpoint-20")
    elif what == "trained again":
        os.utime(run / "run/checkpoint-30/model.safetensors")
    elif what == "by hand":
        (folder / "run.json").unlink()
    elif what == "a folder":
        (run / "run/best").mkdir()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "samples_tiny_tool_call_.*: no whole record"),
        ("missing task", "Tools needs tiny_tool_call, which was not measured; .* --without Tools"),
        ("shots", "tiny_tool_call has 5 shots, Tools wants 0"),
        ("another judge", "3: Choice: tiny_choice has version rated by another judge, in .*1 it is 1"),
        ("fewer questions", "3: Choice: tiny_choice has 40 samples, not the 400 of .*1; evaluate all epochs alike"),
        ("another limit", "3: limit is 10, in .*1 it is None; evaluate all epochs alike"),
        ("another template", "chat_template_sha is 0"),
        ("another epoch", "results of .*checkpoint-20, but epoch 3 is .*checkpoint-30"),
        ("trained again", "has changed since it was evaluated"),
        ("by hand", "no run.json; evaluate with `hermes3 eval RUN --epoch 3"),
        ("a folder", "best is there and no link"),
    ],
)
def test_what_is_no_fair_contest_is_refused(what, message, run):
    spoil(run, what)
    with pytest.raises(ValueError, match=message):
        select(run / "run", run / "two.yml", results(run))


def test_a_first_look_says_that_it_is_one(run):
    for epoch in LEVELS:
        record(run / str(epoch), run / f"run/checkpoint-{epoch}0", limit=400)
    assert "Only 400 questions a task" in select(run / "run", run / "two.yml", results(run))["notes"][0]


def test_a_group_can_be_left_out_and_that_is_said(run):
    """MT-Bench, where there is no judge."""
    chosen = select(run / "run", run / "two.yml", results(run), ["Tools"])
    assert chosen["epoch"] == 3 and set(chosen["scores"]) == {"Choice"}
    assert "Chosen without Tools." in chosen["notes"]
    with pytest.raises(ValueError, match="no group is left"):
        select(run / "run", run / "two.yml", results(run), ["Tools", "Choice"])
    with pytest.raises(ValueError, match="--without Tolls: no group of two; there are Choice, Tools"):
        select(run / "run", run / "two.yml", results(run), ["Tolls"])


def test_an_epoch_that_is_none_is_named(run):
    with pytest.raises(ValueError, match="no epoch 5; there are 1, 2, 3"):
        select(run / "run", run / "two.yml", {5: run / "1"})


def test_a_link_is_relative_and_moves_with_its_folder(tmp_path):
    (tmp_path / "a/checkpoint-1").mkdir(parents=True)
    link(tmp_path / "a/best", tmp_path / "a/checkpoint-1")
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b/best").resolve() == tmp_path / "b/checkpoint-1"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [(["2"], "2: give it as EPOCH=FOLDER"), (["x=y"], "x=y: give it"), (["1=a", "1=b"], "epoch 1 is given twice")],
)
def test_results_are_named_by_their_epoch(pairs, message):
    with pytest.raises(ValueError, match=message):
        named(pairs)
    assert list(named(["3=c", "1=a"])) == [1, 3]


def test_the_verb_prints_the_table_and_json(run):
    from typer.testing import CliRunner

    pairs = [f"{epoch}={folder}" for epoch, folder in results(run).items()]
    words = ["select", str(run / "run"), "--suite", str(run / "two.yml"), *pairs]
    assert "chosen: epoch 2" in CliRunner().invoke(app, words).stdout
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["epoch"] == 2
    assert "83.89 is printed" in CliRunner().invoke(app, ["select", "--published", "table2"]).stdout
