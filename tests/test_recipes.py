"""The shipped recipes against Axolotl's schema, the paper, their siblings, their bases and the files that they name."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hermes3.recipe import schema
from hermes3.recipe.check import validate
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.paper import paper_of, rows
from hermes3.recipe.read import read

RECIPES = sorted((ROOT / "recipes").glob("*.yml"))
TINY = [path for path in RECIPES if path.stem.startswith("tiny_")]
# Recipes for other hardware than the paper's, and what they do otherwise than another recipe, beside their own names
HARDWARE = {
    "8b_sft_1node": ("8b_sft", {"gradient_accumulation_steps", "restart_steps"}),
    "8b_dpo_1gpu": ("8b_dpo", {"gradient_accumulation_steps"}),
    "8b_sft_lora_1gpu": (
        "experiments/8b_sft_lora",
        {"gradient_accumulation_steps", "gradient_checkpointing", "gradient_checkpointing_kwargs"}
        | {"deepspeed", "restart_steps"},
    ),
    "70b_sft_4nodes": ("70b_sft", {"gradient_accumulation_steps", "restart_steps", "reproduces"}),
}
FULL = [path for path in RECIPES if path not in TINY and path.stem not in HARDWARE]
EXPERIMENTS = sorted((ROOT / "recipes/experiments").glob("*.yml"))
DEEPSPEED = sorted((ROOT / "deepspeed_configs").glob("*.json"))
MARKED = re.compile(r"^(?:(\w+): .*  # experiment: |# experiment: (\w+) )", re.MULTILINE)


def stems(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def examined() -> dict:
    """Every recipe as Axolotl resolves it; one process for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {path: resolved for path, (_, resolved) in schema.examine(RECIPES).items()}


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


@stems(RECIPES)
def test_siblings_have_their_keys_in_the_same_order(path):
    size, phase, *variant = path.stem.split("_")
    sibling = HARDWARE[path.stem][0] if path.stem in HARDWARE else "_".join(["8b", phase, *variant])
    keys, model = list(read(path)), list(read(ROOT / f"recipes/{sibling}.yml"))
    assert [key for key in keys if key in model] == [key for key in model if key in keys]


@pytest.mark.parametrize("name", HARDWARE)
def test_a_recipe_for_other_hardware_differs_only_where_listed(name):
    base, listed = HARDWARE[name]
    path = ROOT / f"recipes/{name}.yml"
    recipe = read(path)
    assert differences(path, f"{base}.yml") == listed | {"hardware", "output_dir", "wandb_name"}
    batch = hardware_of(path, recipe).gpus * recipe["gradient_accumulation_steps"]
    assert batch == {"70b_sft_4nodes": 64, "8b_dpo_1gpu": 64}.get(name, 48)
    assert "not measured" in path.read_text(encoding="utf-8").split("\n\n")[0]


def differences(path: Path, base: str) -> set[str]:
    """The keys that the recipe has otherwise than the recipe `base`."""
    recipe, other = read(path), read(ROOT / "recipes" / base)
    return {key for key in other | recipe if other.get(key) != recipe.get(key)}


def test_tiny_differs_where_listed_and_only_there():
    listed = yaml.safe_load((ROOT / "tests/tiny_differences.yml").read_text(encoding="utf-8"))
    assert set().union(*(differences(path, path.name.replace("tiny", "8b")) for path in TINY)) == set(listed)


def test_every_row_of_the_paper_has_its_recipe():
    assert {f"{name}.yml" for name in rows()} <= {path.name for path in RECIPES}


@stems(DEEPSPEED)
def test_deepspeed_config_is_used_and_explained(path):
    assert str(path.relative_to(ROOT)) in {read(recipe).get("deepspeed") for recipe in RECIPES}
    assert path.name in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_lenght": 8192}, "sequence_lenght: unknown key.* did you mean sequence_len"),  # Axolotl's schema
        ({"seed": None}, "seed: seed is missing"),  # a rule
        ({"dataset_prepared_path": "elsewhere"}, "dataset_prepared_path: must be"),
    ],
)
def test_the_first_fault_is_an_error_with_file_and_key(tmp_path, changes, message):
    """Of `validate`; `tests/test_check.py` plants every kind."""
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(read(ROOT / "recipes/8b_sft.yml") | {"token_weighted_loss": True} | changes))
    with pytest.raises(ValueError, match=f"{path}: {message}"):
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


def values(key: str, base: str) -> list:
    """What the base recipe and its experiments give `key`, sorted."""
    paths = [ROOT / f"recipes/{base}.yml", *(ROOT / "recipes/experiments").glob(f"{base}_*.yml")]
    by_recipe = {path.stem: read(path).get(key) for path in paths}
    return sorted({value for value in by_recipe.values() if value is not None})


def test_the_open_questions_are_covered():
    assert values("learning_rate", "8b_sft")[:6] == [5e-6, 6e-6, 7e-6, 8e-6, 9e-6, 10e-6]  # the paper's sweep
    assert values("seed", "8b_sft") == values("seed", "8b_dpo") == [42, 43, 44]
    assert values("lora_r", "8b_dpo") == [8, 16, 32, 64]
    assert "neftune_noise_alpha" in differences(ROOT / "recipes/experiments/8b_dpo_no_neftune.yml", "8b_dpo.yml")
    assert read(ROOT / "recipes/experiments/8b_sft_lora.yml")["adapter"] == "lora"
