"""The report on input that is not as it should be: refused, or called not comparable in words; never averaged."""

import json

import pytest
from lm_eval_files import CASES, DATE, write_report, write_run, write_scores
from typer.testing import CliRunner

from hermes3.cli import app
from hermes3.files import UserError
from hermes3.report import words
from hermes3.report.tables import score_table
from hermes3.results.comparable import why_not
from hermes3.results.groups import Group
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import Suite

LATER = "2025-03-01T00-00-00.000001"
TASKS = {"a": {"acc": 60}, "b": {"acc": 50}}
HARMS = {
    "cut": lambda text: text[: int(0.7 * len(text))],
    "without the last line": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "the first line again": lambda text: "".join([*(lines := text.splitlines(keepends=True))[:-1], lines[0]]),
    "all right": lambda text: text.replace("0.0", "1.0"),
}


@pytest.fixture
def folder(tmp_path):
    return write_scores(tmp_path / "SFT", TASKS)


def samples(folder):
    return folder / "outputs__model" / f"samples_a_{DATE}.jsonl"


def refused(folder, *parts):
    with pytest.raises(UserError) as error:
        read_evaluation("SFT", folder)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("case", CASES["damaged"], ids=lambda case: f"{case['file']}, {case['harm']}")
def test_damaged_files_are_refused(folder, case):
    path = samples(folder) if case["file"] == "samples" else folder / "outputs__model" / f"results_{DATE}.json"
    path.write_text(HARMS.get(case["harm"], lambda _: case["harm"])(path.read_text()))
    refused(folder, *case["words"])


def test_numbers_that_json_has_not_are_no_damage(folder):
    """Python writes NaN and Infinity, and whole numbers of any length: a question may hold them."""
    text = samples(folder).read_text().replace('"doc": {}', f'"doc": {{"x": NaN, "y": -Infinity, "z": {10**30}}}', 1)
    samples(folder).write_text(text)
    assert read_evaluation("SFT", folder).scores["a", "acc", "none"].value == 0.6


@pytest.mark.parametrize("case", CASES["mixtures"], ids=lambda case: case["words"])
def test_two_of_a_kind_in_one_folder(folder, case):
    """Another task, evaluated later, of another model or by other means; or the same tasks of another model."""
    write_scores(folder / "more", {"c": {"acc": 10}}, date=LATER, **case["fact"])
    refused(folder, f"results of {case['words']} in one folder", *case["fact"].values(), "a folder of its own")
    if "model_name" in case["fact"]:
        write_scores(folder / "more", TASKS, date=LATER, **case["fact"])
        refused(folder, "two models")


def test_mt_bench_of_a_served_model_is_the_stages(folder):
    """An endpoint calls the model by another name, and shows no template; a folder's name must be the stage's."""
    facts = {"model_name": "hermes3-8b", "chat_template_sha": None}
    facts["mt_bench"] = {"answered_by": {"endpoint": "http://x"}, "judge": {"model": "a judge"}}
    write_scores(folder / "mt_bench", {"mt_bench": {"score": 80}}, date=LATER, **facts)
    (stage,) = write_report(folder / "report", {"SFT": folder})["evaluations"]
    assert stage["tasks"].keys() == {"a", "b", "mt_bench"} and stage["tasks"]["mt_bench"]["judge"] == "a judge"
    assert stage["chat_template_sha"] is not None
    note = "mt_bench of SFT was answered by hermes3-8b at http://x, which is taken for its model."
    assert note in (folder / "report/index.html").read_text()
    facts["mt_bench"]["answered_by"]["endpoint"] = None
    write_scores(folder / "mt_bench", {"mt_bench": {"score": 80}}, date=LATER, **facts)
    refused(folder, "two models")


def test_newer_results_of_a_task_replace_it_and_no_other_number_of_shots(folder):
    for shots, right, values in ((5, 80, {"a": 0.8, "a (0-shot)": 0.6, "b": 0.5}), (0, 70, {"a": 0.7, "b": 0.5})):
        write_scores(folder / "later", {"a": {"acc": right}}, date=LATER, shots=shots)
        stage = read_evaluation("SFT", folder)
        assert {key[0]: score.value for key, score in stage.scores.items()} == values
        assert stage.tasks["a"]["n_shot"] == shots
    assert stage.skipped == [f"outputs__model/results_{DATE}.json: newer results hold a"]


