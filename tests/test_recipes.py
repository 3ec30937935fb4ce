"""Every recipe against Axolotl's schema, the paper, its siblings and the files that it names."""

import json
from pathlib import Path

import pytest
import yaml

from hermes3.recipe.paper import run_of, runs
from hermes3.recipe.validate import read, validate

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yml"))
TINY = [path for path in RECIPES if path.stem.startswith("tiny_")]
FULL = [path for path in RECIPES if path not in TINY]
DEEPSPEED = sorted((ROOT / "deepspeed_configs").glob("*.json"))

# What a tiny recipe may do otherwise than the 8B's, and why
TINY_DIFFERENCES = {
    "base_model": "random weights, or the tiny SFT model",
    "datasets": "the tiny mixes",
    "dataset_prepared_path": "in the tiny mixes",
    "dataset_num_proc": "a second process starts later than the first has finished",
    "output_dir": "outputs/tiny",
    "wandb_name": "the recipe's name",
    "wandb_mode": "no account needed",
    "logging_steps": "fewer lines for a short run",
    "plugins": "Liger's kernels need a GPU",
    "liger_rope": "needs a GPU",
    "liger_rms_norm": "needs a GPU",
    "liger_glu_activation": "needs a GPU",
    "liger_fused_linear_cross_entropy": "needs a GPU",
    "bf16": "fp32 on a CPU",
    "tf32": "GPU only",
    "attn_implementation": "flash-attention needs a GPU",
    "deepspeed": "one process",
    "gradient_checkpointing": "activations fit",
    "gradient_checkpointing_kwargs": "activations fit",
    "dataloader_num_workers": "both cores train",
    "dataloader_prefetch_factor": "no workers",
    "dataloader_pin_memory": "no GPU to copy to",
    "sequence_len": "attention on a CPU holds sequence_len squared",
    "learning_rate": "random weights must move, in few steps",
    "warmup_steps": "few steps",
    "neftune_noise_alpha": "as large as the embeddings of so narrow a model",
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes name their files from here


@pytest.fixture
def edited(tmp_path):
    """Write a copy of a recipe with other values (None: without the key), and return its path."""

    def write(name: str, **changes) -> Path:
        recipe = read(ROOT / "recipes" / f"{name}.yml") | changes
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
        return path

    return write


def stems(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@stems(RECIPES)
def test_axolotl_accepts_every_recipe_and_keeps_its_values(path):
    resolved = validate(path)
    recipe = read(path)
    assert {key: resolved.get(key) for key in recipe if key != "datasets"} == {
        key: value for key, value in recipe.items() if key != "datasets"
    }
    for entry, given in zip(resolved["datasets"], recipe["datasets"], strict=True):
        assert given.items() <= {"type": None, **entry}.items()


@stems(FULL)
def test_recipe_has_the_papers_values(path):
    run, recipe = run_of(path), read(path)
    assert {key: recipe.get(key) for key in run.values} == run.values
    assert recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"] * run.gpus == run.global_batch


@stems(FULL)
def test_header_agrees_with_the_paper(path):
    run, text = run_of(path), path.read_text(encoding="utf-8")
    assert f"# {run.gpus} H100" in text
    if run.gpu_hours:
        assert f"{run.gpu_hours} GPU-hours" in text
        assert f"`hermes3 tokenizer build {run.base} {read(path)['base_model']}`" in text


@stems(RECIPES)
def test_recipe_is_declared_seeded_and_named_after_its_file(path):
    recipe, (size, phase) = read(path), path.stem.split("_")
    assert path.stem in runs()
    assert recipe["seed"] == 42
    assert recipe["wandb_name"] == path.stem
    assert recipe["output_dir"] == f"outputs/{size}/{phase}"
    assert recipe["base_model"] == (f"outputs/{size}/base" if phase == "sft" else f"outputs/{size}/sft")
    assert "hermes3.train.plugin.HermesPlugin" in recipe["plugins"]
    # replaced together with the mix, as Axolotl's cache does not notice changed data
    assert Path(recipe["dataset_prepared_path"]).parent == Path(recipe["datasets"][0]["path"]).parent


@stems(RECIPES)
def test_siblings_have_their_keys_in_the_same_order(path):
    keys, model = list(read(path)), list(read(ROOT / "recipes" / f"8b_{path.stem.split('_')[1]}.yml"))
    if path in FULL:
        assert keys == model
    assert [key for key in keys if key in model] == [key for key in model if key in keys]


def differences(path: Path) -> set[str]:
    tiny, full = read(path), read(ROOT / "recipes" / path.name.replace("tiny", "8b"))
    return {key for key in tiny | full if tiny.get(key) != full.get(key)}


@stems(TINY)
def test_tiny_differs_only_where_listed(path):
    assert differences(path) <= set(TINY_DIFFERENCES)


def test_every_listed_difference_exists():
    assert set().union(*map(differences, TINY)) == set(TINY_DIFFERENCES)


@stems(DEEPSPEED)
def test_deepspeed_config_is_used_explained_and_known_to_deepspeed(path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert str(path.relative_to(ROOT)) in {read(recipe).get("deepspeed") for recipe in RECIPES}
    assert path.name in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    config = json.loads(path.read_text(encoding="utf-8"))
    zero = {key: value for key, value in config["zero_optimization"].items() if value != "auto"}
    DeepSpeedZeroConfig(**zero)  # refuses unknown keys
    assert zero["stage"] == 3 and config["bf16"]["enabled"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("8b_sft", {"sequence_lenght": 8192}, "unknown key sequence_lenght; did you mean sequence_len"),
        ("8b_dpo", {"liger_rms_norm": True}, "unknown key liger_rms_norm"),  # that recipe does not list the plugin
        ("8b_sft", {"datasets": [{"path": "x", "weight": 2}]}, "unknown datasets key weight"),
        ("8b_dpo", {"datasets": [{"path": "x", "ds_type": "json"}]}, "unknown datasets key ds_type"),
        ("8b_sft", {"optimizer": "adamw_torch_fussed"}, "unknown optimizer .* did you mean adamw_torch_fused"),
        ("8b_sft", {"lr_scheduler": "cosinee"}, "unknown lr_scheduler cosinee; did you mean cosine"),
        ("8b_sft", {"plugins": ["hermes3.train.plugins.HermesPlugin"]}, "plugins: .* cannot be imported"),
        ("8b_sft", {"seed": None}, "seed is missing"),
        ("8b_sft", {"attn_implementation": None}, "attn_implementation is missing"),
        ("8b_sft", {"attn_implementation": "xformers"}, "not known to keep packed samples apart; .* flash_attention_2"),
        ("8b_sft", {"deepspeed": "deepspeed_configs/zero4.json"}, "deepspeed: no file"),
        ("8b_sft", {"num_epochs": "four"}, "num_epochs"),
        ("8b_dpo", {"sample_packing": True}, "sample_packing"),  # Axolotl's own refusal
    ],
)
def test_faults_are_refused_with_file_and_key(edited, name, changes, message):
    path = edited(name, **changes)
    with pytest.raises(ValueError, match=message) as error:
        validate(path)
    assert str(path) in str(error.value)


def test_the_plugin_s_own_key_is_known(edited):
    assert validate(edited("8b_sft", token_weighted_loss=True))["token_weighted_loss"] is True


def test_validating_leaves_the_plugins_of_the_process_alone():
    from axolotl.integrations.base import PluginManager

    before = dict(PluginManager.get_instance().plugins)
    validate(ROOT / "recipes/8b_sft.yml")
    assert PluginManager.get_instance().plugins == before


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yml"
    path.write_text("- base_model\n")
    with pytest.raises(ValueError, match="list.yml: a recipe is a mapping"):
        read(path)
