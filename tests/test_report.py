"""The report through synthetic inputs in the tools' own layouts: numbers, sentences, page, runs, costs, epochs."""

import json
import math
import re
from pathlib import Path
from random import Random

import pytest
import yaml
from lm_eval_files import DATE, dpo_history, evaluation, sft_history, write_mix, write_report, write_run, write_scores

from hermes3.evaluate.select import choose
from hermes3.report import words
from hermes3.report.runs import gpu_hours, gpu_hours_beside_plan, read_run, recipe_of
from hermes3.report.tables import score_table
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import Suite, load
from hermes3.stats import mean_of, wilson

PAGES = ["answers.html", "index.html", "report.json", "summary.txt"]
CASES = yaml.safe_load(Path(__file__).with_name("report_cases.yml").read_text(encoding="utf-8"))
# stage -> right answers of 100 documents; every stage is right on the first documents.
RIGHT = {"base": (27, 2, 0, 50), "SFT": (60, 95, 81, 54), "SFT+DPO": (61, 94, 81, 70)}
STAGES = {
    stage: {"choice": {"acc": choice}, "tool_call": {"valid": valid, "exact": exact}, "preference": {"acc": preference}}
    for stage, (choice, valid, exact, preference) in RIGHT.items()
}


def inputs_in(folder: Path) -> dict:
    runs = {"SFT": write_run(folder / "sft", sft_history())}
    runs["DPO"] = write_run(folder / "dpo", dpo_history(), checkpoint="checkpoint-40")
    write_run(folder / "dpo", dpo_history(steps=9), checkpoint="checkpoint-9")
    return {
        "mixes": [write_mix(folder / "mix" / kind, kind) for kind in ("sft", "preference")],
        "runs": runs,
        "scores": {name: write_scores(folder / "eval" / name, tasks) for name, tasks in STAGES.items()},
        "commands": ["hermes3 mix data_mixes/tiny_sft.yml", "axolotl train recipes/tiny_sft.yml && echo <done>"],
    }


