"""The report against the paper: what is comparable, what the marks are, and every sentence of the verdict."""

import re
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import yaml
from lm_eval_files import evaluation, first, write_scores

from bench.lm_eval_results import paper_suite, write
from hermes3.report import words
from hermes3.report.against_paper import compare_with_paper, compare_with_table, size_of, what_dpo_changed
from hermes3.report.build import write_report
from hermes3.report.stages import score_table
from hermes3.results.groups import Group, groups_of, score_of
from hermes3.results.lm_eval import Evaluation, read_evaluation
from hermes3.results.published import Table
from hermes3.results.suite import GroupSpec
from hermes3.stats import equivalence, wilson

CASES = yaml.safe_load(Path(__file__).with_name("report_cases.yml").read_text(encoding="utf-8"))
COLUMNS = {"ours": "the paper's model", "llama": "Llama"}


def stage_of(right: dict[str, int], name: str = "SFT", n: int = 1000, **more: int) -> Evaluation:
    return evaluation({task: first(k, n) for task, k in right.items()}, name, **more)


def groups(*names: str) -> list[Group]:
    return [Group(name, ((name, "acc", "none"),), suite="paper") for name in names]


def table_of(rows: dict[str, dict], columns: dict[str, str] = COLUMNS) -> Table:
    """A published table; a row's `values` are those of the columns."""
    return Table(title="", columns=columns, rows={name: {"setting": "0-shot"} | row for name, row in rows.items()})


def rows(**values: float) -> Table:
    return table_of({name: {"values": [value, value - 10], "shots": 0} for name, value in values.items()})


def compared(right: dict[str, float], **values: float) -> dict:
    return compare_with_table(stage_of(right), groups(*values), rows(**values), list(COLUMNS))


def row_of(table: dict, name: str) -> dict:
    return next(row for row in table["rows"] if row["name"] == name)


def test_a_published_score_is_a_draw_of_as_many_questions() -> None:
    """600 of 1000 against 57.0: z = 0.03 / sqrt(2 * 0.585 * 0.415 / 1000) = 1.361, p = 0.1734; Newcombe's interval."""
    pair = row_of(compared({"a": 600}, a=57.0), "a")["against"]["ours"]
    assert pair["mark"] == "same"
    assert pair["p"] == pytest.approx(0.1734, abs=2e-4)
    assert (pair["low"], pair["difference"], pair["high"]) == pytest.approx((-0.0132, 0.03, 0.0730), abs=2e-4)


def test_marks_and_holm_go_column_by_column() -> None:
    """A p of 0.03 is a mark alone in its column, and none among three."""
    alone = compared({"a": 600}, a=55.2)
    assert row_of(alone, "a")["against"]["ours"]["mark"] == "better"
    table = compared({"a": 600, "b": 500, "c": 500}, a=55.2, b=50, c=50)
    pair = row_of(table, "a")["against"]["ours"]
    assert pair["p"] < 0.05 < pair["p_holm"] == pytest.approx(3 * pair["p"])
    assert pair["mark"] == "same"
    assert row_of(table, "a")["against"]["llama"]["mark"] == "better"


@pytest.mark.parametrize("case", CASES["not_comparable"], ids=lambda case: case["reason"])
def test_not_comparable_says_why(case: dict) -> None:
    published = table_of({"a": {"values": [50, 40], "shots": 0} | case.get("row", {})})
    table = compare_with_table(stage_of(**case["stage"]), groups("a"), published, list(COLUMNS))
    for pair in table["rows"][0]["against"].values():
        assert (pair["mark"], pair["reason"]) == ("not comparable", case["reason"])
        assert "p" not in pair
    assert table["mean"] is None
    assert case["reason"] in words.reproduced(table)


