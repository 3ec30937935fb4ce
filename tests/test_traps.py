"""What Axolotl does unasked: each shown on Axolotl itself, and gone with our measure. docs/traps.md lists them all."""

import copy
import re
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
from axolotl.integrations import lm_eval
from axolotl.integrations.base import PluginManager
from axolotl.prompt_strategies.chat_template import load as load_strategy
from axolotl.train import setup_model_and_trainer
from axolotl.utils.config import validate_config
from axolotl.utils.data.shared import generate_dataset_hash_from_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from axolotl.utils.trainer import calculate_total_num_steps
from ranks import dpo_recipe
from small_mix import SEQUENCE_LEN, write_mix, write_recipe

from hermes3.chat.render import Renderer
from hermes3.recipe.read import read
from hermes3.train.plugin import HermesPlugin

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "hermes3/chat/hermes3.jinja").read_text(encoding="utf-8")
H100 = {"bf16": True, "fp8": True, "tf32": True, "compute_capability": "sm_90"}
TORCH = {"torch_version": version("torch").split("+")[0]}
DROPPED = yaml.safe_load((ROOT / "tests/traps.yml").read_text(encoding="utf-8"))["dropped"]

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


@pytest.mark.parametrize("case", DROPPED, ids=str)
def test_unknown_keys_are_dropped(case):
    before = recipe_of(case["recipe"], **case.get("before", {}))
    after = before | case.get("after", {}) | {"datasets": [before["datasets"][0] | case.get("entry", {})]}
    assert taken(after) == taken(before)


def test_misspelt_names_pass():
    typos = {"optimizer": "adamw_torch_fussed", "lr_scheduler": "cosinee"}
    assert typos.items() <= taken(recipe_of("8b_sft", **typos)).items()


def order(recipe: Path) -> list[int]:
    """The first token of each row, as Axolotl loads them with nothing prepared."""
    cfg = load_cfg(str(recipe))
    cfg.dataset_prepared_path = str(recipe.parent / f"prepared-{len(list(recipe.parent.iterdir()))}")
    return [row["input_ids"][0] for row in load_datasets(cfg=cfg).train_dataset]


def test_without_a_seed_rows_come_in_another_order_each_time(base, tmp_path):
    mix = write_mix(tmp_path / "mix", [20] * 40)
    unseeded, seeded = (write_recipe(tmp_path / str(seed), mix, base, seed=seed) for seed in (None, 42))
    assert order(unseeded) != order(unseeded)
    assert (first := order(seeded)) == order(seeded) != sorted(first)


def test_prepared_data_outlive_their_template(base, tmp_path):
    keys = {"chat_template_jinja": str(tmp_path / "own.jinja"), "excess_length_strategy": "raise"}
    cfg, names = DictDefault(recipe_of("8b_sft", **keys)), set()
    for turn, cfg.seed, cfg.excess_length_strategy in (0, 42, "raise"), (1, 1, "raise"), (1, 1, "drop"):
        (tmp_path / "own.jinja").write_text(f"{{{{ messages[{turn}].content }}}}")
        names.add(generate_dataset_hash_from_config(cfg, cfg.datasets, str(base)))
    cfg.sequence_len = 4096
    assert len(names) == 1 and generate_dataset_hash_from_config(cfg, cfg.datasets, str(base)) not in names


def test_long_rows_are_dropped_and_ours_stop_the_run(base, tmp_path):
    mix = write_mix(tmp_path / "mix", [20, SEQUENCE_LEN + 1, 20, 20])
    silent, loud = (write_recipe(tmp_path / str(s), mix, base, excess_length_strategy=s) for s in (None, "raise"))
    assert sorted(order(silent)) == [10, 12, 13]
    with pytest.raises(ValueError, match="65 tokens"):
        order(loud)


