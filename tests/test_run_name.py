"""One wandb run for all attempts at a training, under a name that says which: read back from real offline runs."""

import os
import re
from importlib.metadata import version
from types import SimpleNamespace
from unittest import mock

import pytest
from axolotl.utils.dict import DictDefault
from stopped import SECRET
from wandb_file import attempts

from hermes3.train.metrics import RUN_ID, NameRun, facts_of, run_id

FACTS = {"sft": {"recipe": "tiny_sft", "size": "tiny", "phase": "sft", "seed": 42}}
FACTS["dpo"] = FACTS["sft"] | {"recipe": "tiny_dpo", "phase": "dpo"}


@pytest.fixture(params=["sft", "dpo"])
def run(request):
    return request.param, request.getfixturevalue(f"stopped_{request.param}")


def test_all_attempts_are_one_run_of_wandb(run):
    phase, stopped = run
    found = attempts(stopped.wandb_dir)
    assert len(found) == len(stopped.attempts)
    assert {one.id for one in found} == {(stopped.last.folder / RUN_ID).read_text()}
    assert all(one.ended for one in found)  # wrote what it held, and closed the file


def test_its_curve_goes_on_where_it_stopped(run):
    phase, stopped = run
    points = [point for one in attempts(stopped.wandb_dir) for point in one.history if "train/loss" in point]
    assert [point["train/global_step"] for point in points] == list(range(1, len(points) + 1))
    assert [point["train/loss"] for point in points] == [
        line["loss"] for line in stopped.through.lines() if "loss" in line
    ]


def test_it_is_named_and_grouped_by_what_it_is(run):
    phase, stopped = run
    for one in attempts(stopped.wandb_dir):
        facts = FACTS[phase] | {"commit": one.config["hermes3"]["commit"]}
        assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", facts["commit"])
        assert (one.project, one.group, one.job_type) == ("hermes3", f"tiny_{phase}", phase)
        assert one.name == f"tiny_{phase} seed 42 {facts['commit']}"
        assert set(one.tags) == {"tiny", phase, "seed-42", facts["commit"]}
        assert one.config["hermes3"] == facts


def test_no_secret_is_in_it(run):
    for one in attempts(run[1].wandb_dir):
        assert b"tiny_" in one.raw and SECRET.encode() not in one.raw


def test_a_run_that_does_not_go_on_gets_an_id_of_its_own(tmp_path):
    first = run_id(tmp_path, resumes=True)
    assert run_id(tmp_path, resumes=True) == first
    assert run_id(tmp_path, resumes=False) != first


CFG = DictDefault({"wandb_name": "8b_sft", "seed": 1})


def test_without_git_the_version_stands_for_the_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts_of(CFG)["commit"] == version("hermes3-recipes")


def test_rank_0_alone_asks_git(tmp_path, monkeypatch):
    """At 128 ranks it would be 128 looks at every file of the repository, on a shared file system."""
    (tmp_path / "git").write_text(f"#!/bin/sh\necho abc\necho asked >>{tmp_path}/asked\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with mock.patch.dict(os.environ):
        for rank in range(2):
            trainer = SimpleNamespace(args=SimpleNamespace(), is_world_process_zero=lambda rank=rank: rank == 0)
            NameRun(CFG | {"output_dir": str(tmp_path)}, trainer)
    assert trainer.args == SimpleNamespace() and (tmp_path / "asked").read_text() == "asked\n"