def row_of(table, task, metric):
    return next(row for row in table["rows"] + table["details"] if (row["task"], row["metric"]) == (task, metric))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of `inputs_in`, written twice: to `out` and `again`."""
    folder = tmp_path_factory.mktemp("report")
    inputs = inputs_in(folder)
    write_report(folder / "again", **inputs)
    return write_report(folder / "out", **inputs), folder


def at(value, path):
    """What stands in `value` at `path`, e.g. `runs.0.kind`."""
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_report_numbers_and_what_the_verdict_says(written):
    report, folder = written
    assert json.loads((folder / "out" / "report.json").read_text()) == report
    for path, value in CASES["report"].items():
        assert at(report, path) == (pytest.approx(value) if isinstance(value, float) else value), path
    for place, text in CASES["sentences"]:
        assert text in report["verdict"][place].replace("\u00a0", " ")
    score = at(report, "scores.rows.0.scores.SFT")
    assert (score["low"], score["high"]) == wilson(60, 100)
    # Documents 27..59 turned right: 33 gained, none lost, mid-p = 2 / 2**33 / 2; 6 tests in the table.
    pair = at(report, "scores.rows.0.comparisons.0")
    assert pair["p"] == pytest.approx(1 / 2**33)
    assert pair["p"] < pair["p_holm"] <= 6 * pair["p"]
    assert 0 < pair["low"] < 0.33 < pair["high"]


def test_page_is_one_file_and_escapes(written):
    report, folder = written
    assert sorted(path.name for path in (folder / "out").iterdir()) == PAGES
    for name in PAGES[:3]:
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()
    page = (folder / "out" / "index.html").read_text()
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//\w+\.\w|@import|<script src|<link|<img|url\((?!#)", without_namespaces)
    assert "&amp;&amp; echo &lt;done&gt;" in page
    assert page.count("<svg") == 3
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {one or two for one, two in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page)} <= {*identifiers}
    # No colour but the page's variables: a fixed one would vanish in one of the two schemes.
    assert not re.search(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)))
    for row in report["scores"]["rows"] + report["scores"]["details"]:
        for score in row["scores"].values():
            bounds = f"{100 * score['low']:.1f}\u2009–\u2009{100 * score['high']:.1f}"
            assert f"{100 * score['value']:.1f}\u00a0%<small>{bounds}</small>" in page
    # reached without a mouse, each with a name
    for scrolls in re.findall(r'<div class="scroll"[^>]*>|<pre[^>]*>', page):
        assert 'tabindex="0"' in scrolls and ("aria-label=" in scrolls or scrolls.startswith("<pre"))
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    assert len(tables) == 14
    for table in tables:  # every row has as many cells as the head
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)}
        assert len(widths) == 1, table


def test_what_is_left_out_of_the_mean(tmp_path):
    """A task that one stage lacks; and whether answers end, which is shown and compared but says nothing of quality."""
    stages = []
    for stage, ended, more in (("base", 0, {}), ("SFT", 99, {}), ("SFT+DPO", 60, {"json_mode": {"valid": 9}})):
        write_scores(tmp_path / stage, STAGES[stage] | {"end_of_turn": {"ended": ended}} | more)
        stages.append(read_evaluation(stage, tmp_path / stage))
    table = score_table(stages, [])
    assert table["means"]["tasks"] == ["choice", "tool_call", "preference"]
    left_out = {one["task"]: one["reason"] for one in table["means"]["left_out"]}
    assert list(left_out) == ["end_of_turn", "json_mode"] and left_out["json_mode"] == "not measured on base"
    marks = [pair["mark"] for pair in row_of(table, "end_of_turn", "ended")["comparisons"]]
    assert marks == ["better", "worse"]


def test_a_mean_of_a_part_of_the_questions_says_so_and_one_that_lacks_says_why(tmp_path):
    counts = {"n-samples": {"a": {"original": 90, "effective": 2}}}
    report = write_report(tmp_path / "out", {"SFT": write_scores(tmp_path / "a", {"a": {"acc": 2}}, n=2, **counts)})
    assert "Asked of only a part of the questions: a." in report["verdict"][0]
    assert "Mean of a (only a part of the questions of a), with" in (tmp_path / "out/summary.txt").read_text()
    assert "<strong>only a part of the questions</strong> of a</p>" in (tmp_path / "out/index.html").read_text()
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
    row = row_of(table, "a", "acc")
    assert row["scores"]["A"]["low"] == pytest.approx(0.6 - 1.959964 * 0.01)
    assert row["comparisons"][0]["mark"] == "not tested" and stages[0].skipped == []
    assert row_of(table, "a", "perplexity")["scale"] == 1


def test_scores_alone_make_a_report_and_odd_losses_are_said(tmp_path):
    run = write_run(tmp_path / "odd", dpo_history(math.nan))
    scores = {"base": write_scores(tmp_path / "base", STAGES["base"])}
    report = write_report(tmp_path / "out", scores, {"DPO": run})
    assert "losses that are not finite: do not use it" in report["verdict"][-2]
    assert report["scores"]["means"]["stages"]["base"]["value"] == pytest.approx((0.27 + 0.02 + 0.5) / 3)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The commands were not recorded." in page
    assert page.count("<svg") == 2
    odd = read_run("DPO", write_run(tmp_path / "apart", dpo_history(0.75)))
    assert "a wide gap means that the reference is another model" in words.say("first_loss", odd)
    assert "averages 5 steps" in words.say("first_loss", odd | {"first_step": 5})


def log(steps, **entry):
    """Entries whose counts, those that name tokens, add up."""
    counts = {key for key in entry if "tokens" in key and "per_second" not in key}
    return [
        {"step": step, "loss": 1.0} | {key: value * step if key in counts else value for key, value in entry.items()}
        for step in range(1, steps + 1)
    ]


def test_gpu_hours_are_tokens_over_the_rate_of_one_gpu():
    """10 steps of 720,000 positions over all ranks, half of them padding, at 1,000 tokens/s: 360 s each, an hour."""
    packed = {"tokens/total": 720_000, "perf/packing_efficiency": 0.5, "perf/tokens_per_second_per_gpu": 1000.0}
    assert gpu_hours(log(10, **packed)) == pytest.approx(1)
    without = log(10, **packed)
    del without[0]["perf/tokens_per_second_per_gpu"]
    assert gpu_hours(without) == pytest.approx(1)
    assert gpu_hours(log(10)) is None


def test_cost_beside_the_plan_and_the_paper_of_the_recipe_that_writes_there(tmp_path):
    assert recipe_of(Path("outputs/8b/sft/")) == Path("recipes/8b_sft.yml")
    assert recipe_of(tmp_path) is None
    run = write_run(tmp_path / "run", log(10, num_tokens=360_000, **{"perf/tokens_per_second_per_gpu": 1000.0}))
    sft = gpu_hours_beside_plan("SFT", run, Path("recipes/8b_sft.yml"))
    assert (sft["measured"], sft["paper"]) == (pytest.approx(1), 147)
    assert sft["planned"] == pytest.approx(74, rel=0.01)
    assert sft["gpu"].startswith("48 x h100-80gb")
    dpo = gpu_hours_beside_plan("DPO", run, Path("recipes/8b_dpo.yml"))
    assert (dpo["paper"], "gives no GPU-hours" in dpo["notes"][0]) == (None, True)
    assert gpu_hours_beside_plan("x", run, None)["notes"] == ["no recipe names this folder as its output_dir"]


def test_a_long_run_makes_a_small_page_and_its_chosen_epoch_is_shown(tmp_path):
    """4,133 logged steps, as the 8B's: the curve is thinned, report.json has every step. Epochs: of Table 2."""
    noise, perf = Random(1), {"perf/tokens_per_second_per_gpu": 500.0, "perf/mfu": 0.4, "perf/memory_gb": 60.0}
    history = [entry | perf | {"loss": noise.random()} for entry in sft_history(4133)]
    history[0]["perf/memory_gb"] = 70.0
    runs = {"SFT": write_run(tmp_path / "run", history), "DPO": write_run(tmp_path / "dpo", dpo_history())}
    scores = {name: dict(enumerate(values, 1)) for name, values in CASES["table 2"].items()}
    record = {"suite": "epoch_selection", "scores": scores, "scales": CASES["scales"]} | choose(scores)
    (runs["SFT"] / "select.json").write_text(json.dumps(record))
    report = write_report(tmp_path / "out", {"SFT": write_scores(tmp_path / "eval", {"a": {"acc": 50}})}, runs)
    assert len(report["runs"][0]["points"]) == 4133
    assert report["runs"][0]["performance"] == {"tokens_per_second_per_gpu": 500.0, "mfu": 0.4, "memory_gb": 70.0}
    assert (report["selections"][0]["epochs"], report["selections"][0]["chosen"]) == ([1, 2, 3, 4], 3)
    page = (tmp_path / "out" / "index.html").read_text()
    assert len(page) < 250_000
    for text in ("40.0\u00a0%", "chosen preferred, share of pairs", "reward margin", "SFT: epoch 3 was kept"):
        assert text in page
    cells = [re.findall(r'<td class="n">(.*?)</td>', row) for row in page.split("<tr>")]
    assert ["27.50", "63.65", "83.59", "37.10"] in cells and ["8.37", "8.59", "8.99", "8.67"] in cells


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
    assert (score.low, score.high) == pytest.approx(mean_of(both) if {*both} - {0, 1} else wilson(sum(both), 100))


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


