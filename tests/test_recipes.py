"""The shipped recipes against the paper, their siblings and their bases; against Axolotl's schema: test_check.py."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.paper import ROWS
from hermes3.recipe.read import read

RECIPES = sorted((ROOT / "recipes").glob("*.yml"))
TINY = [path for path in RECIPES if path.stem.startswith("tiny_")]
LISTED = yaml.safe_load((ROOT / "tests/recipe_differences.yml").read_text(encoding="utf-8"))
HARDWARE = LISTED["hardware"]
FULL = [path for path in RECIPES if path not in TINY and path.stem not in HARDWARE]
EXPERIMENTS = sorted((ROOT / "recipes/experiments").glob("*.yml"))
MARKED = re.compile(r"^(?:(\w+): .*  # experiment: |# experiment: (\w+) )", re.MULTILINE)


def stems(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@stems(RECIPES)
def test_recipe_is_seeded_and_named_after_its_file(path):
    recipe, (size, phase) = read(path), path.stem.split("_")[:2]
    assert recipe["seed"] == 42
    assert recipe["wandb_name"] == path.stem
    assert recipe["output_dir"] == f"outputs/{size}/{path.stem.removeprefix(f'{size}_')}"
    assert recipe["base_model"] == (f"outputs/{size}/base" if phase == "sft" else f"outputs/{size}/sft/best")
    # replaced together with the mix, as Axolotl's cache does not notice changed data
    assert Path(recipe["dataset_prepared_path"]).parent == Path(recipe["datasets"][0]["path"]).parent


@pytest.mark.parametrize("name", HARDWARE)
def test_a_recipe_for_other_hardware_differs_only_where_listed(name):
    path, listed = ROOT / f"recipes/{name}.yml", HARDWARE[name]
    recipe = read(path)
    assert differences(path, f"{listed['base']}.yml") == {*listed["keys"], "hardware", "output_dir", "wandb_name"}
    assert hardware_of(path, recipe).gpus * recipe["gradient_accumulation_steps"] == listed["batch"]
    assert "not measured" in path.read_text(encoding="utf-8").split("\n\n")[0]


def differences(path: Path, base: str) -> set[str]:
    """The keys that the recipe has otherwise than the recipe `base`."""
    recipe, other = read(path), read(ROOT / "recipes" / base)
    return {key for key in other | recipe if other.get(key) != recipe.get(key)}


def test_tiny_differs_where_listed_and_only_there():
    assert set().union(*(differences(path, path.name.replace("tiny", "8b")) for path in TINY)) == set(LISTED["tiny"])


def test_every_row_of_the_paper_has_its_recipe_which_is_held_to_it():
    assert {read(path)["reproduces"] for path in FULL} == set(ROWS)


def base_of(path: Path) -> str:
    return f"{'_'.join(path.stem.split('_')[:2])}.yml"


@stems(EXPERIMENTS)
def test_an_experiment_differs_from_its_base_in_its_marked_lines_alone(path):
    text = path.read_text(encoding="utf-8")
    marked = {key or left_out for key, left_out in MARKED.findall(text)}
    assert differences(path, base_of(path)) == marked
    assert marked > {"output_dir", "wandb_name"}
    assert read(path)["wandb_name"] == path.stem
    assert f"recipes/{base_of(path)}" in text.splitlines()[1]
    base = (ROOT / "recipes" / base_of(path)).read_text(encoding="utf-8")
    unmarked = {line for line in text.splitlines()[2:] if line and "experiment" not in line}
    assert unmarked <= set(base.splitlines())  # comments too
