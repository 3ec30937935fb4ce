"""The suites: every task, metric and number of shots is one that the installed lm-eval has."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.results.suite import load

SUITES = sorted(path.stem for path in (ROOT / "eval/suites").glob("*.yml"))


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(ROOT / "eval/tasks"))


def config_of(manager, name: str, mode: str = "simple") -> dict:
    """A task's or group's own file, what it includes too; `full` imports the functions that it names."""
    from lm_eval.utils import load_yaml_config

    return load_yaml_config(manager.task_index[name]["yaml_path"], mode=mode)


def leaves(manager, name: str) -> list[str]:
    """The tasks that an lm-eval group or tag stands for."""
    if manager._name_is_tag(name):
        members = manager.task_index[name]["task"]
    elif manager._name_is_group(name):
        members = [one if isinstance(one, str) else one["task"] for one in config_of(manager, name)["task"]]
    else:
        return [name]
    return [leaf for member in members for leaf in leaves(manager, member)]


def test_the_suites_that_the_docs_name_are_there():
    assert {"paper", "epoch_selection", "quick", "tiny"} <= set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_lm_eval_knows_every_task_with_its_metric_and_its_shots(name, manager):
    suite = load(name)
    assert suite.name == name
    for group in suite.groups.values():
        for task in group.tasks if group.by == "lm_eval" else ():
            assert task in manager.task_index, task
            for leaf in leaves(manager, task):
                config = config_of(manager, leaf)
                known = {one["metric"] for one in config["metric_list"]}
                assert {metric.partition(",")[0] for metric in group.metrics(task)} <= known, leaf
                # lm-eval does not override a task's own 0, whatever --num_fewshot says
                assert config.get("num_fewshot") != 0 or group.num_fewshot == 0, leaf
                # what the leaderboard's tasks fix is what the paper states
                assert config.get("num_fewshot") in (None, group.num_fewshot), leaf


@pytest.mark.parametrize("name", SUITES)
def test_packages_that_tasks_import_are_here_or_named_by_the_suite(name, manager):
    suite, lacking = load(name), set()
    for task in {leaf for tasks in suite.by_protocol().values() for one in tasks for leaf in leaves(manager, one)}:
        try:
            config_of(manager, task, "full")
        except ModuleNotFoundError:
            lacking.add(task)
    here = all(importlib.util.find_spec(module) for module in suite.needs)
    assert not (lacking and here), lacking


@pytest.mark.parametrize("name", SUITES)
def test_a_group_of_lm_eval_weighs_its_tasks_as_the_suite_says(name, manager):
    for given, group in load(name).groups.items():
        for task in group.tasks if group.by == "lm_eval" else ():
            if manager._name_is_group(task):
                lists = config_of(manager, task)["aggregate_metric_list"]
                assert all(one["weight_by_size"] for one in lists) and group.aggregation == "weighted", given


def test_the_paper_s_suite_asks_multiple_choice_without_the_template_and_the_rest_with_it(manager):
    calls = load("paper").by_protocol()
    assert [(one.shots, one.chat_template) for one in calls] == [
        *((0, False), (0, True), (3, False), (4, True), (5, False), (10, False))
    ]
    for protocol, tasks in calls.items():
        types = {config_of(manager, leaf)["output_type"] for one in tasks for leaf in leaves(manager, one)}
        assert types == ({"generate_until"} if protocol.chat_template else {"multiple_choice"})
    assert all(protocol.chat_template and protocol.fewshot_as_turns for protocol in load("paper_chat").by_protocol())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(num_fewshot=0), "num_fewshot: Extra inputs"),
        (lambda s: s["groups"]["JSON mode"].update(metrics="valid"), "groups.JSON mode.metrics: Extra inputs"),
        (lambda s: s["groups"]["JSON mode"].pop("num_fewshot"), "groups.JSON mode.num_fewshot: Field required"),
        (lambda s: s["groups"]["JSON mode"].update(num_fewshot=-1), "greater than or equal to 0"),
        (lambda s: s["groups"].update(More={"tasks": {"tiny_choice": "acc"}, "num_fewshot": 5}), "make it two suites"),
        (lambda s: s.update(limit=0), "limit: Input should be greater"),
    ],
)
def test_a_suite_with_a_fault_names_the_key(change, message, tmp_path):
    suite = yaml.safe_load((ROOT / "eval/suites/tiny.yml").read_text())
    change(suite)
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(suite))
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "mine.yml")
    assert str(tmp_path / "mine.yml") in str(error.value)


def test_an_unknown_suite_names_those_that_there_are():
    with pytest.raises(ValueError, match="eval/suites/papr.yml: no such file; there are .*paper"):
        load("papr")


def test_tasks_of_our_own_are_found_from_any_folder_and_those_of_a_user_where_they_are_named(tmp_path, monkeypatch):
    named = load("tiny").model_copy(update={"include_path": Path("eval/tasks")})
    assert str(load("tiny").tasks_folder) == "eval/tasks"  # so the printed commands are short
    monkeypatch.chdir(tmp_path)
    assert load("tiny").tasks_folder == ROOT / "eval/tasks" and str(named.tasks_folder) == "eval/tasks"
