"""The shipped recipes against Axolotl's schema, the paper, their siblings, their bases and the files that they name."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.files import UserError
from hermes3.recipe import schema
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.paper import paper_of, rows
from hermes3.recipe.read import read

RECIPES = sorted((ROOT / "recipes").glob("*.yml"))
TINY = [path for path in RECIPES if path.stem.startswith("tiny_")]
LISTED = yaml.safe_load((ROOT / "tests/recipe_differences.yml").read_text(encoding="utf-8"))
HARDWARE = LISTED["hardware"]
FULL = [path for path in RECIPES if path not in TINY and path.stem not in HARDWARE]
EXPERIMENTS = sorted((ROOT / "recipes/experiments").glob("*.yml"))
DEEPSPEED = sorted((ROOT / "deepspeed_configs").glob("*.json"))
MARKED = re.compile(r"^(?:(\w+): .*  # experiment: |# experiment: (\w+) )", re.MULTILINE)


def stems(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def examined(tmp_path_factory) -> dict:
    """Every recipe, and one on A100, as Axolotl resolves it; one process for all."""
    a100 = tmp_path_factory.mktemp("a100") / "a100.yml"
    a100.write_text((ROOT / "recipes/8b_sft.yml").read_text().replace("h100-80gb", "a100-80gb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        resolved = {path: resolved for path, (_, resolved) in schema.examine([*RECIPES, a100]).items()}
    return resolved | {"a100": resolved[a100]}


@stems(RECIPES)
def test_axolotl_accepts_every_recipe_and_keeps_its_values(examined, path):
    resolved, recipe = examined[path], read(path)
    parts = ("datasets", "fsdp_config")
    assert {key: resolved.get(key) for key in recipe if key not in parts} == {
        key: value for key, value in recipe.items() if key not in parts
    }
    assert recipe.get("fsdp_config", {}).items() <= resolved.get("fsdp_config", {}).items()
    for entry, written in zip(resolved["datasets"], recipe["datasets"], strict=True):
        assert written.items() <= {"type": None, **entry}.items()


def test_axolotl_is_told_what_the_declared_hardware_can(examined):
    hopper, ampere = (examined[name]["capabilities"] for name in (ROOT / "recipes/8b_sft.yml", "a100"))
    assert (hopper["fp8"], hopper["compute_capability"], hopper["n_gpu"]) == (True, "sm_90", 48)
    assert (ampere["fp8"], ampere["bf16"], ampere["compute_capability"]) == (False, True, "sm_80")


@stems(FULL)
def test_it_says_what_it_reproduces_and_its_header_agrees_with_the_paper_and_the_hardware(path):
    paper, recipe, text = paper_of(path), read(path), path.read_text(encoding="utf-8")
    assert recipe["reproduces"] == "_".join(path.stem.split("_")[:2])  # tests/test_check.py holds it to that
    assert f"# {hardware_of(path, recipe).gpus} H100" in text
    if paper.gpu_hours:
        assert f"{paper.gpu_hours} GPU-hours" in text
        assert f"`hermes3 tokenizer build {paper.base} {recipe['base_model']}`" in text


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


def test_every_row_of_the_paper_has_its_recipe():
    assert {f"{name}.yml" for name in rows()} <= {path.name for path in RECIPES}


@stems(DEEPSPEED)
def test_deepspeed_config_is_used_and_explained(path):
    assert str(path.relative_to(ROOT)) in {read(recipe).get("deepspeed") for recipe in RECIPES}
    assert path.name in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def test_the_first_fault_is_an_error_with_file_and_key(tmp_path):
    """Of `validate`: in Axolotl's schema, a rule, and the prepared data; `tests/test_check.py` plants every kind."""
    for changes, message in (
        ({"sequence_lenght": 8192}, "sequence_lenght: unknown key.* did you mean sequence_len"),
        ({"seed": None}, "seed: seed is missing"),
        ({"dataset_prepared_path": "elsewhere"}, "dataset_prepared_path: must be"),
    ):
        path = tmp_path / "mine.yml"
        path.write_text(yaml.safe_dump(read(ROOT / "recipes/8b_sft.yml") | {"token_weighted_loss": True} | changes))
        with pytest.raises(UserError, match=f"{path}: {message}"):
            validate(path)


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


def test_the_open_questions_are_covered():
    every = {path.stem: read(path) for path in [*RECIPES, *EXPERIMENTS]}
    sft, dpo = ([one for name, one in every.items() if name.startswith(f"8b_{phase}")] for phase in ("sft", "dpo"))
    assert {one["learning_rate"] for one in sft} >= {5e-6, 6e-6, 7e-6, 8e-6, 9e-6, 10e-6}  # the paper's sweep
    assert {one["seed"] for one in sft} == {one["seed"] for one in dpo} == {42, 43, 44}
    assert {one["lora_r"] for one in dpo} == {8, 16, 32, 64}
    assert "neftune_noise_alpha" not in every["8b_dpo_no_neftune"] and every["8b_sft_lora"]["adapter"] == "lora"