def test_workers_multiply_with_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "128")
    assert gpu_capabilities()[0]["n_gpu"] == 128
    keys = dict.fromkeys(("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"))
    recipe = taken(recipe_of("405b_sft", **keys), gpus=128)
    assert (recipe["dataloader_num_workers"], recipe["dataloader_prefetch_factor"]) == (128, 256)


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


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
MESSAGES = [
    {"role": "user", "content": "Is it cold in Oslo?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL], "thoughts": "no idea"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def told(tokenizer, template: str, row: dict, **keys) -> str:
    """A conversation as Axolotl's own chat_template strategy would train on it."""
    cfg = DictDefault({"chat_template": "jinja", "chat_template_jinja": template, "sequence_len": 4096})
    dataset = SFTDataset(path="x", type="chat_template", chat_template="jinja", chat_template_jinja=template, **keys)
    strategy = load_strategy(tokenizer, cfg, ds_cfg=DictDefault(dataset.model_dump(exclude_none=True)))
    return tokenizer.decode(strategy.tokenize_prompt(copy.deepcopy(row))["input_ids"])


def test_the_loop_variable_of_a_template_must_be_message(tokenizer):
    other = re.sub(r"\bmessage\b", "m", TEMPLATE)
    # to transformers they are the same
    assert "<tool_call>" in tokenizer.apply_chat_template(MESSAGES, tokenize=False, chat_template=other)
    assert "<tool_call>" in told(tokenizer, TEMPLATE, {"messages": MESSAGES})
    assert "<tool_call>" not in told(tokenizer, other, {"messages": MESSAGES})


def test_columns_named_for_tools_and_thinking_are_not_read(tokenizer, base):
    thinking = TEMPLATE.replace('message.content or ""', '(message.reasoning_content or "") + (message.content or "")')
    row = {"messages": MESSAGES, "functions": TOOLS}
    assert "<tools>" in told(tokenizer, thinking, {"messages": MESSAGES, "tools": TOOLS})
    assert "no idea" in told(tokenizer, thinking, row, message_property_mappings={"reasoning_content": "thoughts"})
    text = told(tokenizer, thinking, row, field_tools="functions", field_thinking="thoughts")
    assert "<tools>" not in text and "no idea" not in text
    # ours: a mix renders the tools itself
    assert "<tools>" in tokenizer.decode(Renderer(base).render([(MESSAGES, TOOLS)])[0].input_ids)


def test_lm_eval_runs_once_a_rank(monkeypatch):
    ran = []
    monkeypatch.setattr(lm_eval.subprocess, "run", lambda command, **keys: ran.append(command))
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = recipe_of("8b_sft", lm_eval_tasks=["ifeval"])
    recipe["plugins"].append("axolotl.integrations.lm_eval.LMEvalPlugin")
    cfg = DictDefault(taken(recipe))
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        PluginManager.get_instance().post_train_unload(cfg)
    assert len(ran) == 2 and ran[0] == ran[1] and "lm_eval" in ran[0]
    assert not any("chat_template" in word for word in ran[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU makes of auto")
def test_bf16_auto_is_fp16_without_a_gpu(base, tmp_path):
    mix = write_mix(tmp_path / "mix", [20, 20])
    for value in ("auto", None):
        cfg = load_cfg(str(write_recipe(tmp_path, mix, base, bf16=value)))
        assert cfg.fp16 is True and cfg.bf16 is False


def test_save_strategy_no_is_refused():
    with pytest.raises(ValueError, match="save_strategy"):
        taken(recipe_of("8b_sft", **yaml.safe_load("save_strategy: no")))


def test_keys_of_the_trainer_that_are_absent_or_one(base, tmp_path):
    mix = write_mix(tmp_path / "mix", [20] * 40)
    cfg = load_cfg(str(write_recipe(tmp_path, mix, base, warmup_steps=1, weight_decay=None, save_total_limit=None)))
    args = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0].args
    assert (args.warmup_steps, args.weight_decay, args.save_total_limit) == (2, 0, 4)


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
    recipe = dpo_recipe(tmp_path / "dpo", base, plugins=[], neftune_noise_alpha=5, dpo_padding_free=True)
    PluginManager.get_instance().plugins.clear()
    cfg = load_cfg(str(recipe))
    trainer = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]
    assert trainer.args.neftune_noise_alpha is None
    assert trainer.args.padding_free and not trainer.padding_free


def test_the_prefix_of_fsdp_keys_is_stripped_and_they_act():
    plain, prefixed = ({"fsdp_version": 2, "fsdp_config": {f"{p}offload_params": True}} for p in ("", "fsdp_"))
    plain, prefixed = (taken(recipe_of("8b_sft", deepspeed=None, **keys)) for keys in (plain, prefixed))
    assert plain == prefixed and plain["fsdp_config"]["offload_params"] is True


CPU = {"gpu": "cpu", "nodes": 1, "gpus_per_node": 1}


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    cfg = DictDefault({"hardware": CPU | {"gpus_per_node": 2}})
    HermesPlugin().load_datasets(cfg, preprocess=True)
    with pytest.raises(ValueError, match="for 1 x 2 = 2 processes, this run has 1, and so another global batch"):
        HermesPlugin().load_datasets(cfg)


@pytest.mark.parametrize("launched", [True, False])
@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("gpu", ["cpu", "h100-80gb"])
def test_only_launched_recipes_for_cpus_train_on_cpus(monkeypatch, gpu, cuda, launched):
    """Where a GPU's driver fails, the run must fail too."""
    expected = (gpu, cuda, launched) == ("cpu", False, True)
    monkeypatch.delenv("RANK", raising=False)
    if launched:
        monkeypatch.setenv("RANK", "0")
    cfg = DictDefault({"hardware": CPU | {"gpu": gpu}})
    used = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("hermes3.train.plugin.use_gloo", lambda *args: used.append(args))
    HermesPlugin().register(cfg)
    HermesPlugin().load_datasets(cfg)
    assert cfg.device_map == ({"": "cpu"} if expected else None)
    assert bool(used) == expected


def test_every_row_of_the_page_names_tests_that_exist_and_places_in_the_axolotl_that_is_installed():
    assert f"Axolotl {version('axolotl')} " in PAGE
    rows = re.findall(r"(?m)^\| \d+ \|.*$", PAGE.split("## Mended upstream")[0])
    assert len(rows) >= 30
    for row in rows:
        named, places = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row), re.findall(r"`([\w/]+\.py):(\d+)`", row)
        assert named and places, row
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / f"tests/{file}.py").read_text(encoding="utf-8"), f"{file}::{name}"
        for file, line in places:
            text = (Path(axolotl.__file__).parents[1] / file).read_text(encoding="utf-8")
            assert text.splitlines()[int(line) - 1].strip(), f"{file}:{line}"