def edit_samples(folder, change):
    """Apply `change` to every sample below `folder`."""
    for path in folder.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | change(row, path.name)) + "\n" for row in rows))


def answers_of(page):
    return json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])


def test_answers_that_changed_can_be_read(tmp_path):
    """Ten questions per task, answered in text or by options, and the end of a script in a prompt."""
    folders = {"base": write_scores(tmp_path / "base", {"a": {"acc": 5}, "b": {"refused": 0}}, n=10)}
    lower = {"a": {"acc": True}, "b": {"refused": False}}
    folders["SFT"] = write_scores(tmp_path / "SFT", {"a": {"acc": 7}, "b": {"refused": 1}}, 10, higher_is_better=lower)
    requests = {f"gen_args_{k}": {"arg_0": "x" * 2000 + " why?</script>", "arg_1": f"{k}!"} for k in (0, 1)}
    options = {"arguments": requests, "target": 1, "resps": [[["-2.125", "False"]], [["-1.5", "True"]]]}
    for stage, folder in folders.items():
        text = {"resps": [[f"{stage} says"]]}
        edit_samples(folder, lambda row, name, text=text: options | (text if "samples_b" in name else {}))
    report = write_report(tmp_path / "out", folders)
    counts = [(one["row"], one["step"], one["gained"], one["lost"]) for one in report["answers"]]
    assert counts == [("a", "base → SFT", 2, 0), ("b", "base → SFT", 0, 1)]  # to refuse more is to lose
    a, b = answers_of(tmp_path / "out/answers.html")
    assert [one["id"] for one in a["questions"]] == ["a/5", "a/6"]
    assert a["questions"][0]["answers"] == [[["0!", -2.12], ["1!", -1.5]]] * 2 and a["questions"][0]["target"] == "1!"
    assert b["questions"][0]["answers"] == ["base says", "SFT says"]
    assert a["questions"][0]["prompt"].startswith("[514 characters left out] …")
    assert a["questions"][0]["prompt"].endswith("why?</script>")
    assert 'href="answers.html"' in (tmp_path / "out" / "index.html").read_text()


