"""The report against the paper: what is comparable, what the marks are, and every sentence of the verdict."""

import re
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from lm_eval_files import CASES, evaluation, first, write_report, write_run, write_scores

from bench.lm_eval_results import paper_suite, write
from hermes3.report import build, words
from hermes3.report.tables import OTHERWISE, compare_with_paper, score_table, what_dpo_changed
from hermes3.results.groups import Group, groups_of
from hermes3.results.published import Table, load
from hermes3.results.suite import GroupSpec
from hermes3.stats import equivalence

COLUMNS = {"hermes3_8b": "the paper's model", "llama31_8b": "Llama"}


def stage_of(right, name="SFT", n=1000, **more):
    return evaluation({task: first(k, n) for task, k in right.items()}, name, **more)


def groups(*names):
    return [Group(name, ((name, "acc", "none"),), suite="paper") for name in names]


def compared(stage, of, rows, columns=COLUMNS):
    """`stage` beside a published table; a row's `values` are those of the columns."""
    rows = {name: {"setting": "0-shot"} | row for name, row in rows.items()}
    return compare_with_paper([stage], of, Table(title="", columns=columns, rows=rows), {"8b"})


def printed(stage, **values):
    """`stage` beside a table that prints `values`, and 10 points less for Llama."""
    rows = {name: {"values": [value, value - 10], "shots": 0} for name, value in values.items()}
    return compared(stage, groups(*values), rows)


def test_a_published_score_is_a_draw_of_as_many_questions_and_holm_goes_column_by_column():
    """600 of 1000 against 57.0: z = 0.03 / sqrt(2 * 0.585 * 0.415 / 1000) = 1.361, p = 0.1734; Newcombe's interval."""
    pair = printed(stage_of({"a": 600}), a=57.0)["rows"][0]["against"]["hermes3_8b"]
    assert (pair["mark"], pair["p"]) == ("same", pytest.approx(0.1734, abs=2e-4))
    assert (pair["low"], pair["difference"], pair["high"]) == pytest.approx((-0.0132, 0.03, 0.0730), abs=2e-4)
    # a p of 0.03 is a mark alone in its column, and none among three
    assert printed(stage_of({"a": 600}), a=55.2)["rows"][0]["against"]["hermes3_8b"]["mark"] == "better"
    pair, llama = printed(stage_of({"a": 600, "b": 500, "c": 500}), a=55.2, b=50, c=50)["rows"][0]["against"].values()
    assert pair["p"] < 0.05 < pair["p_holm"] == pytest.approx(3 * pair["p"])
    assert (pair["mark"], llama["mark"]) == ("same", "better")


@pytest.mark.parametrize("case", CASES["not_comparable"], ids=lambda case: case["reason"])
def test_not_comparable_says_why(case):
    group = Group("a", tuple((task, "acc", "none") for task in case.get("tasks", "a")), by_question=False)
    table = compared(stage_of(**case["stage"]), [group], {"a": {"values": [50, 40], "shots": 0} | case.get("row", {})})
    for pair in table["rows"][0]["against"].values():
        assert (pair["mark"], pair["reason"]) == ("not comparable", case["reason"])
        assert "p" not in pair
    assert table["mean"] is None and case["reason"] in words.reproduced(table)


def test_a_row_under_another_protocol_is_shown_and_is_no_part_of_the_verdict(tmp_path):
    """Of two rows of multiple choice one was asked through the template, the other as the paper's."""
    write_scores(tmp_path / "plain", {"arc_easy": {"acc_norm": 80}}, chat_template_sha=None)
    write_scores(tmp_path / "chat", {"arc_challenge": {"acc_norm": 30}}, date="2025-02-03T04-05-06.000000")
    report = build.write_report(tmp_path / "out", [], {}, {"SFT": [tmp_path]}, [], "8b")
    hard, easy = (row for row in report["paper"]["rows"] if row["name"] in ("ARC-E", "ARC-C"))
    ours, paper = "0-shot, with the chat template", "0-shot, without the chat template"
    assert easy["protocol"] == {"ours": paper, "paper": paper} and "p" in easy["against"]["hermes3_8b"]
    assert hard["protocol"] == {"ours": ours, "paper": paper}
    for pair in hard["against"].values():
        assert pair["mark"] == OTHERWISE and "p" not in pair and pair["low"] < pair["difference"] < -0.2
    assert report["paper"]["mean"]["rows"] == 1
    assert report["verdict"][0].startswith("Compared on 1 of 17 rows")
    assert f"ARC-C (under another protocol: {ours}; the paper's: {paper})" in report["verdict"][0]
    assert f"<small>here: {ours}; the paper: {paper}</small>" in (tmp_path / "out/index.html").read_text()


