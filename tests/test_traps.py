"""What Axolotl does unasked: each shown on Axolotl itself, and gone with our measure. docs/traps.md lists them all."""

import ast
import copy
import os
import re
import stat
from importlib.metadata import version
from pathlib import Path

import axolotl
import numpy as np
import pytest
import torch
import yaml
from axolotl.cli import preprocess
from axolotl.cli.config import gpu_capabilities, load_cfg, prepare_plugins
from axolotl.common.datasets import load_datasets, load_preference_datasets
from axolotl.integrations.base import PluginManager
from axolotl.prompt_strategies.chat_template import load as load_strategy
from axolotl.train import setup_model_and_trainer
from axolotl.utils.config import validate_config
from axolotl.utils.data.shared import generate_dataset_hash_from_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from axolotl.utils.trainer import calculate_total_num_steps
from small_mix import SEQUENCE_LEN, write_mix, write_recipe
from stopped import dpo_recipe

from hermes3.chat.render import Renderer
from hermes3.recipe.check import check, check_all
from hermes3.recipe.read import read

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").rglob("*.yml"))
H100 = {"bf16": True, "fp8": True, "tf32": True, "compute_capability": "sm_90"}
TORCH = {"torch_version": version("torch").split("+")[0]}
FSDP = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}

pytestmark = pytest.mark.usefixtures("axolotl_process", "quick_gc")


def recipe_of(name: str, **changes) -> dict:
    """A recipe of ours with other values. None: without the key."""
    return {key: value for key, value in (read(ROOT / f"recipes/{name}.yml") | changes).items() if value is not None}


def taken(recipe: dict, gpus: int = 48) -> dict:
    """The recipe as Axolotl's schema and validators understand it on H100s."""
    recipe = copy.deepcopy(recipe)
    PluginManager.get_instance().plugins.clear()
    prepare_plugins(recipe)
    return validate_config(DictDefault(recipe), H100 | {"n_gpu": gpus}, TORCH).to_dict()


@pytest.fixture
def refuse(tmp_path):
    """Hold a recipe to our check, which must refuse it in these words."""

    def refuse(recipe: dict, message: str) -> None:
        path = tmp_path / "mine.yml"
        path.write_text(yaml.safe_dump(recipe))
        errors = [str(finding) for finding in check(path).errors]
        assert any(re.search(message, error) for error in errors), errors

    return refuse


def entry(name: str, **changes) -> dict:
    """The recipe's own datasets, with more keys."""
    return {"datasets": [read(ROOT / f"recipes/{name}.yml")["datasets"][0] | changes]}


@pytest.mark.parametrize(
    ("name", "key", "before", "after"),
    [
        ("8b_sft", "sequence_lenght", {}, {"sequence_lenght": 4096}),
        ("8b_sft", "offload", {"deepspeed": None, **FSDP}, {"fsdp_config": {**FSDP["fsdp_config"], "offload": True}}),
        ("8b_sft", "eos_tokn", {"special_tokens": {}}, {"special_tokens": {"eos_tokn": "<|im_end|>"}}),
        ("8b_dpo", "betta", {"trl": {}}, {"trl": {"betta": 0.3}}),
        ("8b_dpo", "liger_rms_norm", {}, {"liger_rms_norm": True}),  # it does not list the plugin that has the key
        ("8b_dpo", "ds_type", {}, entry("8b_dpo", ds_type="json")),
        ("8b_dpo", "roles", {}, entry("8b_dpo", roles={"user": ["human"]})),
        ("8b_dpo", "message_property_mappings", {}, entry("8b_dpo", message_property_mappings={"role": "from"})),
        ("8b_dpo", "chat_template", {}, entry("8b_dpo", chat_template="llama3")),
        ("8b_dpo", "field_tools", {}, entry("8b_dpo", field_tools="functions")),
    ],
)
def test_unknown_keys_are_dropped_and_check_refuses_them(name, key, before, after, refuse):
    without, given = recipe_of(name, **before), recipe_of(name, **before | after)
    assert taken(given) == taken(without)
    refuse(given, rf"\b{key}: unknown key")


