"""The report through synthetic inputs in the tools' own layouts: numbers, sentences, page, runs, costs, epochs."""

import json
import math
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from lm_eval_files import DATE, dpo_history, evaluation, sft_history, write_mix, write_report, write_run, write_scores

from hermes3.evaluate.select import choose
from hermes3.files import UserError
from hermes3.report import words
from hermes3.report.runs import gpu_hours, gpu_hours_beside_plan, read_run, recipe_of
from hermes3.report.stages import score_table
from hermes3.results.groups import Group, compare, score_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import Suite, load
from hermes3.stats import mean_of, wilson

PAGES = ["answers.html", "index.html", "report.json", "summary.txt"]
CASES = yaml.safe_load(Path(__file__).with_name("report_cases.yml").read_text(encoding="utf-8"))
# stage -> task -> metric -> right answers of 100 documents; every stage is right on the first documents.
RIGHT = {"base": (27, 2, 0, 50), "SFT": (60, 95, 81, 54), "SFT+DPO": (61, 94, 81, 70)}
STAGES = {
    stage: {
        "tiny_choice": {"acc": choice},
        "tiny_tool_call": {"valid": valid, "exact": exact},
        "tiny_preference": {"acc": preference},
    }
    for stage, (choice, valid, exact, preference) in RIGHT.items()
}


def inputs_in(tmp_path: Path) -> dict:
    runs = {"SFT": write_run(tmp_path / "sft", sft_history())}
    runs["DPO"] = write_run(tmp_path / "dpo", dpo_history(), checkpoint="checkpoint-40")
    return {
        "mixes": [write_mix(tmp_path / "mix" / kind, kind) for kind in ("sft", "preference")],
        "runs": runs,
        "scores": {name: write_scores(tmp_path / "eval" / name, tasks) for name, tasks in STAGES.items()},
        "commands": ["hermes3 mix data_mixes/tiny_sft.yml", "axolotl train recipes/tiny_sft.yml && echo <done>"],
    }


@pytest.fixture
def inputs(tmp_path: Path) -> dict:
    return inputs_in(tmp_path)