def test_a_row_under_another_protocol_is_shown_and_is_no_part_of_the_verdict(tmp_path: Path) -> None:
    """Of two rows of multiple choice one was asked through the template, the other as the paper's."""
    write_scores(tmp_path / "plain", {"arc_easy": {"acc_norm": 80}}, chat_template_sha=None)
    write_scores(tmp_path / "chat", {"arc_challenge": {"acc_norm": 30}}, date="2025-02-03T04-05-06.000000")
    report = write_report(tmp_path / "out", [], {}, {"SFT": [tmp_path]}, [], "8b")
    easy, hard = (row_of(report["paper"], name) for name in ("ARC-E", "ARC-C"))
    ours, paper = "0-shot, with the chat template", "0-shot, without the chat template"
    assert easy["protocol"] == {"ours": paper, "paper": paper} and "p" in easy["against"]["hermes3_8b"]
    assert hard["protocol"] == {"ours": ours, "paper": paper}
    for pair in hard["against"].values():
        assert pair["mark"] == words.OTHERWISE and "p" not in pair and pair["low"] < pair["difference"] < -0.2
    assert report["paper"]["mean"]["rows"] == 1
    assert report["verdict"][0].startswith("Compared on 1 of 17 rows")
    assert f"ARC-C (under another protocol: {ours}; the paper's: {paper})" in report["verdict"][0]
    page = (tmp_path / "out/index.html").read_text()
    assert f"<small>here: {ours}; the paper: {paper}</small>" in page
    assert f'<span class="{words.OTHERWISE}">{words.OTHERWISE}</span>' in page


def test_a_group_lacking_tasks_is_not_averaged() -> None:
    group = Group("A", tuple((task, "acc", "none") for task in "abc"), by_question=False, suite="paper")
    stage = stage_of({"a": 500, "c": 700})
    table = compare_with_table(stage, [group], rows(A=60), list(COLUMNS))
    assert table["rows"][0]["score"] is None
    assert table["rows"][0]["against"]["ours"]["reason"] == "1 of 3 tasks not measured: b"


def test_groups_weigh_tasks_or_questions() -> None:
    stage = evaluation({"a": first(900), "b": first(20, 100)})
    keys = (("a", "acc", "none"), ("b", "acc", "none"))
    by_task, by_question = score_of(stage, Group("g", keys, by_question=False)), score_of(stage, Group("g", keys))
    assert by_task.value == pytest.approx((0.9 + 0.2) / 2)
    assert by_question.value == pytest.approx(920 / 1100)
    assert (by_question.low, by_question.high) == pytest.approx(wilson(920, 1100))


def suite(name: str, **given: dict) -> SimpleNamespace:
    groups = {group: GroupSpec(tasks=tasks, num_fewshot=0, aggregation="weighted") for group, tasks in given.items()}
    return SimpleNamespace(name=name, groups=groups)


def test_suites_name_groups_through_lm_evals_own_and_each_once() -> None:
    stage = stage_of({"mmlu_a": 500, "mmlu_b": 600, "x": 700})
    stage.subtasks.update({"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_a", "mmlu_b"]})
    paper = suite("paper", MMLU={"mmlu": "acc"}, X={"x": "acc"}, GONE={"gone": "acc"})
    other = suite("quick", MMLU={"mmlu_a": "acc"}, X={"x": "acc"}, BOTH={"x": "acc", "mmlu_b": "acc"})
    found = groups_of([stage], [paper, other])
    assert [(group.name, len(group.members)) for group in found] == [("MMLU", 2), ("X", 1), ("BOTH", 2)]
    # another number of shots is another measurement: no group takes it for its own
    five = stage_of({"x": 700}, shots=5)
    assert groups_of([five], [paper]) == []
    assert [row["task"] for row in score_table([five], [])["rows"]] == ["x"]


def test_stages_of_two_suites_are_taken_by_their_shots() -> None:
    """One stage ran HellaSwag with 10 examples, the other with none: neither group takes the other's."""
    ten, none = stage_of({"x": 700}, "ten", shots=10), stage_of({"x": 500}, "none")
    with_ten = suite("paper", X={"x": "acc"})
    with_ten.groups["X"].num_fewshot = 10
    found = groups_of([ten, none], [with_ten, suite("epoch_selection", ZERO={"x": "acc"})])
    assert [(group.name, group.protocol.shots) for group in found] == [("X", 10), ("ZERO", 0)]
    table = score_table([ten, none], found)
    values = [[score and score["value"] for score in row["scores"].values()] for row in table["rows"]]
    assert values == [[0.7, None], [None, 0.5]]
    assert [row["shots"] for row in table["rows"]] == [10, 0]
    assert [row["comparisons"][0]["reason"] for row in table["rows"]] == ["not measured on none", "not measured on ten"]
    assert table["details"] == []