def test_answers_of_a_task_under_two_protocols_are_those_of_the_row(tmp_path):
    """0-shot and 5-shot of one task, and in each stage another of them is the newest."""
    for stage, right in {"base": {0: 50, 5: 60}, "SFT": {5: 58, 0: 53}}.items():
        for place, (shots, k) in enumerate(right.items(), 1):
            date = f"2025-01-0{place}T00-00-00.000000"
            folder = write_scores(tmp_path / stage / f"{shots}_shot", {"a": {"acc": k}}, date=date, shots=shots)
            text = {"arguments": {"0": {"arg_0": f"{shots} examples"}}, "resps": [[f"{stage}, {shots}"]]}
            edit_samples(folder, lambda row, name, text=text: text)
    facts = {"batch_size": 1, "max_length": 1, "device": "cpu", "dtype": "float32", "seed": 1}
    suites = [
        Suite(name=f"s{shots}", groups={f"A{shots}": {"tasks": {"a": "acc"}, "num_fewshot": shots}}, **facts)
        for shots in (0, 5)
    ]
    folders = {stage: tmp_path / stage for stage in ("base", "SFT")}
    report = write_report(tmp_path / "out", folders, suites=suites)
    counts = [(one["row"], one["gained"], one["lost"]) for one in report["answers"]]
    assert counts == [("A0", 3, 0), ("A5", 0, 2)]
    steps = answers_of(tmp_path / "out/answers.html")
    for step, shots, ids in zip(steps, (0, 5), ({"50", "51", "52"}, {"58", "59"}), strict=True):
        assert {one["id"].rpartition("/")[2] for one in step["questions"]} == ids
        for one in step["questions"]:
            assert (one["prompt"], one["answers"]) == (f"{shots} examples", [f"base, {shots}", f"SFT, {shots}"])