def suite(name, shots=0, **tasks):
    of = {group: GroupSpec(tasks=of, num_fewshot=shots, aggregation="weighted") for group, of in tasks.items()}
    return SimpleNamespace(name=name, groups=of)


def test_suites_name_groups_through_lm_evals_own_and_each_once():
    stage = stage_of({"mmlu_a": 500, "mmlu_b": 600, "x": 700})
    stage.subtasks.update({"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_a", "mmlu_b"]})
    paper = suite("paper", MMLU={"mmlu": "acc"}, X={"x": "acc"}, GONE={"gone": "acc"})
    other = suite("quick", MMLU={"mmlu_a": "acc"}, X={"x": "acc"}, BOTH={"x": "acc", "mmlu_b": "acc"})
    of = groups_of([stage], [paper, other])
    assert [(group.name, len(group.members)) for group in of] == [("MMLU", 2), ("X", 1), ("BOTH", 2)]
    # another number of shots is another measurement: no group takes it for its own
    ten, none = stage_of({"x": 700}, "ten", shots=10), stage_of({"x": 500}, "none")
    assert groups_of([stage_of({"x": 700}, shots=5)], [paper]) == []
    of = groups_of([ten, none], [suite("paper", 10, X={"x": "acc"}), suite("epoch_selection", ZERO={"x": "acc"})])
    table = score_table([ten, none], of)
    values = [[score and score["value"] for score in row["scores"].values()] for row in table["rows"]]
    assert (values, [row["shots"] for row in table["rows"]]) == ([[0.7, None], [None, 0.5]], [10, 0])
    assert [row["comparisons"][0]["reason"] for row in table["rows"]] == ["not measured on none", "not measured on ten"]


def test_what_counts_in_the_mean():
    """A task once, and in percent: not a judge's marks, though it rates every answer 1."""
    stages = [stage_of({"a": 500, "b": 700, "mt_bench": 1000}, name) for name in ("SFT", "DPO")]
    for stage in stages:
        stage.scores["mt_bench", "acc", "none"] = replace(stage.scores["mt_bench", "acc", "none"], scale=1)
    both = Group("both", tuple((task, "acc", "none") for task in "ab"))
    means = score_table(stages, [*groups("a"), both])["means"]
    assert means["stages"]["SFT"]["value"] == 0.5
    left_out = {one["task"]: one["reason"] for one in means["left_out"]}
    assert left_out == {"both": "its tasks are in another row", "mt_bench": "not in percent"}


@pytest.mark.parametrize("case", CASES["verdicts"], ids=lambda case: case["says"][:30])
def test_did_it_reproduce(case):
    table = printed(stage_of(case["right"], n=case.get("n", 1000)), **case["printed"])
    assert re.search(case["says"], words.reproduced(table))


@pytest.mark.parametrize("case", CASES["changes"], ids=lambda case: case["says"])
def test_up_is_up_and_whether_that_is_good_is_said(case):
    stages = [stage_of({"a": case[side]}, name) for side, name in (("before", "A"), ("after", "B"))]
    for stage in stages:
        key = ("a", "acc", "none")
        stage.scores[key] = replace(stage.scores[key], higher_is_better=case["better"])
    assert words.step(score_table(stages, [])["rows"], 0) == f"Against A, {case['says']}"


def test_equivalence_errs_at_the_margin_in_5_percent_at_most():
    """Our score 2 points above the paper's, each a draw of 4,000 questions: "within 2 points" is then wrong."""
    draw, n, stderr = Random(7), 4000, (2 * 0.61 * 0.39 / 4000) ** 0.5
    gaps = [draw.gauss(0.02, ((0.62 * 0.38 + 0.60 * 0.40) / n) ** 0.5) for _ in range(4000)]
    wrong = [equivalence(gap, gap - 1.96 * stderr, gap + 1.96 * stderr, 0.02)["equal"] for gap in gaps]
    assert sum(wrong) / len(wrong) <= 0.055
    # 4,000 questions show a gap of 3.1 points in four of five cases
    assert equivalence(0, -1.96 * stderr, 1.96 * stderr, 0.02)["detectable"] == pytest.approx(0.0306, abs=2e-4)