def test_what_counts_in_the_mean() -> None:
    """A task once; of a row of which only a part was asked, that is said."""
    stages = [stage_of({"a": 500, "b": 700}, "SFT"), stage_of({"a": 500, "b": 700}, "DPO")]
    both = Group("both", tuple((task, "acc", "none") for task in "ab"))
    means = score_table(stages, [*groups("a"), both])["means"]
    assert means["stages"]["SFT"]["value"] == 0.5
    assert means["left_out"] == [{"task": "both", "reason": "its tasks are in another row"}]
    stage = evaluation({"a": first(500), "b": first(5, 10)})
    stage.tasks["b"]["questions"] = 1000
    table = score_table([stage], [])
    assert ["only a part" in row["metric_label"] for row in table["rows"]] == [False, True]
    assert "Asked of only a part of the questions: b." in words.say("means", table["means"])


@pytest.mark.parametrize("case", CASES["verdicts"], ids=lambda case: case["says"][:30])
def test_did_it_reproduce(case: dict) -> None:
    stage = stage_of(case["right"], n=case.get("n", 1000))
    table = compare_with_table(stage, groups(*case["printed"]), rows(**case["printed"]), list(COLUMNS))
    assert re.search(case["says"], words.reproduced(table))


@pytest.mark.parametrize("case", CASES["changes"], ids=lambda case: case["says"])
def test_up_is_up_and_whether_that_is_good_is_said(case: dict) -> None:
    stages = [stage_of({"a": case[side]}, name) for side, name in (("before", "A"), ("after", "B"))]
    for stage in stages:
        key = ("a", "acc", "none")
        stage.scores[key] = replace(stage.scores[key], higher_is_better=case["better"])
    table = score_table(stages, [])
    assert words.step(table["rows"], 0, "A", "B") == f"Against A, {case['says']}"


def test_equivalence_errs_at_the_margin_in_5_percent_at_most() -> None:
    """Our score 2 points above the paper's, each a draw of 4,000 questions: "within 2 points" is then wrong."""
    draw = Random(7)
    wrong, n, trials = 0, 4000, 4000
    for _ in range(trials):
        ours, theirs = (draw.gauss(p, (p * (1 - p) / n) ** 0.5) for p in (0.62, 0.60))
        stderr = (2 * 0.61 * 0.39 / n) ** 0.5
        gap = ours - theirs
        wrong += equivalence(gap, gap - 1.96 * stderr, gap + 1.96 * stderr, 0.02)["equal"]
    assert wrong / trials <= 0.055
    # 4,000 questions show a gap of 3.1 points in four of five cases
    assert equivalence(0, -1.96 * stderr, 1.96 * stderr, 0.02)["detectable"] == pytest.approx(0.0306, abs=2e-4)


def test_mt_bench_is_on_its_own_scale() -> None:
    stage = evaluation({"mt_bench": [7.5 + (doc % 5) / 4 for doc in range(80)]})
    group = Group("MT-Bench", (("mt_bench", "acc", "none"),))
    published = table_of({"MT-Bench": {"values": [8.27], "scale": 1}}, {"ours": "it"})
    table = compare_with_table(stage, [group], published, ["ours"])
    pair = table["rows"][0]["against"]["ours"]
    assert (pair["mark"], pair["difference"]) == ("worse", pytest.approx(-0.27))
    assert table["mean"] is None  # not a share
    assert "lower than it on MT-Bench (−0.27)" in words.reproduced(table)
    stage.tasks["mt_bench"]["judge"] = "some-model"
    table = compare_with_table(stage, [group], published, ["ours"])
    assert "judged by some-model in a wording of our own" in table["rows"][0]["against"]["ours"]["reason"]


def test_a_model_rated_1_everywhere_has_a_point_and_no_hundred_percent(tmp_path: Path) -> None:
    stage = read_evaluation("SFT", write_scores(tmp_path / "SFT", {"mt_bench": {"score": 100}, "a": {"acc": 50}}))
    assert not stage.scores["mt_bench", "score", "none"].binary
    table = score_table([stage], [])
    assert [row["scale"] for row in table["rows"]] == [1, 100]
    assert table["means"]["stages"]["SFT"]["value"] == 0.5


@pytest.mark.parametrize("right", [0, 541])
def test_ifeval_with_nothing_right_keeps_an_interval(right: int) -> None:
    stage = stage_of({"ifeval": right}, n=541)
    stage.scores["ifeval", "inst", "none"] = stage.scores["ifeval", "acc", "none"]
    group = Group("IFEval", (("ifeval", "acc", "none"), ("ifeval", "inst", "none")), by_question=False)
    score = score_of(stage, group)
    assert (score.low, score.high) == pytest.approx(wilson(right, 541))
    published = table_of({"IFEval": {"values": [abs(100 * right / 541 - 0.2)]}}, {"ours": "it"})
    table = compare_with_table(stage, [group], published, ["ours"])
    assert table["rows"][0]["against"]["ours"]["mark"] == "same"


