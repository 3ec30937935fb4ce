"""The report through synthetic inputs in the tools' own layouts: numbers, sentences, page, runs, costs, epochs."""

import json
import math
import re
from pathlib import Path
from random import Random

import pytest
from conftest import at
from lm_eval_files import (  # fmt: skip
    CASES,
    DATE,
    dpo_history,
    evaluation,
    first,
    sft_history,
    write_mix,
    write_report,
    write_run,
    write_scores,
)

from hermes3.evaluate.select import choose
from hermes3.report import words
from hermes3.report.runs import gpu_hours, gpu_hours_beside_plan, recipe_of
from hermes3.report.tables import score_table
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import Suite, load
from hermes3.stats import estimate, wilson

PAGES = ["answers.html", "index.html", "report.json", "summary.txt"]
PERF = {"perf/tokens_per_second_per_gpu": 500.0, "perf/mfu": 0.4, "perf/memory_gb": 60.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a whole chain, written twice, to `out` and `again`; its SFT is as long as the 8B's."""
    folder, noise = tmp_path_factory.mktemp("report"), Random(1)
    history = [entry | PERF | {"loss": noise.random()} for entry in sft_history(4133)]
    history[0]["perf/memory_gb"] = 70.0
    runs = {"SFT": write_run(folder / "sft", history), "odd": write_run(folder / "odd", dpo_history(math.nan))}
    runs["DPO"] = write_run(folder / "dpo", dpo_history(steps=9), checkpoint="checkpoint-9")
    write_run(folder / "dpo", dpo_history(), checkpoint="checkpoint-40")
    scores = {name: dict(enumerate(values, 1)) for name, values in CASES["table 2"].items()}
    record = {"suite": "epoch_selection", "scores": scores, "scales": CASES["scales"]} | choose(scores)
    (runs["SFT"] / "select.json").write_text(json.dumps(record))
    inputs = {
        "mixes": [write_mix(folder / "mix" / kind, kind) for kind in ("sft", "preference")],
        "runs": runs,
        "scores": {name: write_scores(folder / "eval" / name, tasks) for name, tasks in CASES["stages"].items()},
        "commands": ["hermes3 mix data_mixes/tiny_sft.yml", "axolotl train recipes/tiny_sft.yml && echo <done>"],
    }
    write_report(folder / "again", **inputs)
    return write_report(folder / "out", **inputs), folder


def test_report_numbers_and_what_the_verdict_says(written):
    report, folder = written
    assert json.loads((folder / "out" / "report.json").read_text()) == report
    for path, value in CASES["report"].items():
        assert at(report, path) == (pytest.approx(value) if isinstance(value, float) else value), path
    for place, text in CASES["sentences"]:
        assert text in report["verdict"][place].replace("\u00a0", " ")
    assert len(report["runs"][0]["points"]) == 4133
    odd = report["runs"][2] | {"first_loss": 0.75}
    assert "a wide gap means that the reference is another model" in words.say("first_loss", odd)
    assert "averages 5 steps" in words.say("first_loss", odd | {"first_step": 5})
    score, pair = at(report, "scores.rows.0.scores.SFT"), at(report, "scores.rows.0.comparisons.0")
    assert (score["low"], score["high"]) == wilson(60, 100)
    # Documents 27..59 turned right: 33 gained, none lost, mid-p = 2 / 2**33 / 2; 8 tests in the table.
    assert pair["p"] == pytest.approx(1 / 2**33)
    assert pair["p"] < pair["p_holm"] <= 8 * pair["p"]
    assert 0 < pair["low"] < 0.33 < pair["high"]


def test_page_is_one_file_and_escapes(written):
    report, folder = written
    assert sorted(path.name for path in (folder / "out").iterdir()) == PAGES
    for name in PAGES[:3]:
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()
    page = (folder / "out" / "index.html").read_text()
    assert len(page) < 130_000 and page.count("<svg") == 3  # curves are thinned
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//\w+\.\w|@import|<script src|<link|<img|url\((?!#)", without_namespaces)
    for text in CASES["page"]:
        assert text in page.replace("\u00a0", " "), text
    cells = [re.findall(r'<td class="n">(.*?)</td>', row) for row in page.split("<tr>")]
    assert ["27.50", "63.65", "83.59", "37.10"] in cells and ["8.37", "8.59", "8.99", "8.67"] in cells
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {one or two for one, two in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page)} <= {*identifiers}
    # No colour but the page's variables: a fixed one would vanish in one of the two schemes.
    assert not re.search(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)))
    for row in report["scores"]["rows"] + report["scores"]["details"]:
        for score in filter(None, row["scores"].values()):
            bounds = f"{100 * score['low']:.1f}\u2009–\u2009{100 * score['high']:.1f}"
            assert f"{100 * score['value']:.1f}\u00a0%<small>{bounds}</small>" in page
    # reached without a mouse, each with a name
    for scrolls in re.findall(r'<div class="scroll"[^>]*>|<pre[^>]*>', page):
        assert 'tabindex="0"' in scrolls and ("aria-label=" in scrolls or scrolls.startswith("<pre"))
    assert "<caption" not in page  # it would scroll with the table
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    assert len(tables) == 15
    for table in tables:  # every row has as many cells as the head
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)}
        assert len(widths) == 1, table


