"""The report: its statistics by hand, its numbers through synthetic inputs in the tools' own layouts, and its pages."""

import json
import math
import re
from pathlib import Path

import pytest
from lm_eval_files import DATE, dpo_history, sft_history, write_mix, write_report, write_run, write_scores

from hermes3.report import words
from hermes3.report.runs import read_run
from hermes3.report.stages import score_table
from hermes3.results.lm_eval import read_evaluation
from hermes3.stats import wilson

# stage -> task -> metric -> right answers of 100 documents; every stage is right on the first documents.
STAGES = {
    stage: {
        "tiny_choice": {"acc": choice},
        "tiny_tool_call": {"valid": valid, "exact": exact},
        "tiny_preference": {"acc": preference},
    }
    for stage, choice, valid, exact, preference in [
        ("base", 27, 2, 0, 50),
        ("SFT", 60, 95, 81, 54),
        ("SFT+DPO", 61, 94, 81, 70),
    ]
}


def inputs_in(tmp_path: Path) -> dict:
    commands = ["hermes3 mix data_mixes/tiny_sft.yml", "axolotl train recipes/tiny_sft.yml && echo <done>"]
    return {
        "mixes": [write_mix(tmp_path / "mix" / kind, kind) for kind in ("sft", "preference")],
        "runs": {
            "SFT": write_run(tmp_path / "sft", sft_history()),
            "DPO": write_run(tmp_path / "dpo", dpo_history(), checkpoint="checkpoint-40"),
        },
        "scores": {name: write_scores(tmp_path / "eval" / name, tasks) for name, tasks in STAGES.items()},
        "commands": commands,
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


def test_report_numbers_and_what_the_verdict_says(written: tuple[dict, Path]) -> None:
    report, folder = written
    assert json.loads((folder / "out" / "report.json").read_text()) == report

    choice = row_of(report, "tiny_choice", "acc")
    score = choice["scores"]["SFT"]
    assert (score["value"], score["right"], score["n"], score["interval"]) == (0.6, 60, 100, "wilson")
    assert (score["low"], score["high"]) == wilson(60, 100)
    first, second = choice["comparisons"]
    # Documents 27..59 turned right: 33 gained, none lost, mid-p = 2 / 2**33 / 2; 6 tests in the table.
    assert (first["gained"], first["lost"], first["mark"]) == (33, 0, "better")
    assert first["p"] == pytest.approx(1 / 2**33)
    assert first["p"] < first["p_holm"] <= 6 * first["p"]
    assert first["change"] == pytest.approx(0.33)
    assert 0 < first["low"] < 0.33 < first["high"]
    assert (second["gained"], second["lost"], second["mark"]) == (1, 0, "no clear difference")

    assert [(row["task_label"], row["metric"]) for row in report["scores"]["rows"]][1] == ("Tool call", "valid")
    assert [(row["task_label"], row["metric"]) for row in report["scores"]["details"]] == [("Tool call", "exact")]
    means = report["scores"]["means"]
    assert means["stages"]["SFT"]["value"] == pytest.approx((0.60 + 0.95 + 0.54) / 3)
    assert means["left_out"] == []

    sft, dpo = report["runs"]
    assert (sft["kind"], sft["steps"], sft["log"]) == ("sft", 60, "trainer_state.json")
    assert (dpo["kind"], dpo["log"]) == ("preference", "checkpoint-40/trainer_state.json")
    assert dpo["points"][-1]["accuracy"] == pytest.approx(0.9)

    general, domain = report["mixes"][0]["categories"][:2]
    assert (general["share"], general["paper_share"]) == (0.6, pytest.approx(0.606))
    assert (domain["key"], domain["tokens"]) == ("domain_expert", 0)
    assert [row["key"] for row in report["mixes"][1]["categories"]] == ["alignment", "style"]
    assert report["mixes"][0]["rejects"][0] == {"stage": "filters", "reason": "refusal", "count": 5}

    means, sft, dpo, first_loss, paper = report["verdict"]
    assert "base 26.3\u00a0%" in means
    assert "SFT raised Choice (+33.0) and Tool call (+93.0)" in sft
    assert "left Preference without a clear difference" in sft
    assert "SFT+DPO raised Preference (+16.0); it left Choice and Tool call without a clear difference" in dpo
    assert "is 0.6931; ln 2 is 0.6931: the policy starts as its own reference" in first_loss
    assert "Not compared with the paper: no run follows a recipe of the paper" in paper


def test_odd_first_dpo_loss_is_said(tmp_path: Path) -> None:
    odd = read_run("DPO", write_run(tmp_path / "odd", dpo_history(0.75)))
    assert "a wide gap means that the reference is another model" in words.first_loss(odd)
    assert "averages 5 steps" in words.first_loss(odd | {"first_step": 5})


def test_page_is_one_file_and_escapes(written: tuple[dict, Path]) -> None:
    report, folder = written
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["index.html", "report.json", "summary.txt"]
    for name in ("index.html", "report.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()
    page = (folder / "out" / "index.html").read_text()
    assert len(page.encode()) < 300_000
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//\w+\.\w|@import|<script|<link|<img|url\((?!#)", without_namespaces)
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
    for table in tables:  # every row has as many cells as the head
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)}
        assert len(widths) == 1, table


def table_of(folders: dict) -> dict:
    return score_table([read_evaluation(*one) for one in folders.items()], [])


def test_what_is_left_out_of_the_mean(inputs: dict, tmp_path: Path) -> None:
    """A task that one stage lacks; and whether answers end, which is shown and compared but says nothing of quality."""
    for stage, ended, more in (("base", 0, {}), ("SFT", 99, {}), ("SFT+DPO", 60, {"tiny_json_mode": {"valid": 9}})):
        tasks = STAGES[stage] | {"tiny_end_of_turn": {"ended": ended}} | more
        inputs["scores"][stage] = write_scores(tmp_path / stage, tasks)
    table = table_of(inputs["scores"])
    assert table["means"]["tasks"] == ["Choice", "Tool call", "Preference"]
    left_out = {one["task"]: one["reason"] for one in table["means"]["left_out"]}
    assert list(left_out) == ["End of turn", "Json mode"] and left_out["Json mode"] == "not measured on base"
    marks = [pair["mark"] for pair in row_of({"scores": table}, "tiny_end_of_turn", "ended")["comparisons"]]
    assert marks == ["better", "worse"]
    assert row_of({"scores": table}, "tiny_json_mode", "valid")["scores"]["base"] is None


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

    row = row_of({"scores": table_of(inputs["scores"])}, "tiny_choice", "acc")
    assert row["scores"]["SFT"]["low"] == pytest.approx(0.6 - 1.959964 * 0.01)
    assert [pair["mark"] for pair in row["comparisons"]] == ["not tested", "not tested"]
    skipped = read_evaluation("SFT", inputs["scores"]["SFT"]).skipped
    assert skipped == []
    assert row_of({"scores": table_of(inputs["scores"])}, "tiny_choice", "perplexity")["scale"] == 1


def test_highest_checkpoint_is_taken(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", sft_history(9), checkpoint="checkpoint-9")
    write_run(folder, sft_history(10), checkpoint="checkpoint-10")
    assert read_run("SFT", folder)["log"] == "checkpoint-10/trainer_state.json"


@pytest.mark.parametrize("what", ["scores", "runs", "mixes"])
def test_missing_inputs_name_the_folder(inputs: dict, tmp_path: Path, what: str) -> None:
    empty = tmp_path / "empty_folder"
    empty.mkdir()
    inputs[what] = [empty] if what == "mixes" else {"SFT": empty}
    with pytest.raises(ValueError, match="empty_folder"):
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