@pytest.mark.parametrize("case", CASES["unlike"], ids=lambda case: case["reason"])
def test_stages_that_were_not_evaluated_alike(folder, tmp_path, case):
    after = write_scores(tmp_path / "DPO", {task: {"acc": 40} for task in TASKS}, **case["facts"])
    table = score_table([read_evaluation("SFT", folder), read_evaluation("SFT+DPO", after)], [])
    pair = {"before": "SFT", "after": "SFT+DPO", "mark": "not comparable", "reason": case["reason"]}
    assert [row["comparisons"] for row in table["rows"]] == [[pair], [pair]]
    assert table["means"]["stages"] == {}
    sentence = f"Not comparable between SFT and SFT+DPO: a and b ({case['reason']})."
    assert words.step(table["rows"], 0) == sentence


def test_prompts_that_no_setting_explains(folder, tmp_path):
    for stage, different in ((folder, 0), (write_scores(tmp_path / "DPO", TASKS), 30)):
        text = samples(stage).read_text().replace('"doc": {}', '"prompt_hash": "x"')
        samples(stage).write_text(text.replace('"x"', '"y"', different))
    stages = read_evaluation("SFT", folder), read_evaluation("SFT+DPO", tmp_path / "DPO")
    reasons = [why_not(*stages, Group(task, ((task, "acc", "none"),))) for task in TASKS]
    assert reasons == ["30 of 100 prompts differ", None]


def test_seeds(folder, tmp_path):
    """60, 64 and 65 of 100: mean 63, the stage's score, deviation 2.65; a seed evaluated otherwise keeps its column."""
    seeds = [folder] + [write_scores(tmp_path / str(k), {"a": {"acc": k}, "b": {"acc": 50}}) for k in (64, 65)]
    seeds.insert(1, write_scores(tmp_path / "other", TASKS, chat_template_sha="f" * 64))
    groups = {name.upper(): {"tasks": {name: "acc"}, "num_fewshot": 0} for name in TASKS}
    suite = Suite(name="s", groups=groups, batch_size=1, max_length=1, device="cpu", dtype="float32", seed=1)
    report = write_report(tmp_path / "out", {"SFT": seeds}, suites=(suite,))
    a, b = report["seeds"][0]["rows"]
    assert (a["values"], a["n"]) == ([0.6, None, 0.64, 0.65], 3)
    assert (a["mean"], a["deviation"], b["deviation"]) == (pytest.approx(0.63), pytest.approx(0.0264575), 0)
    assert a["sampling"] == pytest.approx(0.048, abs=0.001)
    assert a["left_out"] == ["SFT, seed 2: chat templates 01234567 and ffffffff"]
    assert f"over 3 of 4 seeds; left out: {a['left_out'][0]}" in (tmp_path / "out/index.html").read_text()
    assert report["scores"]["rows"][0]["scores"]["SFT"]["value"] == pytest.approx(0.63)
    assert [one["stage"] for one in report["evaluations"]] == ["SFT", *(f"SFT, seed {n}" for n in (2, 3, 4))]


def test_the_verb_says_the_same_everywhere_and_writes_nothing_beside_a_cut_selection(folder, tmp_path, monkeypatch):
    arguments = ["--scores", f"SFT={folder}", "--scores", f"SFT={folder}", "--size", "8b"]
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), *arguments])
    assert "Compared on 0 of 17 rows of the paper's table: too few to say" in result.stdout
    assert json.loads((tmp_path / "out/report.json").read_text())["seeds"][0]["folders"] == [str(folder)] * 2
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["report", "--out", str(tmp_path / "again"), *arguments])
    for name in ("report.json", "index.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    run = write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    (run / "select.json").write_text('{"totals": {"1')
    with pytest.raises(UserError, match="select.json: not JSON"):
        write_report(tmp_path / "unwritten", {"SFT": folder}, {"SFT": run})
    assert not (tmp_path / "unwritten").exists()
