"""The dashboard as the spec that wandb is given, held to what runs really log; and its scores, read back offline."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from ranks import wandb_runs

from bench.lm_eval_results import Task, write
from hermes3.results.published import load
from launch.wandb_dashboard import SECTIONS, main

SHARES = {"8b": 0.8, "70b": 0.9}  # of right answers, of a run of each size


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """The paper's own scores, as `hermes3 select` would have written them of a run."""
    scores, scales = {}, {group: row.scale for group, row in load("table2").rows.items()}
    for group, row in load("table2").rows.items():
        scores[group] = {str(n): value / (100 if row.scale == 100 else 1) for n, value in enumerate(row.values, 1)}
    run = tmp_path_factory.mktemp("dashboard") / "run"
    run.mkdir()
    (run / "select.json").write_text(json.dumps({"scores": scores, "scales": scales}))
    return run


@pytest.fixture(scope="module")
def logged(selected):
    """Name -> runs of scores: of the epochs, of the paper's, and of the SFT of two sizes, each logged twice."""
    stages = []
    for size, share in SHARES.items():
        results = selected.with_name(size)
        write(results, [Task("tiny_end_of_turn", 400, ("ended",), 0, 1, 20, share)], model_name="a model")
        stages += ["--stage", f"SFT={results}"]
    for _ in range(2):
        command = [sys.executable, "launch/wandb_dashboard.py", "--epochs", str(selected), *stages]
        env = os.environ | {"WANDB_DIR": str(selected)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
    found = wandb_runs(selected)
    return {one.name: [other for other in found if other.name == one.name] for one in found}


def test_every_panel_shows_what_runs_log(capsys, stopped_sft, stopped_dpo, logged):
    main(["--dry-run", "--entity", "me", "--project", "mine"])
    spec = json.loads(capsys.readouterr().out)
    assert (spec["workspace"]["entity"], spec["workspace"]["project"]) == ("me", "mine")
    assert spec["workspace"]["spec"]["section"]["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]
    for plot in (plot for plots in SECTIONS.values() for plot in plots):
        assert json.dumps(plot.intent)[1:-1] in json.dumps(spec["workspace"])
    runs = [*wandb_runs(stopped_sft.wandb_dir), *wandb_runs(stopped_dpo.wandb_dir), *sum(logged.values(), [])]
    real = {key for run in runs for point in run.history for key in point}
    for part in ("workspace", "report"):
        shown = {*re.findall(r'"((?:train|eval)/[^"]+)"', json.dumps(spec[part]))}  # in plots and as axes
        assert len(shown) >= 15
        assert shown - real == {"train/perf/mfu"}  # which a CPU has not: tests/test_metrics.py


def test_epochs_stand_beside_the_paper_s_and_a_stage_has_its_groups_in_percent(logged, selected):
    ours, paper = logged[f"{selected}, epochs"][0], logged["paper: Hermes 3 70B, SFT"][0]
    assert ours.group == paper.group == "evaluation"
    assert [point["epoch"] for point in ours.history] == [*range(1, len(paper.history) + 1)]
    for group, row in load("table2").rows.items():
        assert [point[f"eval/{group}"] for point in ours.history] == pytest.approx(row.values)
        assert [point[f"eval/{group}"] for point in paper.history] == [*row.values]
    for folder in map(selected.with_name, SHARES):
        results = json.loads(next(folder.rglob("results_*.json")).read_text())["results"]
        score = logged[f"SFT, {folder}"][0].history[0]["eval/End of turn"]
        assert score == pytest.approx(100 * results["tiny_end_of_turn"]["ended,none"])
    # logged again, a run takes the former's place
    assert [len(runs) for runs in logged.values()] == [2, 2, 2, 2]
    assert len({run.id for runs in logged.values() for run in runs}) == 4
