"""The suites: every task, metric and number of shots is one that the installed lm-eval has."""

import importlib.util

import pytest
import yaml
from conftest import ROOT

from hermes3.results.suite import load

FAULTS = yaml.safe_load((ROOT / "tests/evaluation.yml").read_text(encoding="utf-8"))["bad_suites"]
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


@pytest.mark.parametrize("name", SUITES)
def test_lm_eval_knows_every_task_with_its_metric_its_shots_and_its_weights(name, manager):
    suite = load(name)
    assert suite.name == name
    for group in suite.groups.values():
        for task in group.tasks if group.by == "lm_eval" else ():
            assert task in manager.task_index, task
            if manager._name_is_group(task):
                lists = config_of(manager, task)["aggregate_metric_list"]
                assert all(one["weight_by_size"] for one in lists) and group.aggregation == "weighted", task
            for leaf in leaves(manager, task):
                config = config_of(manager, leaf)
                known = {one["metric"] for one in config["metric_list"]}
                assert {metric.partition(",")[0] for metric in group.metrics(task)} <= known, leaf
                # a metric is named without its filter where there is none
                assert not config.get("filter_list") or all("," in metric for metric in group.metrics(task)), leaf
                # lm-eval does not override a task's own 0, whatever --num_fewshot says, and what the leaderboard's
                # tasks fix is what the paper states
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


def test_the_paper_s_suite_asks_multiple_choice_without_the_template_and_the_rest_with_it(manager):
    calls = load("paper").by_protocol()
    assert [(one.shots, one.chat_template) for one in calls] == [
        *((0, False), (0, True), (3, False), (4, True), (5, False), (10, False))
    ]
    for protocol, tasks in calls.items():
        types = {config_of(manager, leaf)["output_type"] for one in tasks for leaf in leaves(manager, one)}
        assert types == ({"generate_until"} if protocol.chat_template else {"multiple_choice"})
    assert all(protocol.chat_template and protocol.fewshot_as_turns for protocol in load("paper_chat").by_protocol())


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_suite_with_a_fault_names_the_key(change, message, tmp_path):
    suite = yaml.safe_load((ROOT / "eval/suites/tiny.yml").read_text())
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(suite | change))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "mine.yml")


def test_a_task_may_be_asked_by_two_protocols():
    groups = load("tiny").groups
    groups["Five shots"] = groups["JSON mode"].model_copy(update={"num_fewshot": 5})
    calls = load("tiny").model_copy(update={"groups": groups}).by_protocol()
    assert [protocol.shots for protocol, tasks in calls.items() if "tiny_json_mode" in tasks] == [0, 5]
