"""The report of runs: cost, throughput, the chosen epoch, recipes; and comparisons that are no plain shares."""

import json
import re
from pathlib import Path
from random import Random

import pytest
from lm_eval_files import dpo_history, evaluation, sft_history, write_report, write_run, write_scores

from hermes3.evaluate.select import choose
from hermes3.report import words
from hermes3.report.runs import gpu_hours, gpu_hours_beside_plan, recipe_of
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.suite import load
from hermes3.stats import mean_of

PERF = {"perf/tokens_per_second_per_gpu": 500.0, "perf/mfu": 0.4, "perf/memory_gb": 60.0}


def log(steps: int, **entry: float) -> list[dict]:
    """Entries whose counts, those that name tokens, add up."""
    counts = {key for key in entry if "tokens" in key and "per_second" not in key}
    return [
        {"step": step, "loss": 1.0} | {key: value * step if key in counts else value for key, value in entry.items()}
        for step in range(1, steps + 1)
    ]


def test_gpu_hours_are_tokens_over_the_rate_of_one_gpu() -> None:
    """10 steps of 720,000 positions over all ranks, half of them padding, at 1,000 tokens/s: 360 s each, an hour."""
    packed = {"tokens/total": 720_000, "perf/packing_efficiency": 0.5, "perf/tokens_per_second_per_gpu": 1000.0}
    assert gpu_hours(log(10, **packed)) == pytest.approx(1)
    assert gpu_hours(log(10, **{"num_tokens": 360_000, "perf/tokens_per_second_per_gpu": 1000.0})) == pytest.approx(1)
    without = log(10, **packed)
    del without[0]["perf/tokens_per_second_per_gpu"]
    assert gpu_hours(without) == pytest.approx(1)
    assert gpu_hours(log(10)) is None