def test_mt_bench_is_on_its_own_scale():
    stage = evaluation({"mt_bench": [7.5 + (doc % 5) / 4 for doc in range(80)]})
    rows = {"MT-Bench": {"values": [8.27], "scale": 1}}
    of, column = [Group("MT-Bench", (("mt_bench", "acc", "none"),))], {"hermes3_8b": "it"}
    table = compared(stage, of, rows, column)
    pair = table["rows"][0]["against"]["hermes3_8b"]
    assert (pair["mark"], pair["difference"]) == ("worse", pytest.approx(-0.27))
    assert table["mean"] is None  # not a share
    assert "lower than it on MT-Bench (−0.27)" in words.reproduced(table)
    table = compared(stage, of, {"MT-Bench": {"values": [82.7]}}, column)
    assert table["rows"][0]["against"]["hermes3_8b"]["reason"] == "measured in points, published in another unit"
    stage.tasks["mt_bench"]["judge"] = "some-model"
    assert "judged by some-model in a wording of our own" in words.reproduced(compared(stage, of, rows, column))


@pytest.mark.parametrize("asked", [0, 5000])
def test_what_dpo_changed_beside_the_paper(asked):
    stages = [stage_of({"agi": right}, name, asked=asked) for name, right in (("SFT", 400), ("SFT+DPO", 450))]
    scores = score_table(stages, [Group("AGIEval", (("agi", "acc", "none"),))])
    step = {row["name"]: row for row in what_dpo_changed(scores, {"8b"})}
    assert step["AGIEval"]["published"] == pytest.approx(0.0109)
    assert step["AGIEval"].get("inside") is (None if asked else False)
    assert step["AGIEval"]["ours"].get("reason") == ("only a part of the questions" if asked else None)
    assert step["IFEval"]["ours"]["reason"] == "not measured"
    assert "which tasks of BIG-Bench" in step["Big Bench"]["ours"]["reason"]
    assert what_dpo_changed(scores, {"70b"}) == []


def test_which_of_the_papers_models(tmp_path, monkeypatch):
    """That of all runs' recipes; its 8B has gone through DPO, its others have not."""
    stages = [stage_of({"a": 1}, name) for name in ("base", "SFT", "SFT+DPO")]
    tables = {size: compare_with_paper(stages, [], load("table5"), {size}) for size in ("8b", "70b", "405b")}
    assert {size: table["stage"] for size, table in tables.items()} == {"8b": "SFT+DPO", "70b": "SFT", "405b": "SFT"}
    rows = {row["name"]: row for row in tables["8b"]["rows"]}
    assert len(rows) == 17 and rows["MT-Bench"]["scale"] == 1
    published = {column: pair["published"] for column, pair in rows["MMLU"]["against"].items()}
    assert published == pytest.approx({"hermes3_8b": 0.6479, "llama31_8b": 0.6805})
    monkeypatch.setattr(build, "recipe_of", lambda folder: folder.name and Path(f"recipes/{folder.name}.yml"))
    runs = {name: write_run(tmp_path / name, [{"step": 1, "loss": 1.0}]) for name in ("70b_sft", "70b_dpo", "8b_dpo")}
    scores = {"base": write_scores(tmp_path / "base", {"a": {"acc": 1}})}
    for names, size in ((["70b_sft", "70b_dpo"], "70b"), (["70b_sft", "8b_dpo"], None), ([], None)):
        paper = write_report(tmp_path / "out", scores, {name: runs[name] for name in names})["paper"]
        assert paper.get("size") == size and (size or "follows a recipe of the paper" in paper["reason"])


def test_the_whole_suite(tmp_path):
    """Every task of the paper's suite in lm-eval's files: its groups are found, each with all of its questions."""
    write(tmp_path / "eval", list(paper_suite()), small=True)
    report = build.write_report(tmp_path / "out", [], {}, {"SFT": [tmp_path / "eval"]}, [], "8b")
    rows = {row["name"]: row for row in report["paper"]["rows"]}
    apart = {name: row["against"]["hermes3_8b"].get("reason") for name, row in rows.items()}
    assert {name: reason for name, reason in apart.items() if reason} == {"MT-Bench": "not measured"}
    n = {name: row["score"]["n"] for name, row in rows.items() if row["score"]}
    assert (n["AGIEval"], n["BBH"], n["GPQA"], n["MATH Lvl 5"]) == (2546, 5761, 1192, 1324)
    assert (n["MMLU"], n["MMLU-PRO"], n["MuSR"], n["IFEval"]) == (14042, 12032, 756, 541)
    assert sum(n.values()) == 59_476
    assert (tmp_path / "out" / "index.html").stat().st_size < 1_000_000
