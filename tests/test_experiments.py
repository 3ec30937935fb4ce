"""An experiment is its base recipe but for the lines that say so, and every question has its recipes."""

import re
from pathlib import Path

import pytest

from hermes3.recipe.read import read

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "recipes/experiments").glob("*.yml"))
MARKED = re.compile(r"^(?:(\w+): .*  # experiment: |# experiment: (\w+) )", re.MULTILINE)


def changed(path: Path) -> set[str]:
    base, recipe = read(base_of(path)), read(path)
    return {key for key in base | recipe if base.get(key) != recipe.get(key)}


def base_of(path: Path) -> Path:
    return ROOT / "recipes" / f"{'_'.join(path.stem.split('_')[:2])}.yml"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_differs_from_its_base_in_its_marked_lines_alone(path):
    text = path.read_text(encoding="utf-8")
    marked = {key or left_out for key, left_out in MARKED.findall(text)}
    assert changed(path) == marked
    assert marked > {"output_dir", "wandb_name"}
    assert read(path)["wandb_name"] == path.stem
    assert f"recipes/{base_of(path).name}" in text.splitlines()[1]
    base = base_of(path).read_text(encoding="utf-8")
    unmarked = {line for line in text.splitlines()[2:] if line and "experiment" not in line}
    assert unmarked <= set(base.splitlines())  # comments too


def values(key: str, base: str) -> list:
    """What the base recipe and its experiments give `key`, sorted."""
    paths = [ROOT / f"recipes/{base}.yml", *(ROOT / "recipes/experiments").glob(f"{base}_*.yml")]
    found = {path.stem: read(path).get(key) for path in paths}
    return sorted({value for value in found.values() if value is not None})


def test_the_open_questions_are_covered():
    assert values("learning_rate", "8b_sft")[:6] == [5e-6, 6e-6, 7e-6, 8e-6, 9e-6, 10e-6]  # the paper's sweep
    assert values("seed", "8b_sft") == values("seed", "8b_dpo") == [42, 43, 44]
    assert values("lora_r", "8b_dpo") == [8, 16, 32, 64]
    assert "neftune_noise_alpha" in changed(ROOT / "recipes/experiments/8b_dpo_no_neftune.yml")
    assert read(ROOT / "recipes/experiments/8b_sft_lora.yml")["adapter"] == "lora"