@pytest.mark.parametrize(("key", "typo"), [("optimizer", "adamw_torch_fussed"), ("lr_scheduler", "cosinee")])
def test_misspelt_names_pass_and_check_refuses_them(key, typo, refuse):
    recipe = recipe_of("8b_sft", **{key: typo})
    assert taken(recipe)[key] == typo
    refuse(recipe, f"{key}: unknown name {typo}; did you mean")


def order(recipe: Path) -> list[int]:
    """The first token of each row, as Axolotl loads them with nothing prepared."""
    cfg = load_cfg(str(recipe))
    cfg.dataset_prepared_path = str(recipe.parent / f"prepared-{len(list(recipe.parent.iterdir()))}")
    return [row["input_ids"][0] for row in load_datasets(cfg=cfg).train_dataset]


def test_without_a_seed_rows_come_in_another_order_each_time(base, tmp_path, refuse):
    mix = write_mix(tmp_path / "mix", [20] * 40)
    unseeded, seeded = (write_recipe(tmp_path / str(seed), mix, base, seed=seed) for seed in (None, 42))
    assert order(unseeded) != order(unseeded)
    assert (first := order(seeded)) == order(seeded) != sorted(first)
    refuse(recipe_of("8b_sft", seed=None), "seed is missing")


def test_prepared_data_outlive_their_template_and_a_mix_holds_tokens(base, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    given = {"seed": 42, "chat_template_jinja": str(tmp_path / "own.jinja"), "excess_length_strategy": "raise"}
    cfg = DictDefault(recipe_of("8b_sft", **given))

    def name() -> str:
        return generate_dataset_hash_from_config(cfg, cfg.datasets, str(base))

    before = name()
    (tmp_path / "own.jinja").write_text("{{ messages[1].content }}")
    assert name() == before
    for cfg.seed, cfg.excess_length_strategy in ((1, "raise"), (42, "drop")):
        assert name() == before
    cfg.sequence_len = 4096
    assert name() != before
    # ours: rows are tokens before Axolotl sees them, so that another template is another mix, in another folder
    for path in RECIPES:
        assert not {"chat_template", "chat_template_jinja"} & set(read(path))
        assert all(given.get("type") in (None, "passthrough") for given in read(path)["datasets"])


def test_long_rows_are_dropped_and_ours_stop_the_run(base, tmp_path):
    mix = write_mix(tmp_path / "mix", [20, SEQUENCE_LEN + 1, 20, 20])
    silent, loud = (write_recipe(tmp_path / str(s), mix, base, excess_length_strategy=s) for s in (None, "raise"))
    assert sorted(order(silent)) == [10, 12, 13]
    with pytest.raises(ValueError, match="65 tokens"):
        order(loud)
    assert {read(path)["excess_length_strategy"] for path in RECIPES} == {"raise"}


def test_workers_multiply_with_ranks(monkeypatch, refuse):
    monkeypatch.setenv("WORLD_SIZE", "128")
    assert gpu_capabilities()[0]["n_gpu"] == 128
    keys = dict.fromkeys(("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"))
    recipe = taken(recipe_of("405b_sft", **keys), gpus=128)
    assert (recipe["dataloader_num_workers"], recipe["dataloader_prefetch_factor"]) == (128, 256)
    refuse(recipe_of("405b_sft", **keys), "dataloader_num_workers is missing")
    for path in RECIPES:
        assert read(path)["dataloader_num_workers"] <= 4
        assert read(path).get("dataloader_prefetch_factor", 2) <= 4


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
MESSAGES = [
    {"role": "user", "content": "Is it cold in Oslo?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL], "thoughts": "no idea"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_preprocessing_loads_the_base_model_and_ours_does_not(base, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "run", write_mix(tmp_path / "mix", [20] * 8), base)
    ours = re.search(r"axolotl\.cli\.preprocess .*(--download=\S+)", (ROOT / "launch/train.sbatch").read_text())[1]
    loaded = []
    monkeypatch.setattr(preprocess.AutoModelForCausalLM, "from_pretrained", lambda name, **keys: loaded.append(name))
    for options, expected in ([], [str(base)]), ([ours], []):
        loaded.clear()
        monkeypatch.setattr("sys.argv", ["preprocess", str(recipe), *options])
        preprocess.do_cli(str(recipe))
        assert loaded == expected


def told(tokenizer, template: str, row: dict, **keys) -> str:
    """A conversation as Axolotl's own chat_template strategy would train on it."""
    cfg = DictDefault({"chat_template": "jinja", "chat_template_jinja": template, "sequence_len": 4096})
    dataset = SFTDataset(path="x", type="chat_template", chat_template="jinja", chat_template_jinja=template, **keys)
    strategy = load_strategy(tokenizer, cfg, ds_cfg=DictDefault(dataset.model_dump(exclude_none=True)))
    return tokenizer.decode(strategy.tokenize_prompt(copy.deepcopy(row))["input_ids"])


def test_the_loop_variable_of_a_template_must_be_message(tokenizer):
    ours = (ROOT / "hermes3/chat/hermes3.jinja").read_text(encoding="utf-8")
    other = re.sub(r"\bmessage\b", "m", ours)
    row = {"messages": MESSAGES}
    asked = dict(tokenize=False, chat_template=other)
    assert "<tool_call>" in tokenizer.apply_chat_template(MESSAGES, **asked)  # to transformers they are the same
    assert "<tool_call>" in told(tokenizer, ours, row)
    assert "<tool_call>" not in told(tokenizer, other, row)


def test_columns_named_for_tools_and_thinking_are_not_read(tokenizer, base):
    ours = (ROOT / "hermes3/chat/hermes3.jinja").read_text(encoding="utf-8")
    thinking = ours.replace('message.content or ""', '(message.reasoning_content or "") + (message.content or "")')
    row = {"messages": MESSAGES, "functions": TOOLS}
    keys = {"field_tools": "functions", "field_thinking": "thoughts"}
    assert "<tools>" in told(tokenizer, thinking, {"messages": MESSAGES, "tools": TOOLS})
    assert "no idea" in told(tokenizer, thinking, row, message_property_mappings={"reasoning_content": "thoughts"})
    text = told(tokenizer, thinking, row, **keys)
    assert "<tools>" not in text and "no idea" not in text
    # ours: a mix renders the tools itself
    assert "<tools>" in tokenizer.decode(Renderer(base).render([(MESSAGES, TOOLS)])[0].input_ids)


def test_check_finds_what_axolotl_takes_and_nothing_reads(tmp_path):
    """Named columns, and the paper's values that a default would replace: both are beyond `validate`."""
    recipes = {
        "8b_sft": recipe_of("8b_sft", **entry("8b_sft", field_tools="functions", field_thinking="thoughts")),
        "70b_sft": recipe_of("70b_sft", weight_decay=None),
    }
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(recipe))
    columns, decay = check_all([tmp_path / f"{name}.yml" for name in recipes])
    assert {"datasets.field_tools", "datasets.field_thinking"} <= {finding.key for finding in columns.errors}
    assert "weight_decay" in {finding.key for finding in decay.errors}


def test_lm_eval_runs_once_a_rank(tmp_path, monkeypatch, refuse):
    log, stand_in = tmp_path / "log", tmp_path / "lm_eval"
    stand_in.write_text(f'#!/bin/sh\necho "$LOCAL_RANK $@" >> {log}\n')
    stand_in.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    plugin = "axolotl.integrations.lm_eval.LMEvalPlugin"
    recipe = recipe_of("8b_sft", lm_eval_tasks=["ifeval"])
    recipe["plugins"].append(plugin)
    cfg, manager = DictDefault(taken(recipe)), PluginManager.get_instance()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        manager.post_train_unload(cfg)
    ran = log.read_text().splitlines()
    assert [line[0] for line in ran] == ["0", "1"] and ran[0][1:] == ran[1][1:]
    assert "chat_template" not in ran[0]
    assert not [path for path in RECIPES if plugin in read(path)["plugins"]]
    refuse(recipe, "LMEvalPlugin")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU makes of auto")
def test_bf16_auto_is_fp16_without_a_gpu(base, tmp_path, refuse):
    mix = write_mix(tmp_path / "mix", [20, 20])
    for given in ({"bf16": "auto"}, {"bf16": None}):
        cfg = load_cfg(str(write_recipe(tmp_path, mix, base, **given)))
        assert cfg.fp16 is True and cfg.bf16 is False
        refuse(recipe_of("8b_sft", **given), "bf16: (auto|absent)")
    assert {type(read(path)["bf16"]) for path in RECIPES} == {bool}


def test_save_strategy_no_is_refused(refuse):
    unquoted = yaml.safe_load("save_strategy: no")
    with pytest.raises(ValueError, match="save_strategy"):
        taken(recipe_of("8b_sft", **unquoted))
    refuse(recipe_of("8b_sft", **unquoted), "save_strategy")


def test_keys_of_the_trainer_that_are_absent_or_one(base, tmp_path, refuse):
    mix = write_mix(tmp_path / "mix", [20] * 40)
    cfg = load_cfg(str(write_recipe(tmp_path, mix, base, warmup_steps=1, weight_decay=None, save_total_limit=None)))
    args = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0].args
    assert (args.warmup_steps, args.weight_decay, args.save_total_limit) == (2, 0, 4)
    assert all("weight_decay" in read(path) for path in RECIPES)
    refuse(recipe_of("8b_sft", warmup_steps=1), "warmup_steps")
    refuse(recipe_of("8b_sft", save_total_limit=None), "save_total_limit: 4 by default")


def test_the_number_of_steps_is_drawn_before_the_seed_is_set(base, tmp_path):
    lengths = np.random.default_rng(0).integers(15, 45, 300)  # two or three a pack, and so many ways to pack them
    cfg = load_cfg(str(write_recipe(tmp_path, write_mix(tmp_path / "mix", lengths.tolist()), base)))
    dataset = load_datasets(cfg=cfg).train_dataset
    cfg.sample_packing_eff_est = None  # as before the first packing

    def drawn(plugin: bool) -> set[int]:
        steps = set()
        for before in range(10):
            torch.manual_seed(before)
            if plugin:
                PluginManager.get_instance().load_datasets(cfg)  # called by Axolotl before it loads them itself
            steps.add(calculate_total_num_steps(cfg, dataset, update=False))
        return steps

    assert len(drawn(False)) > 1
    assert len(drawn(True)) == 1


def test_padding_free_dpo_is_switched_off_and_neftune_not_handed_to_it(base, tmp_path):
    """test_plugin.py::test_neftune_reaches_the_preference_trainer: with our plugin it is."""
    recipe = dpo_recipe(tmp_path / "dpo", base, plugins=[], neftune_noise_alpha=5, dpo_padding_free=True)
    PluginManager.get_instance().plugins.clear()
    cfg = load_cfg(str(recipe))
    trainer = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]
    assert trainer.args.neftune_noise_alpha is None
    assert trainer.args.padding_free and not trainer.padding_free
    assert not [path for path in RECIPES if read(path).get("dpo_padding_free")]