def test_cost_beside_the_plan_and_the_paper(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", log(10, num_tokens=360_000, **{"perf/tokens_per_second_per_gpu": 1000.0}))
    sft = gpu_hours_beside_plan("SFT", run, Path("recipes/8b_sft.yml"))
    assert (sft["measured"], sft["paper"]) == (pytest.approx(1), 147)
    assert sft["planned"] == pytest.approx(147, rel=0.01)
    assert sft["gpu"].startswith("48 x h100-80gb")
    dpo = gpu_hours_beside_plan("DPO", run, Path("recipes/8b_dpo.yml"))
    assert (dpo["paper"], "gives no GPU-hours" in dpo["notes"][0]) == (None, True)
    assert gpu_hours_beside_plan("x", run, None)["notes"] == ["no recipe names this folder as its output_dir"]


def test_the_recipe_of_a_run_is_the_one_that_writes_there(tmp_path: Path) -> None:
    assert recipe_of(Path("outputs/8b/sft")) == Path("recipes/8b_sft.yml")
    assert recipe_of(Path("outputs/8b/sft/")).name == "8b_sft.yml"
    assert recipe_of(tmp_path) is None


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    """4,133 logged steps, as the 8B's: the curve is thinned, report.json has every step; throughput is the median."""
    noise = Random(1)
    history = [entry | PERF | {"loss": noise.random()} for entry in sft_history(4133)]
    history[0]["perf/memory_gb"] = 70.0
    runs = {"SFT": write_run(tmp_path / "run", history), "DPO": write_run(tmp_path / "dpo", dpo_history())}
    report = write_report(tmp_path / "out", [], runs, {"SFT": write_scores(tmp_path / "eval", {"a": {"acc": 50}})}, [])
    assert len(report["runs"][0]["points"]) == 4133
    assert report["runs"][0]["performance"] == {"tokens_per_second_per_gpu": 500.0, "mfu": 0.4, "memory_gb": 70.0}
    page = (tmp_path / "out" / "index.html").read_text()
    assert len(page) < 250_000
    assert "40.0\u00a0%" in page and "chosen preferred, share of pairs" in page and "reward margin" in page


def test_the_chosen_epoch(tmp_path: Path) -> None:
    """What `hermes3 select` writes: here the paper's Table 2."""
    groups = {
        "GPT4All": [0.7685, 0.7670, 0.7659, 0.7363],
        "AGIEval": [0.5421, 0.5610, 0.5599, 0.5400],
        "IFEval": [0.7652, 0.7892, 0.8133, 0.8661],
        "MT-Bench": [8.37, 8.59, 8.99, 8.67],
    }
    scores = {name: dict(enumerate(values, 1)) for name, values in groups.items()}
    run = write_run(tmp_path / "run", sft_history())
    record = {"run": str(run), "suite": "epoch_selection", "scores": scores} | choose(scores)
    (run / "select.json").write_text(json.dumps(record))
    folder = write_scores(tmp_path / "eval", {"a": {"acc": 50}})
    report = write_report(tmp_path / "out", [], {"SFT": run}, {"SFT": folder}, [])
    table = report["selections"][0]
    assert (table["epochs"], table["chosen"]) == ([1, 2, 3, 4], 3)
    assert [row["scale"] for row in table["rows"]] == [100, 100, 100, 1]
    page = (tmp_path / "out/index.html").read_text()
    assert "SFT: epoch 3 was kept" in page
    cells = [re.findall(r'<td class="n">(.*?)</td>', row) for row in page.split("<tr>")]
    assert ["27.50", "63.65", "83.59", "37.10"] in cells and ["8.37", "8.59", "8.99", "8.67"] in cells


def test_scores_between_0_and_1_are_compared_by_the_paired_t_test() -> None:
    before = [0.2 + 0.001 * doc for doc in range(400)]
    raised = [value + 0.02 * (doc % 3) for doc, value in enumerate(before)]
    group = Group("MC2", (("mc2", "acc", "none"),))

    def change(old: list[float], new: list[float]) -> dict:
        return compare(evaluation({"mc2": old}, "SFT"), evaluation({"mc2": new}, "DPO"), group)

    pair = change(before, raised)
    assert (pair["test"], pair["change"]) == ("paired t", pytest.approx(0.02, abs=1e-3))
    assert 0.015 < pair["low"] < pair["change"] < pair["high"] < 0.025
    assert pair["p"] < 0.001
    assert change(before, before)["p"] == 1
    few = change(before[:9], raised[:9])
    assert (few["mark"], few["reason"]) == ("not tested", "only 9 samples; no test below 10")
    assert "p" not in few


@pytest.mark.parametrize(("by_question", "change", "value"), [(True, 0.01125, 0.4572), (False, 0.0225, 0.4115)])
def test_groups_of_other_scores_weigh_questions_too(by_question: bool, change: float, value: float) -> None:
    """Questions 300 and 100: a rise of 0.04 of the smaller task alone is 0.01 of the pool, 0.02 of the tasks' mean."""
    big, small = [0.5 + 0.001 * (doc % 7) for doc in range(300)], [0.3 + 0.01 * (doc % 5) for doc in range(100)]
    raised = [one + 0.04 + 0.01 * (doc % 2) for doc, one in enumerate(small)]
    before, after = evaluation({"big": big, "small": small}, "SFT"), evaluation({"big": big, "small": raised}, "DPO")
    group = Group("g", (("big", "acc", "none"), ("small", "acc", "none")), by_question)
    pair = compare(before, after, group)
    assert (pair["test"], pair["change"]) == ("paired t", pytest.approx(change))
    assert pair["low"] < change < pair["high"]
    assert score_of(before, group).value == pytest.approx(value, abs=1e-4)


def test_two_metrics_of_a_task_are_one_score() -> None:
    """IFEval: the mean of prompts and instructions, a document at a time; they are not two independent scores."""
    stage = evaluation({"ifeval": [1.0, 0.0] * 50})
    instructions = evaluation({"ifeval": [1.0, 0.5] * 50})
    stage.scores["ifeval", "inst", "none"] = instructions.scores["ifeval", "acc", "none"]
    members = (("ifeval", "acc", "none"), ("ifeval", "inst", "none"))
    score = score_of(stage, Group("IFEval", members, by_question=False))
    assert (score.value, score.n) == (pytest.approx(0.625), 100)
    assert (score.low, score.high) == pytest.approx(mean_of([1.0, 0.25] * 50))


def test_alignment_has_a_section_of_its_own(tmp_path: Path) -> None:
    tasks = {name: {"answered": right, "refused": 100 - right} for name, right in (("alignment_over_refusal", 60),)}
    better = {"alignment_over_refusal": {"answered": 90, "refused": 10}}
    folders = {
        "SFT": write_scores(tmp_path / "SFT", tasks | {"a": {"acc": 50}}),
        "DPO": write_scores(tmp_path / "DPO", better | {"a": {"acc": 50}}),
    }
    report = write_report(tmp_path / "out", [], {}, folders, [], suites=[load("alignment")])
    assert [row["task_label"] for row in report["scores"]["alignment"]] == ["Answers harmless requests"]
    assert report["scores"]["means"]["tasks"] == ["a"]
    assert "Neutral alignment: against SFT, DPO raised Answers harmless requests (+30.0)." in report["verdict"]
    assert "Against SFT, DPO left a without a clear difference." in report["verdict"]
    assert "<h2>Neutral alignment</h2>" in (tmp_path / "out" / "index.html").read_text()


def test_alignment_of_one_stage_is_said_in_one_sentence() -> None:
    row = {"task_label": "a", "scores": {"base": None, "SFT": {"n": 100}}, "comparisons": [{"mark": "not comparable"}]}
    said = words.alignment([row], ["base", "SFT"])
    assert said == ["Neutral alignment was measured on SFT alone, with at most 100 samples per task."]
