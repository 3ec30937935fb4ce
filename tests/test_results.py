"""What is made of results: units and directions, protocols, passages, seeds, and results without samples."""

import json

import pytest
import yaml
from conftest import ROOT
from lm_eval_files import HEX, evaluation, first, write_scores

from hermes3.results.comparable import why_not, why_not_published
from hermes3.results.groups import Group, compare, groups_of, pool, resolve, score_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.published import load as published
from hermes3.results.score import better_of, unit_of
from hermes3.results.suite import GroupSpec, Protocol, load
from hermes3.stats import wilson

ACC = (("a", "acc", "none"),)
DATA = yaml.safe_load((ROOT / "tests/evaluation.yml").read_text(encoding="utf-8"))


def edit(folder, change, kind="results"):
    """Apply `change` to the results, or to every sample, below `folder`."""
    for path in folder.rglob(f"{kind}_*"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("metric", "values", "scale", "value"), DATA["units"])
def test_a_metric_has_the_unit_of_its_name_and_never_of_its_value(metric, values, scale, value, tmp_path):
    write_scores(tmp_path, {"a": {metric: 0}}, n=4)
    edit(tmp_path, lambda row: row.update({metric: values[row["doc_id"]]}), "samples")
    edit(tmp_path, lambda row: row["results"]["a"].update({f"{metric},none": sum(values) / 4}))
    score = read_evaluation("A", tmp_path).scores["a", metric, "none"]
    assert (score.scale, score.value) == (scale, pytest.approx(value)) and score.low <= value <= score.high


def test_units_and_directions_by_name():
    assert unit_of("squadv2", "f1") == "percent" and unit_of("a", "rougeL_max") == "points"
    assert unit_of("a", "marks") is None and unit_of("mt_bench", "score") == "points"
    assert [better_of("a", metric, None) for metric in ("acc", "byte_perplexity", "marks")] == [True, False, None]
    assert better_of("a", "acc", False) is False
    stages = [evaluation({"a": first(400)}, "SFT"), evaluation({"a": first(500)}, "DPO")]
    for stage in stages:
        stage.scores[ACC[0]] = stage.scores[ACC[0]].__class__(**vars(stage.scores[ACC[0]]) | {"higher_is_better": None})
    assert compare(*stages, Group("A", ACC))["reason"] == "neither lm-eval nor metrics.yml says which way is better"


@pytest.mark.parametrize("unlogged", ["samples", "filter", "2023"])
def test_results_of_others_are_read_and_compared_with_the_paper(unlogged, tmp_path):
    """Without samples; as before November 2024, when samples named no filter and no metrics; without counts."""
    write_scores(tmp_path, {"arc_challenge": {"acc_norm": 581}}, n=1000, chat_template_sha=None)
    if unlogged == "filter":
        edit(tmp_path, lambda row: [row.pop(key) for key in ("filter", "metrics")], "samples")
    else:
        [path.unlink() for path in tmp_path.rglob("samples_*")]
        stderr = (0.581 * 0.419 / 999) ** 0.5
        edit(tmp_path, lambda row: row["results"]["arc_challenge"].update({"acc_norm_stderr,none": stderr}))
    if unlogged == "2023":
        edit(tmp_path, lambda row: [row.pop(key) for key in ("n-samples", "higher_is_better", "chat_template_sha")])
    stage = read_evaluation("A", tmp_path)
    (group,) = [one for one in groups_of([stage], [load("paper")]) if one.name == "ARC-C"]
    score = score_of(stage, group)
    assert (score.value, score.n) == (pytest.approx(0.581), 1000)
    assert (score.low, score.high) == pytest.approx(wilson(581, 1000), abs=1e-3)
    row = published("table5").rows["ARC-C"]
    assert why_not_published(stage, group, score, row) is None and score.effective_n == pytest.approx(1000, rel=0.01)
    assert stage.tasks["arc_challenge"]["has_samples"] == (unlogged == "filter") == (not stage.skipped)
    if unlogged != "filter":
        assert "no samples of arc_challenge" in stage.skipped[0]
        assert why_not(stage, stage, group) == "no samples of A, and so no paired test"
        edit(tmp_path, lambda row: row["results"]["arc_challenge"].pop("acc_norm_stderr,none"))
        stage = read_evaluation("A", tmp_path)
        assert why_not_published(stage, group, score_of(stage, group), row).startswith("no interval")


def test_a_group_without_samples_has_an_interval(tmp_path):
    write_scores(tmp_path, {"a": {"acc": 60}, "b": {"acc": 80}})
    [path.unlink() for path in tmp_path.rglob("samples_*")]
    stage = read_evaluation("A", tmp_path)
    score = score_of(stage, resolve([stage], "s", "G", GroupSpec(tasks={"a": "acc", "b": "acc"}, num_fewshot=0)))
    assert (score.value, score.n, score.interval) == (pytest.approx(0.7), 200, "mover")
    assert score.high - score.low == pytest.approx(2 * 1.96 * 0.01 / 2**0.5, rel=1e-3)


