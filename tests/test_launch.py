"""`hermes3 launch RECIPE`: what is written, refused and submitted; and Slurm's own verdict on every script."""

import json
import re
import sys
from pathlib import Path

import pytest
import slurm_site
import yaml
from conftest import ROOT
from slurm_site import launch, launch_alone

from hermes3.plan.plan import plan
from hermes3.recipe.check import check
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import chain, cli, submit
from hermes3.slurm.submit import resize

RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yml"))


@pytest.fixture
def site(tmp_path):
    return slurm_site.make(tmp_path / "site")


@pytest.fixture
def ready(site):
    """A site in which all that 8b_sft.yml reads is there, by name."""
    (site / "outputs/8b/base").mkdir(parents=True)
    (site / "mixes/hermes3_sft").mkdir()
    (site / "mixes/hermes3_sft/manifest.json").write_text("{}")
    return site


def batch(path: Path) -> int:
    recipe = read(path)
    return recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"] * hardware_of(path, recipe).gpus


# Slurm's verdict


def test_slurm_accepts_every_recipe_at_the_size_that_it_declares(slurm16):
    assert len(RECIPES) > 20
    lines = [
        submit.sbatch(submit.TRAIN, [str(path)], path.stem, hardware_of(path, read(path)), "9:00:00", [])
        for path in RECIPES
    ]
    assert {line for one in lines for line in one if line.startswith("--nodes")} >= {
        "--nodes=16",
        "--nodes=6",
        "--nodes=1",
    }
    for line in lines:
        slurm16.run(line[0], "--test-only", *line[1:])


@pytest.mark.parametrize("name", ["tiny", "8b", "70b", "405b"])
def test_slurm_accepts_every_stage_of_the_pipelines(name, slurm16):
    stages = chain.stages(chain.load(name)[1], Path("commands"))
    assert {one.script for one in stages} == {submit.TRAIN, chain.EVAL, chain.MIX, chain.STEP}
    for one in stages:
        line = submit.sbatch(one.script, one.arguments, one.name, one.hardware, None, one.options)
        slurm16.run(line[0], "--test-only", *line[1:])


def test_a_recipe_for_more_nodes_than_there_are_is_refused(slurm, ready):
    """Slurm itself would take it, and let it wait for ever."""
    code = "from hermes3.slurm.submit import *; submit(prepare(Path('recipes/8b_sft.yml'), None, [], check=False))"
    refused = slurm.run(sys.executable, "-c", code, cwd=ready, check=False)
    assert refused.returncode == 1 and "Requested node configuration is not available" in refused.stderr
    assert not slurm.jobs()


# a launch


def test_a_launch_asks_for_the_declared_hardware_once(slurm, ready):
    said = json.loads(launch(slurm, ready, "recipes/8b_sft.yml", "--nodes", 3, "--no-check", "--", "--hold").stdout)
    job = slurm.job(said["job"])
    assert job["JobName"] == "8b_sft" and job["NumNodes"].startswith("3") and job["TresPerNode"].endswith("gpu:8")
    assert job["TimeLimit"] == said["settings"]["time_limit"].zfill(8) > "01:00:00"
    assert job["Requeue"] == "1" and job["JobState"] == "PENDING"
    assert job["Command"].endswith("launch/train.sbatch")
    recipe = ready / said["settings"]["recipe"]
    assert batch(recipe) == said["settings"]["global_batch"] == batch(ready / "recipes/8b_sft.yml") == 48
    assert yaml.safe_load((ready / said["folder"] / "settings.yml").read_text()) == said["settings"]

    again = launch(slurm, ready, "recipes/8b_sft.yml", "--nodes", 3, "--no-check", check=False)
    assert again.returncode == 1 and f"scancel {said['job']}" in again.stderr
    assert len(slurm.jobs()) == 1


def test_submit_sh_is_what_is_submitted(slurm, ready):
    launch(slurm, ready, "recipes/8b_sft.yml", "--no-check", "--dry-run", "--", "--hold", "--comment", "by hand")
    assert not slurm.jobs()
    slurm.run("bash", "logs/launch/8b_sft/submit.sh", cwd=ready)
    assert slurm.run("squeue", "--noheader", "--format=%j %D %b").stdout == "8b_sft 6 gres:gpu:8\n"


def test_a_dry_run_needs_no_slurm_and_says_what_is_missing(site):
    done = launch_alone(site, "recipes/405b_sft.yml", "--dry-run", "--no-check")
    assert done.returncode == 0, done.stderr
    assert "--nodes=16" in (site / "logs/launch/405b_sft/submit.sh").read_text()
    settings = yaml.safe_load((site / "logs/launch/405b_sft/settings.yml").read_text())
    assert settings["gpus"] == settings["global_batch"] == 128 and settings["expected_hours"] > 10
    assert "outputs/405b/base is not there" in done.stderr and "mixes/hermes3_sft is not built" in done.stderr
    refused = launch_alone(site, "recipes/405b_sft.yml", "--no-check")
    assert refused.returncode == 1 and "nothing is submitted" in refused.stderr
    chain_of = launch_alone(site, "--pipeline", "405b", "--dry-run", "--no-check")
    assert chain_of.returncode == 0, chain_of.stderr
    assert "16 x 8 h100-80gb" in chain_of.stdout and "squeue: no such command here" in chain_of.stdout