def test_the_prefix_of_fsdp_keys_is_stripped_and_they_act():
    plain, prefixed = ({"fsdp_version": 2, "fsdp_config": {f"{p}offload_params": True}} for p in ("", "fsdp_"))
    plain, prefixed = (taken(recipe_of("8b_sft", deepspeed=None, **keys)) for keys in (plain, prefixed))
    assert plain == prefixed and plain["fsdp_config"]["offload_params"] is True


def rows_of_the_page() -> list[str]:
    """Those that remain: of what is mended upstream there is no place and no test."""
    return re.findall(r"(?m)^\| \d+ \|.*$", PAGE.split("## Mended upstream")[0])


def test_every_row_of_the_page_names_tests_that_exist():
    assert len(rows_of_the_page()) >= 30
    for row in rows_of_the_page():
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / f"tests/{file}.py").read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_place_of_the_page_is_in_the_axolotl_that_is_installed():
    assert f"Axolotl {version('axolotl')} " in PAGE
    packages = Path(axolotl.__file__).parents[1]
    for row in rows_of_the_page():
        places = re.findall(r"`([\w/]+\.py):(\d+)`", row)
        assert places, row
        for file, line in places:
            text = (packages / file).read_text(encoding="utf-8")
            assert text.splitlines()[int(line) - 1].strip(), f"{file}:{line}"