def test_scores_alone_make_a_report_and_a_part_of_the_questions_or_no_mean_is_said(tmp_path):
    counts = {"n-samples": {"a": {"original": 90, "effective": 2}}}
    report = write_report(tmp_path / "out", {"SFT": write_scores(tmp_path / "a", {"a": {"acc": 2}}, n=2, **counts)})
    page, summary = ((tmp_path / "out" / name).read_text() for name in ("index.html", "summary.txt"))
    assert "Asked of only a part of the questions: a." in report["verdict"][0]
    assert "Mean of a (only a part of the questions of a), with" in summary
    assert "<strong>only a part of the questions</strong> of a</p>" in page
    assert "The commands were not recorded." in page
    folder = write_scores(tmp_path / "b", {"b": {"acc": 50}}, higher_is_better={"b": {"acc": False}})
    write_report(tmp_path / "out", {"SFT": folder})
    sentence = "No mean is given. Left out of the mean: b: lower is better."
    assert (tmp_path / "out/summary.txt").read_text().startswith(sentence)


def test_scores_that_are_not_shares_of_samples(tmp_path):
    """Samples that are no numbers leave the standard error, and no test; a metric that nothing says more of, points."""
    folders = [write_scores(tmp_path / name, {"a": {"acc": 60}}) / "outputs__model" for name in ("A", "B")]
    samples, results = folders[0] / f"samples_a_{DATE}.jsonl", folders[0] / f"results_{DATE}.json"
    rows = [json.loads(line) | {"acc": "x"} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads(results.read_text())
    facts["results"]["a"]["perplexity,none"] = 12.5
    facts["results"]["everything"] = {"alias": "everything", "acc,none": 0.5}  # a group of lm-eval's
    results.write_text(json.dumps(facts))
    stages = [read_evaluation(folder.parent.name, folder) for folder in folders]
    table = score_table(stages, [])
    (row,), (detail,) = table["rows"], table["details"]
    assert row["scores"]["A"]["low"] == pytest.approx(0.6 - 1.959964 * 0.01)
    assert row["comparisons"][0]["mark"] == "not tested" and stages[0].skipped == []
    assert (detail["metric"], detail["scale"]) == ("perplexity", 1)


def log(counts, **rates):
    """Entries of 10 steps: `counts` add up, `rates` stay."""
    return [{"step": n, "loss": 1.0} | rates | {key: n * one for key, one in counts.items()} for n in range(1, 11)]


def test_gpu_hours_are_tokens_over_the_rate_of_one_gpu_beside_the_plan_and_the_paper(tmp_path):
    """10 steps of 720,000 positions over all ranks, half of them padding, at 1,000 tokens/s: 360 s each, an hour."""
    rate = {"perf/tokens_per_second_per_gpu": 1000.0}
    packed = log({"tokens/total": 720_000}, **{"perf/packing_efficiency": 0.5} | rate)
    assert gpu_hours(packed) == pytest.approx(1)
    del packed[0]["perf/tokens_per_second_per_gpu"]
    assert gpu_hours(packed) == pytest.approx(1)
    assert gpu_hours(log({})) is None
    run = write_run(tmp_path / "run", log({"num_tokens": 360_000}, **rate))
    assert recipe_of(Path("outputs/8b/sft/")) == Path("recipes/8b_sft.yml") and recipe_of(run) is None
    sft = gpu_hours_beside_plan("SFT", run, Path("recipes/8b_sft.yml"))
    assert (sft["measured"], sft["planned"], sft["paper"]) == (pytest.approx(1), pytest.approx(74, rel=0.01), 147)
    assert sft["gpu"].startswith("48 x h100-80gb")
    dpo = gpu_hours_beside_plan("DPO", run, Path("recipes/8b_dpo.yml"))
    assert (dpo["paper"], "gives no GPU-hours" in dpo["notes"][0]) == (None, True)
    assert gpu_hours_beside_plan("x", run, None)["notes"] == ["no recipe names this folder as its output_dir"]


@pytest.mark.parametrize(("by_question", "change", "value"), [(True, 0.01125, 0.4572), (False, 0.0225, 0.4115)])
def test_groups_of_other_scores_weigh_questions_too(by_question, change, value):
    """Questions 300 and 100: a rise of 0.04 of the smaller task alone is 0.01 of the pool, 0.02 of the tasks' mean."""
    big, small = [0.5 + 0.001 * (doc % 7) for doc in range(300)], [0.3 + 0.01 * (doc % 5) for doc in range(100)]
    raised = [one + 0.04 + 0.01 * (doc % 2) for doc, one in enumerate(small)]
    before, after = evaluation({"big": big, "small": small}, "SFT"), evaluation({"big": big, "small": raised}, "DPO")
    group = Group("g", (("big", "acc", "none"), ("small", "acc", "none")), by_question)
    pair = compare(before, after, group)
    assert (pair["test"], pair["change"]) == ("paired t", pytest.approx(change))
    assert pair["low"] < change < pair["high"] and pair["p"] < 0.001
    assert score_of(before, group).value == pytest.approx(value, abs=1e-4)
    shares = score_of(evaluation({"big": first(900), "small": first(20, 100)}), group)
    assert shares.value == pytest.approx(920 / 1100 if by_question else 0.55)
    assert not by_question or (shares.low, shares.high) == pytest.approx(wilson(920, 1100))
    few = compare(evaluation({"a": small[:9]}), evaluation({"a": raised[:9]}), Group("a", (("a", "acc", "none"),)))
    assert (few["mark"], few["reason"]) == ("not tested", "only 9 samples; no test below 10") and "p" not in few


@pytest.mark.parametrize("right", [[1.0, 0.0] * 50, [0.0] * 100, [1.0] * 100])
def test_two_metrics_of_a_task_are_one_score(right):
    """IFEval: the mean of prompts and instructions, a document at a time; with nothing right it keeps an interval."""
    instructions = [max(one, 0.5) for one in right] if len({*right}) == 2 else right
    stage = evaluation({"ifeval": right})
    stage.scores["ifeval", "inst", "none"] = evaluation({"ifeval": instructions}).scores["ifeval", "acc", "none"]
    score = score_of(stage, Group("IFEval", (("ifeval", "acc", "none"), ("ifeval", "inst", "none")), by_question=False))
    both = [sum(pair) / 2 for pair in zip(right, instructions, strict=True)]
    assert (score.value, score.n) == (pytest.approx(sum(both) / 100), 100)
    student = estimate([both], [range(100)], [1], True).interval()
    assert (score.low, score.high) == pytest.approx(student if {*both} - {0, 1} else wilson(sum(both), 100))


def test_alignment_has_a_section_of_its_own(tmp_path):
    folders = {}
    for stage, answered in {"SFT": 60, "DPO": 90}.items():
        refusals = {"answered": answered, "refused": 100 - answered}
        folders[stage] = write_scores(tmp_path / stage, {"alignment_over_refusal": refusals, "a": {"acc": 50}})
    report = write_report(tmp_path / "out", folders, suites=(load("alignment"),))
    assert [row["task_label"] for row in report["scores"]["alignment"]] == ["Answers harmless requests"]
    assert report["scores"]["means"]["tasks"] == ["a"]
    assert "Neutral alignment: against SFT, DPO raised Answers harmless requests (+30.0)." in report["verdict"]
    assert "Against SFT, DPO left a without a clear difference." in report["verdict"]
    assert "<h2>Neutral alignment</h2>" in (tmp_path / "out" / "index.html").read_text()
    # of one stage alone
    row = {"task_label": "a", "scores": {"base": None, "SFT": {"n": 100}}, "comparisons": [{"mark": "not comparable"}]}
    smoke = words.alignment([row | {"scores": {"SFT": {"n": 2}}}], ["base", "SFT"])
    assert smoke == ["Neutral alignment: a smoke run of 2 questions per task, which says nothing of the model."]
    assert words.alignment([row], ["base", "SFT"]) == ["Neutral alignment was measured on SFT alone."]


def test_answers_that_changed_can_be_read(tmp_path):
    """a: by options, 0-shot and 5-shot, in each stage another of them the newest; b: in text, and refusals: to lose.
    Prompts hold the end of a script."""
    for stage, right in {"base": {0: 50, 5: 60}, "SFT": {5: 58, 0: 53}}.items():
        for place, (shots, k) in enumerate(right.items(), 1):
            tasks = {"a": {"acc": k}} | ({"b": {"refused": int(stage == "SFT")}} if shots == 0 else {})
            facts = {"date": f"2025-01-0{place}T00-00-00.000000", "higher_is_better": {"b": {"refused": False}}}
            write_scores(tmp_path / stage / str(shots), tasks, shots=shots, **facts)
            for path in (tmp_path / stage / str(shots)).rglob("samples_*.jsonl"):
                requests = {
                    n: {"arg_0": "x" * 2000 + f"{shots}?</script>", "arg_1": f"{stage} {shots} {n}"} for n in "01"
                }
                resps = [[["-2.125", "False"]], [["-1.5", "True"]]] if "samples_a" in path.name else [[f"{stage} says"]]
                more = {"arguments": requests, "target": 1, "resps": resps}
                rows = [json.loads(line) | more for line in path.read_text().splitlines()]
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"batch_size": 1, "max_length": 1, "device": "cpu", "dtype": "float32", "seed": 1}
    groups = {f"A{shots}": {"tasks": {"a": "acc"}, "num_fewshot": shots} for shots in (0, 5)}
    suites = [Suite(name=name, groups={name: group}, **facts) for name, group in groups.items()]
    report = write_report(tmp_path / "out", {stage: tmp_path / stage for stage in ("base", "SFT")}, suites=suites)
    counts = [(one["row"], one["step"], one["gained"], one["lost"]) for one in report["answers"]]
    assert counts == [("A0", "base → SFT", 3, 0), ("A5", "base → SFT", 0, 2), ("b", "base → SFT", 0, 1)]
    text = (tmp_path / "out/answers.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    *by_options, by_text = json.loads(text)
    for step, shots, ids in zip(by_options, (0, 5), ({"50", "51", "52"}, {"58", "59"}), strict=True):
        assert {one["id"].rpartition("/")[2] for one in step["questions"]} == ids
        for one in step["questions"]:
            options = [[[f"{name} {shots} 0", -2.12], [f"{name} {shots} 1", -1.5]] for name in ("base", "SFT")]
            assert (one["answers"], one["target"]) == (options, f"base {shots} 1")
            assert one["prompt"].startswith("[511 characters") and one["prompt"].endswith(f"x{shots}?</script>")
    assert by_text["questions"][0]["answers"] == ["base says", "SFT says"]
    assert 'href="answers.html"' in (tmp_path / "out" / "index.html").read_text()
