"""The published tables: what they say of themselves, and that they are taken as they are printed."""

import pytest
import yaml
from conftest import ROOT

from hermes3.evaluate.select import choose
from hermes3.results import published
from hermes3.results.groups import Group
from hermes3.results.suite import load


@pytest.mark.parametrize("name", ["table2", "table4", "table5"])
def test_a_misprint_is_as_printed(name):
    table = published.load(name)
    rows = {row: of.values for row, of in table.rows.items()} | {"total": table.total}
    for one in table.misprints:
        assert rows[one.row][list(table.columns).index(one.column)] == one.printed != one.instead


def test_the_rule_on_table_2_gives_what_the_paper_kept():
    """The last printed total but one, 83.89, is a misprint; so are some means of groups, which change no choice."""
    table, means, off = published.load("table2"), {}, set()
    chosen = choose({name: dict(enumerate(row.values, 1)) for name, row in table.rows.items()})
    assert [round(total, 2) for total in chosen["totals"].values()] == [27.50, 63.65, 83.59, 37.10]
    assert table.columns[table.kept] == f"epoch {chosen['epoch']}" == "epoch 3"
    for name, row in table.rows.items():
        columns = zip(*row.tasks.values(), strict=True) if row.tasks else [[value] for value in row.values]
        means[name] = {epoch: sum(column) / len(column) for epoch, column in enumerate(columns, 1)}
        for (epoch, mean), printed in zip(means[name].items(), row.values, strict=True):
            if abs(mean - printed) > 0.01:  # both are rounded
                off.add((name, f"epoch_{epoch}", round(mean, 2)))
    assert choose(means)["epoch"] == 3
    assert off | {("total", "epoch_3", 83.59)} == {(one.row, one.column, one.instead) for one in table.misprints}


def test_tables_4_and_5_are_of_one_model_but_for_their_misprints():
    four, five = published.load("table4").values("hermes3_8b"), published.load("table5").values("hermes3_8b")
    assert len(four.keys() & five.keys()) == 4
    differing = {row for row in four.keys() & five.keys() if four[row] != five[row]}
    assert differing == {one.row for one in published.load("table4").misprints} == {"IFEval"}


def test_rows_and_shots_are_those_of_the_suites():
    rows, groups = published.load("table5").rows, load("paper").groups
    assert list(rows) == [name for name in groups if name != "MATH Lvl 5, math-verify"]  # another metric of a row
    assert load("paper_chat").groups.keys() == groups.keys()
    assert all(row.shots in (None, groups[name].num_fewshot) for name, row in rows.items())
    table, suite = published.load("table2"), load("epoch_selection")
    assert list(table.rows) == list(suite.groups)
    for name, row in table.rows.items():
        assert not row.tasks or set(row.tasks) == set(suite.groups[name].tasks)


def test_which_scores_are_multiples_of_one_question_and_which_the_mean_of_subtasks():
    """A score that is a share of n questions lies within its rounding of k / n; an unweighted mean need not."""
    table = published.load("table5")
    for name, n in (("GPQA", 1192), ("MATH Lvl 5", 1324), ("MuSR", 756)):
        row = table.rows[name]
        scores = zip(table.columns, row.values, strict=True)
        fits = {column for column, value in scores if abs(round(value * n / 100) * 100 / n - value) <= 0.00501}
        small = {"hermes3_8b", "llama31_8b"}
        assert small <= fits and set(row.unweighted) == set(table.columns) - small
        assert len(fits & set(row.unweighted)) <= 1  # by chance
        pooled = Group(name, (("a", "acc", "none"),))
        assert [row.as_printed(pooled, f"hermes3_{size}").by_question for size in ("8b", "70b")] == [True, False]


def test_a_table_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    table = yaml.safe_load((ROOT / "eval/published/table2.yml").read_text())
    table["rows"]["IFEval"]["values"].pop()
    (tmp_path / "table2.yml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(published, "PUBLISHED", tmp_path)
    with pytest.raises(ValueError, match="table2.yml: rows.IFEval has 3 values for 4 columns"):
        published.load("table2")
