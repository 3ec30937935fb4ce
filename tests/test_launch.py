"""`hermes3 launch RECIPE`: what is written, refused and submitted; and Slurm's own verdict on every script."""

import json
import re
from pathlib import Path

import pytest
import slurm_site
import yaml
from conftest import ROOT
from slurm_site import launch, launch_alone

from hermes3.recipe.check import check_all
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import read
from hermes3.slurm import chain, cli, submit
from hermes3.slurm.submit import resize

RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yml"))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(slurm_site.make(tmp_path / "site"))
    return Path.cwd()


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


def test_slurm_accepts_every_recipe_and_stage_at_the_size_that_it_declares(slurm16):
    lines = [
        submit.sbatch([submit.TRAIN, str(path)], path.stem, hardware_of(path, read(path)), "9:00:00", [])
        for path in RECIPES
    ]
    assert len(RECIPES) > 20
    for name in ("tiny", "8b", "70b", "405b"):
        stages = chain.stages(chain.load(name)[1], Path("logs/pipeline/it"))
        assert {one.script for one in stages} == {submit.TRAIN, chain.EVAL, chain.MIX, chain.STEP}
        lines += [
            submit.sbatch([one.script, *one.arguments], one.name, one.hardware, None, one.options) for one in stages
        ]
    for line in lines:
        slurm16.run(line[0], "--test-only", *line[1:])


def test_a_launch_asks_for_the_declared_hardware_once_and_submit_sh_does_the_same(slurm, ready):
    launched = (slurm, ready, "recipes/8b_sft.yml", "--nodes", 3, "--no-check")
    said = json.loads(launch(*launched, "--", "--hold").stdout)
    job = slurm.job(said["job"])
    assert job["JobName"] == "8b_sft" and job["NumNodes"].startswith("3") and job["TresPerNode"].endswith("gpu:8")
    assert job["TimeLimit"] > "01:00:00" and job["Requeue"] == "1" and job["JobState"] == "PENDING"
    assert job["Command"].endswith("launch/train.sbatch")
    assert batch(ready / said["recipe"]) == batch(ready / "recipes/8b_sft.yml") == 48
    again = launch(*launched, check=False)
    assert again.returncode == 1 and f"scancel {said['job']}" in again.stderr
    mine = {"SBATCH_TIMELIMIT": "60"}  # which wins
    launch(slurm, ready, "recipes/8b_sft.yml", "--no-check", "--dry-run", "--", "--hold", "--comment=by hand", env=mine)
    assert slurm.jobs() == [str(said["job"])]
    slurm.run("bash", "logs/launch/8b_sft/submit.sh", cwd=ready, env=mine)
    queue = slurm.run("squeue", "--noheader", "--sort=i", "--format=%j %D %b %l").stdout.splitlines()
    assert len(queue) == 2 and queue[1] == "8b_sft 6 gres:gpu:8 1:00:00"


def test_a_dry_run_needs_no_slurm_and_says_what_is_missing(site):
    done = launch_alone(site, "recipes/405b_sft.yml", "--dry-run", "--no-check")
    assert done.returncode == 0, done.stderr
    assert "--nodes=16" in (site / "logs/launch/405b_sft/submit.sh").read_text() and "planned: 3" in done.stdout
    assert "outputs/405b/base is not there" in done.stderr and "mixes/hermes3_sft is not built" in done.stderr
    refused = launch_alone(site, "recipes/405b_sft.yml", "--no-check")
    assert refused.returncode == 1 and "nothing is submitted" in refused.stderr
    chain_of = launch_alone(site, "--pipeline", "405b", "--dry-run", "--no-check")
    assert chain_of.returncode == 0, chain_of.stderr
    assert "16 x 8 h100-80gb" in chain_of.stdout and "squeue: no such command here" in chain_of.stdout


@pytest.mark.parametrize(("base", "there"), [("meta-llama/Llama-3.1-8B", True), ("outputs/base", False)])
def test_a_folder_that_is_not_made_yet_is_no_model_of_the_hub(base, there, site):
    path = Path("recipes/8b_sft.yml")
    lacks = "\n".join(submit.missing(path, {**read(path), "base_model": base}))
    assert (f"{path}: base_model: outputs/base is not there; see the comment on its line" in lacks) != there


def test_a_wrong_recipe_or_one_that_does_not_fit_is_refused_before_it_waits_for_nodes(slurm, site, monkeypatch):
    path = site / "recipes/8b_sft.yml"
    path.write_text(path.read_text().replace("learning_rate:", "learning_rte:"))
    refused = launch(slurm, site, "recipes/8b_sft.yml", check=False, timeout=900)
    assert refused.returncode == 1 and "learning_rte" in refused.stderr and "--no-check" in refused.stderr
    assert not slurm.jobs()
    monkeypatch.setattr(submit, "check_all", lambda paths: [])
    with pytest.raises(ValueError, match=r"405b_sft.yml: does not fit on 1 nodes \(\d+ would do\)"):
        submit.look([resize(Path("recipes/405b_sft.yml"), 1, Path("logs"))])
    submit.look([Path("recipes/405b_sft.yml")])


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
    assert [str(found) for found in check_all([new])[0].errors] == []
    with pytest.raises(ValueError, match="--nodes 4: .*global batch of 48.*; take 1, 2, 3, 6"):
        resize(Path("recipes/8b_sft.yml"), 4, tmp_path / "4")


OPTIONS = {"words": [], "pipeline": None, "nodes": None, "done": [], "check": True, "dry_run": False, "as_json": False}
REFUSED = yaml.safe_load((ROOT / "tests/launch.yml").read_text())


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_cannot_be_launched_is_said(options, message, site, monkeypatch):
    declared = yaml.safe_load((ROOT / "launch/pipelines/8b.yml").read_text())
    Path("mine.yml").write_text(yaml.safe_dump({**declared, "sbatch": {"eval": ["--partition=gpu", "-N3"]}}))
    monkeypatch.chdir(options.pop("root", "."))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.launch(**OPTIONS | options)
    assert not list((site / "logs").glob("launch/*"))