@pytest.mark.parametrize(("base", "there"), [("meta-llama/Llama-3.1-8B", True), ("outputs/base", False)])
def test_a_folder_that_is_not_made_yet_is_no_model_of_the_hub(base, there, site, monkeypatch):
    monkeypatch.chdir(site)
    path = Path("recipes/8b_sft.yml")
    said = [text for text in submit.missing(path, {**read(path), "base_model": base}) if "base_model" in text]
    assert said == ([] if there else [f"{path}: base_model: outputs/base is not there; see the comment on its line"])


def test_a_wrong_recipe_is_refused_before_it_waits_for_nodes(slurm, site):
    path = site / "recipes/8b_sft.yml"
    path.write_text(path.read_text().replace("learning_rate:", "learning_rte:"))
    refused = launch(slurm, site, "recipes/8b_sft.yml", check=False, timeout=900)
    assert refused.returncode == 1 and "learning_rte" in refused.stderr and "--no-check" in refused.stderr
    assert not slurm.jobs()


def test_a_model_that_does_not_fit_is_refused():
    path = Path("recipes/405b_sft.yml")
    with pytest.raises(ValueError, match=r"405b_sft.yml: does not fit on 1 nodes \(\d+ would do\)"):
        submit.fit({path: plan(path, gpus=8, packed=False)})
    submit.fit({path: plan(path, packed=False)})


# another number of nodes


@pytest.mark.parametrize(
    ("name", "nodes"), [("8b_sft", 3), ("8b_sft", 1), ("405b_sft", 8), ("8b_dpo", 2), ("tiny_dpo", 4)]
)
def test_another_number_of_nodes_keeps_the_global_batch_and_all_other_keys(name, nodes, tmp_path):
    path = Path(f"recipes/{name}.yml")
    new = resize(path, nodes, tmp_path)
    assert hardware_of(new, read(new)).nodes == nodes and batch(new) == batch(path)
    before, after = read(path), read(new)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed == {"hardware", "gradient_accumulation_steps"}
    assert [str(found) for found in check(new).errors] == []


def test_a_number_of_nodes_that_cannot_keep_the_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--nodes 4: .*global batch of 48.*; take 1, 2, 3, 6"):
        resize(Path("recipes/8b_sft.yml"), 4, tmp_path)
    assert not list(tmp_path.iterdir())


# options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give a recipe, or --pipeline NAME"),
        ({"words": ["--account=me"]}, "give a recipe, or --pipeline NAME"),
        ({"words": ["recipes/8b_sft.yml", "recipes/8b_dpo.yml"]}, "options of sbatch go last"),
        ({"words": ["recipes/8b_sft.yml", "--nodes=3"]}, "--nodes=3: not for sbatch; give hermes3 launch --nodes N"),
        ({"words": ["recipes/8b_sft.yml", "-N3"]}, "-N3: not for sbatch"),
        ({"words": ["recipes/8b_sft.yml", "-J", "mine"]}, "-J: not for sbatch; jobs are known by name"),
        ({"words": ["--dependency=afterok:1"], "pipeline": "8b"}, "not for sbatch; the pipeline sets it"),
        ({"words": ["--export=NONE"], "pipeline": "8b"}, "--export=NONE: not for sbatch; the pipeline sets it"),
        ({"nodes": 2, "pipeline": "8b"}, "a pipeline takes each recipe's own"),
        ({"words": ["recipes/8b_sft.yml"], "done": ["sft"]}, "--done: only with --pipeline"),
        ({"words": ["recipes/9b_sft.yml"]}, "recipes/9b_sft.yml: no such file"),
    ],
)
def test_what_cannot_be_launched_is_said(given, message, site, monkeypatch):
    monkeypatch.chdir(site)
    monkeypatch.setenv("PATH", "/nowhere")
    options = {"words": [], "pipeline": None, "nodes": None, "done": [], "check": True, "dry_run": False}
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.launch(**options | {"as_json": False} | given)
    assert not list((site / "logs").glob("launch/*"))


@pytest.mark.parametrize("option", ["--export=NONE", "--nodes=3", "-N3", "--dependency=singleton"])
def test_a_pipeline_file_cannot_set_what_the_pipeline_sets(option, site, monkeypatch):
    monkeypatch.chdir(site)
    given = yaml.safe_load((ROOT / "launch/pipelines/8b.yml").read_text())
    Path("mine.yml").write_text(yaml.safe_dump({**given, "sbatch": {"eval": ["--partition=gpu", option]}}))
    with pytest.raises(ValueError, match=f"mine.yml: sbatch: eval: {option}: not for sbatch"):
        cli.launch([], "mine.yml", None, [], False, True, False)


def test_a_user_s_own_time_limit_wins(monkeypatch):
    line = ("a.sbatch", [], "a", None, "9:00:00", [])
    assert "--time=9:00:00" in submit.sbatch(*line)
    monkeypatch.setenv("SBATCH_TIMELIMIT", "60")
    assert not any(option.startswith("--time") for option in submit.sbatch(*line))


def test_it_is_launched_from_the_root(tmp_path):
    done = launch_alone(tmp_path, "recipes/8b_sft.yml")
    assert done.returncode == 1 and "run this from the root of the repository" in done.stderr