def test_protocols_are_read_kept_apart_and_compared_alike(tmp_path):
    tasks = {"arc_challenge": {"acc_norm": 58}}
    row, group = published("table5").rows["ARC-C"], None
    write_scores(tmp_path / "chat", tasks)
    stage = read_evaluation("A", tmp_path)
    (group,) = groups_of([stage], [load("paper"), load("paper_chat")])  # one row, though two suites have it
    assert stage.protocol("arc_challenge") == Protocol(0, True, True) and group.protocol == Protocol(0, False, False)
    assert why_not_published(stage, group, score_of(stage, group), row) == (
        "under another protocol: 0-shot, with the chat template; the paper's: 0-shot, without the chat template"
    )
    write_scores(tmp_path / "plain", {"arc_challenge": {"acc_norm": 50}}, chat_template_sha=None, date="2024-01-01")
    stage = read_evaluation("A", tmp_path)
    plain, chat = groups_of([stage], [load("paper"), load("paper_chat")])
    assert why_not_published(stage, plain, score_of(stage, plain), row) is None
    assert [score_of(stage, one).value for one in (plain, chat)] == [0.5, 0.58]
    assert stage.harness["chat_template_sha"] == HEX and chat.name == "ARC-C (paper_chat)"
    write_scores(tmp_path / "other", {"b": {"acc": 5}}, chat_template_sha="f" * 64)
    with pytest.raises(ValueError, match="results of two chat templates in one folder"):
        read_evaluation("A", tmp_path)


def test_the_papers_math_needs_its_metric():
    stage = evaluation({"leaderboard_math_geometry_hard": first(3, 10)}, shots=4)
    stage.subtasks["leaderboard_math_hard"] = ["leaderboard_math_geometry_hard"]
    stage.scores["leaderboard_math_geometry_hard", "exact_match", "none"] = stage.scores.popitem()[1]
    groups = {one.name: one for one in groups_of([stage], [load("paper")])}
    assert list(groups) == ["MATH Lvl 5, math-verify", "MATH Lvl 5"]
    reason = why_not_published(stage, groups["MATH Lvl 5"], None, published("table5").rows["MATH Lvl 5"])
    assert reason == "measured without the metric exact_match_original"


@pytest.mark.parametrize(("doc", "clusters"), DATA["passages"])
def test_questions_that_share_a_passage_are_fewer_draws(doc, clusters, tmp_path):
    write_scores(tmp_path, {"a": {"acc": 110}}, n=200)
    of = {n: {key: text.format(n=n, half=n // 2, tenth=n // 10) for key, text in doc.items()} for n in range(200)}
    edit(tmp_path, lambda row: row.update(doc=of[row["doc_id"]]), "samples")
    stage = read_evaluation("A", tmp_path)
    score = score_of(stage, Group("A", ACC))
    assert len(set(stage.names_of(ACC[0]))) == (clusters or 200)
    if clusters is None:
        assert (score.low, score.high) == pytest.approx(wilson(110, 200)) and score.effective_n == pytest.approx(200)
    else:  # all right or all wrong together
        assert score.effective_n == pytest.approx(clusters, rel=0.2)
    pair = compare(stage, stage, Group("A", ACC))
    assert pair["test"] == ("mcnemar" if clusters is None else "paired t")


def test_seeds_are_pooled_with_their_spread_but_for_those_that_were_asked_otherwise():
    seeds = [evaluation({"a": first(right)}, f"A, seed {right}") for right in (480, 500, 520)]
    group = Group("A", ACC)
    alone, pooled = score_of(seeds[0], group), score_of(pool("A", seeds), group)
    assert (pooled.value, pooled.seeds) == (pytest.approx(0.5), (0.48, 0.5, 0.52))
    assert pooled.high - pooled.low > alone.high - alone.low
    seeds[2].tasks["a"]["chat_template"] = "y"
    pooled = score_of(pool("A", seeds), group)
    assert pooled.seeds == (0.48, 0.5) and pool("A", seeds[:1]).scores == seeds[0].scores
    # two stages of two seeds each: the change's interval holds the spread of both
    after = [evaluation({"a": first(right)}, "B") for right in (500, 520)]
    pair = compare(pool("A", seeds[:2]), pool("B", after), group)
    single = compare(seeds[0], after[0], group)
    assert pair["change"] == pytest.approx(0.02) and pair["high"] - pair["low"] > single["high"] - single["low"]