def row_of(report: dict, task: str, metric: str) -> dict:
    rows = [*report["scores"]["rows"], *report["scores"]["details"]]
    return next(row for row in rows if (row["task"], row["metric"]) == (task, metric))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The report of `inputs`, written twice: to `out` and `again`."""
    folder = tmp_path_factory.mktemp("report")
    given = inputs_in(folder)
    write_report(folder / "again", **given)
    return write_report(folder / "out", **given), folder


def at(value: Any, path: str) -> Any:
    """What stands in `value` at `path`, e.g. `runs.0.kind`."""
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_report_numbers_and_what_the_verdict_says(written: tuple[dict, Path]) -> None:
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


def test_odd_first_dpo_loss_is_said(tmp_path: Path) -> None:
    odd = read_run("DPO", write_run(tmp_path / "odd", dpo_history(0.75)))
    assert "a wide gap means that the reference is another model" in words.first_loss(odd)
    assert "averages 5 steps" in words.first_loss(odd | {"first_step": 5})


def test_page_is_one_file_and_escapes(written: tuple[dict, Path]) -> None:
    report, folder = written
    assert sorted(path.name for path in (folder / "out").iterdir()) == PAGES
    for name in PAGES[:3]:
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()
    page = (folder / "out" / "index.html").read_text()
    assert len(page.encode()) < 300_000
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//\w+\.\w|@import|<script src|<link|<img|url\((?!#)", without_namespaces)
    assert "&amp;&amp; echo &lt;done&gt;" in page
    assert page.count("<svg") == 3
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {one or two for one, two in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page)} <= {*identifiers}
    # No colour but the page's variables: a fixed one would vanish in one of the two schemes.
    assert not re.search(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)))
    for row in [*report["scores"]["rows"], *report["scores"]["details"]]:
        for score in row["scores"].values():
            bounds = f"{100 * score['low']:.1f}\u2009–\u2009{100 * score['high']:.1f}"
            assert f"{100 * score['value']:.1f}\u00a0%<small>{bounds}</small>" in page
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    assert len(tables) == 14
    # reached without a mouse, each with a name
    for scrolls in re.findall(r'<div class="scroll"[^>]*>|<pre[^>]*>', page):
        assert 'tabindex="0"' in scrolls and ("aria-label=" in scrolls or scrolls.startswith("<pre"))
    assert not re.search(r"<(?:table|figure)[^>]*>\s*<caption", page)
    for table in tables:  # every row has as many cells as the head
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)}
        assert len(widths) == 1, table


def test_what_is_left_out_of_the_mean(inputs: dict, tmp_path: Path) -> None:
    """A task that one stage lacks; and whether answers end, which is shown and compared but says nothing of quality."""
    for stage, ended, more in (("base", 0, {}), ("SFT", 99, {}), ("SFT+DPO", 60, {"tiny_json_mode": {"valid": 9}})):
        tasks = STAGES[stage] | {"tiny_end_of_turn": {"ended": ended}} | more
        inputs["scores"][stage] = write_scores(tmp_path / stage, tasks)
    table = score_table([read_evaluation(*one) for one in inputs["scores"].items()], [])
    assert table["means"]["tasks"] == ["Choice", "Tool call", "Preference"]
    left_out = {one["task"]: one["reason"] for one in table["means"]["left_out"]}
    assert list(left_out) == ["End of turn", "Json mode"] and left_out["Json mode"] == "not measured on base"
    marks = [pair["mark"] for pair in row_of({"scores": table}, "tiny_end_of_turn", "ended")["comparisons"]]
    assert marks == ["better", "worse"]
    assert row_of({"scores": table}, "tiny_json_mode", "valid")["scores"]["base"] is None


def test_a_mean_of_a_part_of_the_questions_says_so_and_one_that_lacks_says_why(tmp_path: Path) -> None:
    folder = write_scores(
        tmp_path / "a", {"a": {"acc": 2}}, n=2, **{"n-samples": {"a": {"original": 90, "effective": 2}}}
    )
    write_report(tmp_path / "out", [], {}, {"SFT": folder}, [])
    assert "Mean of a (only a part of the questions of a), with" in (tmp_path / "out/summary.txt").read_text()
    assert "<strong>only a part of the questions</strong> of a</p>" in (tmp_path / "out/index.html").read_text()
    folder = write_scores(tmp_path / "b", {"b": {"acc": 50}}, higher_is_better={"b": {"acc": False}})
    write_report(tmp_path / "out", [], {}, {"SFT": folder}, [])
    sentence = "No mean is given. Left out of the mean: b: lower is better."
    assert (tmp_path / "out/summary.txt").read_text().startswith(sentence)


def test_scores_that_are_not_shares_of_samples(inputs: dict, tmp_path: Path) -> None:
    folder = inputs["scores"]["SFT"] / "outputs__model"
    samples = folder / f"samples_tiny_choice_{DATE}.jsonl"
    rows = [json.loads(line) | {"acc": "x"} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = folder / f"results_{DATE}.json"
    facts = json.loads(results.read_text())
    facts["results"]["tiny_choice"]["perplexity,none"] = 12.5
    facts["results"]["everything"] = {"alias": "everything", "acc,none": 0.5}
    results.write_text(json.dumps(facts))
    stages = [read_evaluation(*one) for one in inputs["scores"].items()]
    table = score_table(stages, [])
    (row, *_), (stage, *_) = table["rows"], [one for one in stages if one.name == "SFT"]
    assert row["scores"]["SFT"]["low"] == pytest.approx(0.6 - 1.959964 * 0.01)
    assert [pair["mark"] for pair in row["comparisons"]] == ["not tested", "not tested"]
    assert stage.skipped == []
    assert row_of({"scores": table}, "tiny_choice", "perplexity")["scale"] == 1


def test_highest_checkpoint_is_taken(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", sft_history(9), checkpoint="checkpoint-9")
    write_run(folder, sft_history(10), checkpoint="checkpoint-10")
    assert read_run("SFT", folder)["log"] == "checkpoint-10/trainer_state.json"


@pytest.mark.parametrize("what", ["scores", "runs", "mixes"])
def test_missing_inputs_name_the_folder(inputs: dict, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    inputs[what] = [tmp_path / "empty_folder"] if what == "mixes" else {"SFT": tmp_path / "empty_folder"}
    with pytest.raises(UserError, match="empty_folder"):
        write_report(tmp_path / "out", **inputs)
    assert not (tmp_path / "out").exists()


def test_scores_alone_make_a_report_and_losses_that_are_not_finite_are_said(inputs: dict, tmp_path: Path) -> None:
    run = write_run(tmp_path / "odd", dpo_history(math.nan))
    report = write_report(tmp_path / "out", [], {"DPO": run}, {"base": inputs["scores"]["base"]}, [])
    assert "losses that are not finite: do not use it" in report["verdict"][-2]
    assert report["scores"]["means"]["stages"]["base"]["value"] == pytest.approx((0.27 + 0.02 + 0.5) / 3)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The commands were not recorded." in page
    assert page.count("<svg") == 2


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


def test_cost_beside_the_plan_and_the_paper_of_the_recipe_that_writes_there(tmp_path: Path) -> None:
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
    scores = {name: dict(enumerate(values, 1)) for name, values in CASES["table 2"].items()}
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
    folders = {}
    for stage, answered in {"SFT": 60, "DPO": 90}.items():
        refusals = {"answered": answered, "refused": 100 - answered}
        folders[stage] = write_scores(tmp_path / stage, {"alignment_over_refusal": refusals, "a": {"acc": 50}})
    report = write_report(tmp_path / "out", [], {}, folders, [], suites=[load("alignment")])
    assert [row["task_label"] for row in report["scores"]["alignment"]] == ["Answers harmless requests"]
    assert report["scores"]["means"]["tasks"] == ["a"]
    assert "Neutral alignment: against SFT, DPO raised Answers harmless requests (+30.0)." in report["verdict"]
    assert "Against SFT, DPO left a without a clear difference." in report["verdict"]
    assert "<h2>Neutral alignment</h2>" in (tmp_path / "out" / "index.html").read_text()
    # of one stage alone
    row = {"task_label": "a", "scores": {"base": None, "SFT": {"n": 100}}, "comparisons": [{"mark": "not comparable"}]}
    smoke = words.alignment([row | {"scores": {"SFT": {"n": 2}}}], ["base", "SFT"])
    assert smoke == ["Neutral alignment: a smoke run of 2 questions per task, which says nothing of the model."]
    sentence = "Neutral alignment was measured on SFT alone, with at most 100 samples per task."
    assert words.alignment([row], ["base", "SFT"]) == [sentence]


def test_answers_that_changed_can_be_read(tmp_path: Path) -> None:
    """Ten questions per task, answered in text or by options, and the end of a script in a prompt."""
    folders = {"base": write_scores(tmp_path / "base", {"a": {"acc": 5}, "b": {"refused": 0}}, n=10)}
    lower = {"a": {"acc": True}, "b": {"refused": False}}
    folders["SFT"] = write_scores(
        tmp_path / "SFT", {"a": {"acc": 7}, "b": {"refused": 1}}, n=10, higher_is_better=lower
    )
    for stage, folder in folders.items():
        for path in folder.rglob("samples_*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                requests = {f"gen_args_{k}": {"arg_0": "x" * 2000 + " why?</script>", "arg_1": f"{k}!"} for k in (0, 1)}
                row |= {"arguments": requests, "target": 1, "resps": [[["-2.125", "False"]], [["-1.5", "True"]]]}
                row |= {"resps": [[f"{stage} says {row['doc_id']}"]]} if "samples_b" in path.name else {}
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(tmp_path / "out", [], {}, folders, [])
    counts = [(one["row"], one["step"], one["gained"], one["lost"]) for one in report["answers"]]
    assert counts == [("a", "base → SFT", 2, 0), ("b", "base → SFT", 0, 1)]  # to refuse more is to lose
    page = (tmp_path / "out" / "answers.html").read_text()
    data = page.partition('id="data">')[2].partition("</script>")[0]
    a, b = json.loads(data)
    assert [one["id"] for one in a["questions"]] == ["a/5", "a/6"]
    assert a["questions"][0]["answers"] == [[["0!", -2.12], ["1!", -1.5]]] * 2 and a["questions"][0]["target"] == "1!"
    assert b["questions"][0]["answers"] == ["base says 0", "SFT says 0"]
    assert a["questions"][0]["prompt"].startswith("[514 characters left out] …")
    assert a["questions"][0]["prompt"].endswith("why?</script>")
    assert 'href="index.html"' in page
    assert 'href="answers.html"' in (tmp_path / "out" / "index.html").read_text()


def test_answers_of_a_task_under_two_protocols_are_those_of_the_row(tmp_path: Path) -> None:
    """0-shot and 5-shot of one task, and in each stage another of them is the newest."""
    right = {"base": {0: 50, 5: 60}, "SFT": {0: 53, 5: 58}}
    for stage, of_shots in right.items():
        for place, (shots, k) in enumerate(of_shots.items() if stage == "base" else reversed(of_shots.items())):
            date = f"2025-01-0{place + 1}T00-00-00.000000"
            folder = write_scores(tmp_path / stage / f"{shots}_shot", {"a": {"acc": k}}, date=date, shots=shots)
            for path in folder.rglob("samples_*.jsonl"):
                records = [json.loads(line) for line in path.read_text().splitlines()]
                more = {"arguments": {"gen_args_0": {"arg_0": f"{shots} examples"}}, "resps": [[f"{stage}, {shots}"]]}
                path.write_text("".join(json.dumps(record | more) + "\n" for record in records))
    facts = {"batch_size": 1, "max_length": 1, "device": "cpu", "dtype": "float32", "seed": 1}
    suites = [
        Suite(name=f"s{shots}", groups={f"A{shots}": {"tasks": {"a": "acc"}, "num_fewshot": shots}}, **facts)
        for shots in (0, 5)
    ]
    folders = {stage: tmp_path / stage for stage in right}
    report = write_report(tmp_path / "out", [], {}, folders, [], suites=suites)
    assert [row["task_label"] for row in report["scores"]["rows"]] == ["A0", "A5"]
    counts = [(one["row"], one["gained"], one["lost"]) for one in report["answers"]]
    assert counts == [("A0", 3, 0), ("A5", 0, 2)]
    data = (tmp_path / "out/answers.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    for step, shots, ids in zip(json.loads(data), (0, 5), ({"50", "51", "52"}, {"58", "59"}), strict=True):
        assert {one["id"].rpartition("/")[2] for one in step["questions"]} == ids
        for one in step["questions"]:
            assert (one["prompt"], one["answers"]) == (f"{shots} examples", [f"base, {shots}", f"SFT, {shots}"])