def test_the_papers_own_tables() -> None:
    table = compare_with_paper([stage_of({"a": 1})], [], "8b", {})
    assert table["columns"] == {"hermes3_8b": "Hermes 3 8B", "llama31_8b": "Llama 3.1 8B Instruct"}
    assert len(table["rows"]) == 17
    published = [pair["published"] for pair in row_of(table, "MMLU")["against"].values()]
    assert published == pytest.approx([0.6479, 0.6805])
    assert row_of(table, "MT-Bench")["scale"] == 1
    assert "66.70" in row_of(table, "IFEval")["note"]


@pytest.mark.parametrize("asked", [0, 5000])
def test_what_dpo_changed_beside_the_paper(asked: int) -> None:
    stages = [stage_of({"agi": right}, name, asked=asked) for name, right in (("SFT", 400), ("SFT+DPO", 450))]
    scores = score_table(stages, [Group("AGIEval", (("agi", "acc", "none"),))])
    step = {row["name"]: row for row in what_dpo_changed(scores, "8b")}
    assert step["AGIEval"]["published"] == pytest.approx(0.0109)
    assert step["AGIEval"].get("inside") is (None if asked else False)
    assert step["AGIEval"]["ours"].get("reason") == ("only a part of the questions" if asked else None)
    assert step["IFEval"]["ours"]["reason"] == "not measured"
    assert "which tasks of BIG-Bench" in step["Big Bench"]["ours"]["reason"]
    assert what_dpo_changed(scores, "70b") == []


def test_which_of_the_papers_models() -> None:
    recipes = {"SFT": Path("recipes/70b_sft.yml"), "DPO": Path("recipes/70b_dpo.yml")}
    assert size_of(recipes) == "70b"
    for other in (recipes | {"DPO": Path("recipes/8b_dpo.yml")}, {"SFT": Path("recipes/tiny_sft.yml")}, {"SFT": None}):
        assert size_of(other) is None
    stage = stage_of({"a": 1})
    assert "follows a recipe of the paper" in compare_with_paper([stage], [], None, {})["reason"]
    assert compare_with_paper([stage], [], None, recipes)["size"] == "70b"
    # the paper's 8B has gone through DPO, its others have not
    stages = [stage_of({"a": 1}, name) for name in ("base", "SFT", "SFT+DPO")]
    compared = {size: compare_with_paper(stages, [], size, {})["stage"] for size in ("8b", "70b", "405b")}
    assert compared == {"8b": "SFT+DPO", "70b": "SFT", "405b": "SFT"}
    assert compare_with_paper(stages[:1], [], "70b", {})["stage"] == "base"
    with pytest.raises(ValueError, match="--size 9b: the paper has 8b, 70b, 405b"):
        compare_with_paper([stage], [], "9b", {})


def test_the_whole_suite(tmp_path: Path) -> None:
    """Every task of the paper's suite in lm-eval's files: its groups are found, each with all of its questions."""
    write(tmp_path / "eval", list(paper_suite()), small=True)
    report = write_report(tmp_path / "out", [], {}, {"SFT": [tmp_path / "eval"]}, [], "8b")
    found = {row["name"]: row for row in report["paper"]["rows"]}
    apart = {name: row["against"]["hermes3_8b"].get("reason") for name, row in found.items()}
    assert {name: reason for name, reason in apart.items() if reason} == {"MT-Bench": "not measured"}
    n = {name: row["score"]["n"] for name, row in found.items() if row["score"]}
    assert (n["AGIEval"], n["BBH"], n["GPQA"], n["MATH Lvl 5"]) == (2546, 5761, 1192, 1324)
    assert (n["MMLU"], n["MMLU-PRO"], n["MuSR"], n["IFEval"]) == (14042, 12032, 756, 541)
    assert sum(n.values()) == 59_476
    labels = [row["task_label"] for row in report["scores"]["rows"]]
    assert [name for name in labels if "," not in name] == [name for name in found if name != "MT-Bench"]
    assert re.match(r"Compared on 1\d of 17 rows of the paper's table: it ", report["verdict"][0])
    assert (tmp_path / "out" / "index.html").stat().st_size < 1_000_000
