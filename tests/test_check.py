"""`hermes3 check`: green on every shipped recipe, red on planted faults, and honest about who reads a key."""

import ast
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from hermes3.recipe import check as checker
from hermes3.recipe import ignored, show
from hermes3.recipe.evidence import lines_that_fill, lines_that_read, on_path
from hermes3.recipe.finding import Finding
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.marks import marks_of
from hermes3.recipe.read import read
from hermes3.recipe.reads import trace, trial_of

ROOT = Path(__file__).parents[1]
SHIPPED = [*sorted((ROOT / "recipes").glob("*.yml")), *sorted((ROOT / "recipes/experiments").glob("*.yml"))]
ZERO3 = "deepspeed_configs/zero3_bf16.json"
SHAREGPT = {"role": "from", "content": "value"}
HERMES = "  - hermes3.train.plugin.HermesPlugin"


@dataclass(frozen=True)
class Fault:
    """A recipe in which `old` is `new`; the finding about `key` must hold every one of `said`, the remedy among them.

    `old`: a regular expression of whole lines' text. `json`: the same of its DeepSpeed file.
    """

    recipe: str
    old: str
    new: str
    key: str
    said: tuple[str, ...]
    json: bool = False


FAULTS = {
    # the paper
    "wrong learning rate": Fault(
        "8b_sft", "learning_rate: 7.0e-6", "learning_rate: 7.0e-5", "learning_rate", ("states 7e-06", "set 7e-06")
    ),
    "another recipe's learning rate": Fault(
        "405b_sft", "learning_rate: 3.5e-6", "learning_rate: 7.0e-6", "learning_rate", ("states 3.5e-06",)
    ),
    "warmup of another length": Fault("8b_dpo", "warmup_steps: 9 ", "warmup_steps: 10 ", "warmup_steps", ("set 9",)),
    "batch of 47": Fault(
        "8b_sft",
        "nodes: 6, gpus_per_node: 8",
        "nodes: 47, gpus_per_node: 1",
        "gradient_accumulation_steps",
        ("1 x 1 x 47 = 47", "the paper's 48", "divide 48"),
    ),
    "batch of 96": Fault(
        "70b_sft",
        "gradient_accumulation_steps: 1",
        "gradient_accumulation_steps: 2",
        "gradient_accumulation_steps",
        ("1 x 2 x 48 = 96", "set gradient_accumulation_steps: 1"),
    ),
    "one node, batch not kept": Fault(
        "8b_sft",
        "nodes: 6, gpus_per_node: 8",
        "nodes: 1, gpus_per_node: 8",
        "gradient_accumulation_steps",
        ("= 8", "set gradient_accumulation_steps: 6"),
    ),
    "the paper's mark on a batch reached otherwise": Fault(
        "8b_sft",
        "nodes: 6,((?:.*\\n)*)gradient_accumulation_steps: 1",
        r"nodes: 1,\1gradient_accumulation_steps: 6",
        "gradient_accumulation_steps",
        ("6 is marked as the paper's, which states 1", '"ours:"'),
    ),
    "the paper's mark on other hardware": Fault(
        "8b_sft", "nodes: 6", "nodes: 3", "hardware", ("24 h100-80gb is marked as the paper's", "48 GPUs")
    ),
    "unmarked key": Fault(
        "8b_sft", "max_grad_norm: 1.0  # .*", "max_grad_norm: 1.0", "max_grad_norm", ("no mark", '"ours:"')
    ),
    "unmarked leaf": Fault(
        "8b_sft", "use_reentrant: true  # .*", "use_reentrant: true", "gradient_checkpointing_kwargs.*", ("no mark",)
    ),
    "the paper's mark on what it does not state": Fault(
        "8b_sft", "max_grad_norm: 1.0  # ours", "max_grad_norm: 1.0  # paper, SFT", "max_grad_norm", ("mark it", "ours")
    ),
    "our mark on what the paper states": Fault(
        "8b_sft",
        "weight_decay: 0.01  # paper, SFT",
        "weight_decay: 0.01  # ours: low",
        "weight_decay",
        ('mark it "pa',),
    ),
    "different without a reason": Fault(
        "8b_sft", "num_epochs: 4  # .*", "num_epochs: 3  # ours", "num_epochs", ("without a reason", "set 4")
    ),
    "a stated key left out": Fault("8b_sft", "weight_decay: .*\n", "", "weight_decay", ("missing", "0.01", "set it")),
    "a step count over the epochs, as the paper's": Fault(
        "8b_sft",
        "\nnum_epochs",
        "\nmax_steps: 100  # paper, SFT\nnum_epochs",
        "max_steps",
        ("which states num_epochs: 4", "leave it out"),
    ),
    "a step count without a reason": Fault(
        "8b_sft", "\nnum_epochs", "\nmax_steps: 100  # ours\nnum_epochs", "max_steps", ("without a reason",)
    ),
    "a cosine that ends elsewhere": Fault(
        "8b_sft",
        "\nlr_scheduler",
        "\ncosine_min_lr_ratio: 0.1  # paper, SFT\nlr_scheduler",
        "cosine_min_lr_ratio",
        ("which states lr_scheduler: cosine", "leave it out"),
    ),
    "an adapter as the paper's": Fault(
        "8b_sft_lora",
        "adapter: lora  # experiment: .*",
        "adapter: lora  # paper, DPO",
        "adapter",
        ("lora is marked as the paper's, which states none", "leave it out"),
    ),
    "another size's base": Fault(
        "8b_sft",
        "base_model: outputs/8b/base",
        "base_model: outputs/70b/base",
        "base_model",
        ("is a 70B", "the paper's 8B", "set a model of 8B"),
    ),
    # data
    "long rows dropped": Fault(
        "8b_sft", "excess_length_strategy: .*\n", "", "excess_length_strategy", ("would be dropped", "raise")
    ),
    "FSDP under a preference adapter": Fault(
        "8b_dpo",
        "deepspeed: deepspeed_configs/zero3_bf16.json  # .*",
        "fsdp_version: 2  # ours: no\nfsdp_config:  # ours: no\n  reshard_after_forward: true",
        "fsdp_config",
        ("does not find again", "zero3_bf16.json"),
    ),
    # names
    "typo": Fault(
        "8b_sft", "\nsequence_len:", "\nsequence_lenght:", "sequence_lenght", ("unknown", "did you mean sequence_len?")
    ),
    "typo in datasets": Fault(
        "8b_sft", "    type:  #", "    weight: 2  # ours\n    type:  #", "datasets.weight", ("unknown", "leave it out")
    ),
    "a datasets key that Axolotl drops under dpo": Fault(
        "8b_dpo", "    split: train", "    ds_type: parquet\n    split: train", "datasets.ds_type", ("unknown key",)
    ),
    "typo in fsdp_config": Fault(
        "8b_sft_fsdp",
        "reshard_after_forward",
        "reshard_after_foward",
        "fsdp_config.reshard_after_foward",
        ("unknown key", "did you mean reshard_after_forward?"),
    ),
    "typo in hardware": Fault("8b_sft", "gpus_per_node: 8", "gpu_per_node: 8", "hardware.*", ("gpus_per_node",)),
    "no hardware": Fault("8b_sft", "hardware: .*\n", "", "hardware", ("missing", "add e.g. hardware:")),
    "unknown GPU": Fault(
        "8b_sft", "gpu: h100-80gb", "gpu: h100-sxm", "hardware.gpu", ("h100-sxm is unknown", "use one of h100-80gb")
    ),
    "typo in the DeepSpeed file": Fault(
        "8b_sft",
        '"overlap_comm"',
        '"overlap_com"',
        "deepspeed",
        ("zero_optimization.overlap_com", "did you mean zero_optimization.overlap_comm?"),
        json=True,
    ),
    "typo at the top of the DeepSpeed file": Fault(
        "8b_sft",
        '"gradient_clipping"',
        '"gradient_cliping"',
        "deepspeed",
        ("did you mean gradient_clipping?",),
        json=True,
    ),
    "an auto that nothing fills": Fault(
        "8b_sft",
        '"sub_group_size": 1e9',
        '"sub_group_size": "auto"',
        "deepspeed",
        ("sub_group_size", "value"),
        json=True,
    ),
    "optimizer": Fault("8b_sft", "adamw_torch_fused", "adamw_torch_fussed", "optimizer", ("mean adamw_torch_fused?",)),
    "schedule": Fault("8b_sft", "lr_scheduler: cosine", "lr_scheduler: cosinee", "lr_scheduler", ("mean cosine?",)),
    "plugin typo": Fault(
        "8b_sft", "train.plugin.Hermes", "train.plugins.Hermes", "plugins", ("cannot be imported", "mend its name")
    ),
    "plugin class typo": Fault(
        "8b_sft", "plugin.HermesPlugin", "plugin.HermesPlugn", "plugins", ("no attribute 'HermesPlugn'", "mend its")
    ),
    "GPU plugin class typo": Fault(
        "8b_sft", "LigerPlugin", "LigerPlugn", "plugins", ("liger.LigerPlugn cannot be imported", "mend its name")
    ),
    "a plugin's key without the plugin": Fault(
        "8b_dpo", "\nrl: dpo", "\nliger_rms_norm: true  # ours\nrl: dpo", "liger_rms_norm", ("unknown key",)
    ),
    "deprecated flag": Fault(
        "8b_sft",
        "attn_implementation: flash_attention_2",
        "flash_attention: true",
        "flash_attention",
        ("deprecated", "Use `attn_implementation: flash_attention_2` instead"),
    ),
    "deprecated prefix": Fault(
        "8b_sft_fsdp",
        "  state_dict_type",
        "  fsdp_state_dict_type",
        "fsdp_config.fsdp_state_dict_type",
        ("state_dict",),
    ),
    "deprecated value": Fault(
        "8b_sft",
        "gradient_checkpointing: true",
        "gradient_checkpointing: offload",
        "gradient_checkpointing",
        ("deprecated", "activation_offloading"),
    ),
    "a number as text": Fault(
        "8b_sft", "learning_rate: 7.0e-6", "learning_rate: 7e-6", "learning_rate", ("as text", "write 7.0e-6")
    ),
    # Axolotl's own refusals, for the hardware that is declared
    "no number at all": Fault("8b_sft", "num_epochs: 4", "num_epochs: four", "num_epochs", ("Axolotl refuses it",)),
    "a value of no form that is taken": Fault(
        "8b_sft", "bf16: true", "bf16: full", "bf16", ("refuses", "'auto'", " / ")
    ),
    "packing under dpo": Fault("8b_dpo", "\nrl: dpo", "\nsample_packing: true  # ours\nrl: dpo", ".*", ("refuses",)),
    "bf16 on a CPU": Fault("tiny_sft", "bf16: false", "bf16: true", "bf16", ("cpu", "set bf16: false")),
    "flash-attention on a CPU": Fault(
        "tiny_sft", "implementation: sdpa", "implementation: flash_attention_2", "attn_implementation", ("set", "sdpa")
    ),
    "Liger on a CPU": Fault(
        "tiny_sft", HERMES, f"  - axolotl.integrations.liger.LigerPlugin\n{HERMES}", "plugins", ("needs a GPU", "out")
    ),
    "precision by the machine": Fault("tiny_sft", "bf16: false", "bf16: auto", "bf16", ("trains in fp16", "set bf16:")),
    "fp16": Fault("8b_sft", "\nbf16: true", "\nfp16: true  # ours: x\nbf16: true", "fp16", ("overflows", "leave fp16")),
    # set, accepted and never read
    "neftune under dpo without the plugin": Fault(
        "8b_dpo", f"plugins:\n{HERMES}.*\n", "", "neftune_noise_alpha", ("never read", "causal.py", "leave it out")
    ),
    "max_prompt_len": Fault(
        "8b_dpo",
        "\nrl: dpo",
        "\nmax_prompt_len: 2048  # ours: x\nrl: dpo",
        "max_prompt_len",
        ("never read", "leave it"),
    ),
    "lr_div_factor": Fault(
        "8b_sft", "\nlr_scheduler", "\nlr_div_factor: 10.0  # ours: x\nlr_scheduler", "lr_div_factor", ("never read",)
    ),
    "an SFT key under dpo": Fault(
        "8b_dpo",
        "\nsequence_len",
        "\nsample_packing_bin_size: 9  # ours: x\nsequence_len",
        "sample_packing_bin_size",
        ("never read under rl: dpo",),
    ),
    "a template's key on tokenised rows": Fault(
        "8b_sft",
        "    type:  #",
        "    train_on_eos: all  # ours: x\n    type:  #",
        "datasets.train_on_eos",
        ("never read",),
    ),
    # what stops the trial, and would stop a run
    "typo in a mapping that is handed on whole": Fault(
        "8b_sft", "  use_reentrant: true", "  use_reentrnt: true", "the trial", ("stopped", "use_reentrnt", "change")
    ),
    "a split that a mix has not": Fault(
        "8b_dpo", "    split: train", "    split: validation", "the trial", ("stopped", "validation", "change")
    ),
    # what trains wrongly
    "no seed": Fault("8b_sft", "seed: 42.*\n", "", "seed", ("missing", "shuffled differently", "add seed: 42")),
    "no attention": Fault("8b_sft", "attn_implementation: .*\n", "", "attn_implementation", ("missing", "add attn")),
    "no number of workers": Fault(
        "8b_sft", "dataloader_num_workers: .*\n", "", "dataloader_num_workers", ("add data",)
    ),
    "leaking attention": Fault(
        "8b_sft",
        "implementation: flash_attention_2",
        "implementation: xformers",
        "attn_implementation",
        ("apart", "use one of flash_attention_2"),
    ),
    "no plugin": Fault("8b_sft", f"{HERMES}.*\n", "", "plugins", ("HermesPlugin is missing", "add - hermes3")),
    "FSDP2 without our plugin": Fault("8b_sft_fsdp", f"{HERMES}.*\n", "", "fsdp_config", ("Adam's moments", "add")),
    "FSDP beside DeepSpeed": Fault(
        "8b_sft_fsdp", "fsdp_version: 2", f"deepspeed: {ZERO3}  # ours: x\nfsdp_version: 2", "deepspeed", ("keep one",)
    ),
    "FSDP1": Fault("8b_sft_fsdp", "fsdp_version: 2\n", "", "fsdp_version", ("deprecated FSDP1", "set fsdp_version: 2")),
    "lm_eval in training": Fault(
        "8b_sft",
        HERMES,
        f"  - axolotl.integrations.lm_eval.LMEvalPlugin  # ours\n{HERMES}",
        "plugins",
        ("on every rank", "leave it out"),
    ),
    "remote code": Fault(
        "8b_sft",
        "trust_remote_code: false",
        "trust_remote_code: true",
        "trust_remote_code",
        ("set trust_remote_code: f",),
    ),
    "one step of warmup": Fault(
        "8b_dpo", "warmup_steps: 9 ", "warmup_steps: 1 ", "warmup_steps", ("makes it 2", "set")
    ),
    "no steps' checkpoints": Fault(
        "8b_sft", "save_strategy: epoch", 'save_strategy: "no"', "save_strategy", ("best epoch", "save_strategy: epoch")
    ),
    "checkpoints by steps": Fault(
        "8b_sft",
        "save_strategy: epoch  # paper",
        "save_steps: 500  # ours",
        "save_strategy",
        ("save_steps: 500", "epoch"),
    ),
    "too few checkpoints": Fault(
        "8b_sft", "save_total_limit: 8", "save_total_limit: 3", "save_total_limit", ("5 checkpoints", "5 or more")
    ),
    "Axolotl's number of checkpoints": Fault(
        "8b_sft", "save_total_limit: 8.*\n", "", "save_total_limit", ("4 by default", "set save_total_limit: 5")
    ),
    "pickled weights": Fault(
        "8b_sft",
        "save_strategy",
        "save_safetensors: false  # ours: x\nsave_strategy",
        "save_safetensors",
        ("leave it",),
    ),
    "short timeout": Fault(
        "405b_sft", "ddp_timeout: 7200", "ddp_timeout: 1800", "ddp_timeout", ("set ddp_timeout: 7200",)
    ),
    "ZeRO-2": Fault("8b_sft", '"stage": 3', '"stage": 2', "deepspeed", ("whole copy", "set stage: 3"), json=True),
    "DeepSpeed in fp32": Fault(
        "8b_sft", '"enabled": true', '"enabled": false', "deepspeed", ("bf16 is off",), json=True
    ),
    "405B gathered": Fault(
        "405b_sft", "zero3_bf16_cpuoffload.json", "zero3_bf16.json", "deepspeed", ("812 GB", "gather_16bit", "false")
    ),
    "DeepSpeed in bf16 on a recipe in fp32": Fault(
        "8b_sft", "bf16: true  #", "bf16: false  #", "deepspeed", ("bf16 is on", "has bf16: false", "set")
    ),
    "DeepSpeed in fp16": Fault(
        "8b_sft", '"bf16": {', '"fp16": {"enabled": true}, "bf16": {', "deepspeed", ("fp16 is on", "set"), json=True
    ),
    "DeepSpeed file that is no JSON": Fault(
        "8b_sft", '"bf16": {', '"bf16": {,', "deepspeed", ("is not JSON", "mend it"), json=True
    ),
    "DeepSpeed's value of a wrong form": Fault(
        "8b_sft", '"stage": 3', '"stage": "three"', "deepspeed", ("zero_optimization.stage: Input",), json=True
    ),
    "DeepSpeed's own accumulation": Fault(
        "8b_sft",
        '"gradient_accumulation_steps": "auto"',
        '"gradient_accumulation_steps": 4',
        "deepspeed",
        ("gradient_accumulation_steps is 4", "recipe has gradient_accumulation_steps: 1", '"auto"'),
        json=True,
    ),
    "DeepSpeed's own batch": Fault(
        "8b_sft", '"train_batch_size": "auto"', '"train_batch_size": 48', "deepspeed", ("is fixed", "set"), json=True
    ),
    "DeepSpeed's own optimizer": Fault(
        "8b_sft", '"bf16": {', '"optimizer": {}, "bf16": {', "deepspeed", ("its optimizer", "leave it out"), json=True
    ),
    "DeepSpeed in the recipe": Fault(
        "8b_sft",
        "deepspeed: deepspeed_configs/zero3_bf16.json",
        "deepspeed: {zero_optimization: {stage: 2}, bf16: {enabled: true}}",
        "deepspeed",
        ("the mapping", "set stage: 3"),
    ),
    "a DeepSpeed part that is no mapping": Fault(
        "8b_sft", '"bf16": {\n    "enabled": true\n  }', '"bf16": true', "deepspeed", ("no JSON object",), json=True
    ),
    "405B gathered by FSDP": Fault(
        "405b_sft_fsdp",
        "  state_dict_type: SHARDED",
        "  state_dict_type: FULL",
        "fsdp_config.state_dict_type",
        ("1.6 TB", "set state_dict_type: SHARDED_STATE_DICT"),
    ),
    "405B gathered by FSDP at the end": Fault(
        "405b_sft_fsdp",
        "final_state_dict_type: SHARDED",
        "final_state_dict_type: FULL",
        "fsdp_config.final_state_dict_type",
        ("1.6 TB", "set final_state_dict_type: SHARDED_STATE_DICT"),
    ),
    "a layer that the model has not": Fault(
        "8b_sft_fsdp",
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "fsdp_config.transformer_layer_cls_to_wrap",
        ("unknown", "did you mean LlamaDecoderLayer?"),
    ),
    # files
    "no model": Fault("8b_sft", "base_model: .*\n", "", "base_model", ("missing", "name the folder")),
    "no DeepSpeed file": Fault(
        "8b_sft", "zero3_bf16.json", "zero4.json", "deepspeed", ("no file", f"there are.*{ZERO3}")
    ),
    "no template": Fault(
        "8b_sft",
        "\nval_set_size",
        "\nchat_template_jinja: none.jinja  # ours: x\nval_set_size",
        "chat_template_jinja",
        ("no file none.jinja",),
    ),
    "data prepared elsewhere": Fault(
        "8b_sft",
        "dataset_prepared_path: mixes/hermes3_sft/prepared",
        "dataset_prepared_path: last_run_prepared",
        "dataset_prepared_path",
        ("must be mixes/hermes3_sft/prepared", "set that"),
    ),
    "DPO on a model that cannot chat": Fault(
        "8b_dpo",
        "base_model: outputs/8b/sft/best ",
        "base_model: outputs/8b/base ",
        "base_model",
        ("has not learnt to chat", "set outputs/8b/sft/best, .* `hermes3 select` chose"),
    ),
    "two recipes write to one folder": Fault(
        "8b_sft_seed_43",
        "output_dir: outputs/8b/sft_seed_43",
        "output_dir: outputs/8b/sft",
        "output_dir",
        ("recipes/8b_sft.yml writes too", "a folder of its own"),
    ),
    "DPO on an adapter": Fault(
        "8b_dpo_seed_43",
        "base_model: outputs/8b/sft/best ",
        "base_model: outputs/8b/dpo ",
        "base_model",
        ("adapter", "axolotl merge-lora .*8b_dpo.yml", "set outputs/8b/dpo/merged"),
    ),
    "DPO on the best epoch of an adapter": Fault(
        "8b_dpo_seed_43",
        "base_model: outputs/8b/sft/best ",
        "base_model: outputs/8b/dpo/best ",
        "base_model",
        ("adapter", "set outputs/8b/dpo/merged"),
    ),
    "DPO on a model with an adapter inside": Fault(
        "8b_dpo",
        "base_model: outputs/8b/sft/best ",
        "base_model: {unmerged} ",
        "base_model",
        ("lora_A", "merge-lora", "merged/"),
    ),
    "one name for a list": Fault("8b_dpo", "plugins:\\n  - ", "plugins: ", "plugins", ("not a list", "begin each")),
    "a key given twice": Fault(
        "8b_sft",
        "\nweight_decay",
        "\nlearning_rate: 7.0e-5  # ours: x\nweight_decay",
        "learning_rate",
        ("twice, on lines 38 and 41", "keep one"),
    ),
    "a key given twice in datasets": Fault(
        "8b_sft", "    type:  #", "    type: completion\n    type:  #", "type", ("given twice", "keep one")
    ),
    "no YAML": Fault("8b_sft", "\nseed: 42", "\nseed: [42", "file", ("not YAML", "mend it")),
}


def plant(fault: Fault, folder: Path, unmerged: Path) -> Path:
    """Write the faulty recipe, comments and all, under its own name."""
    source = next(path for path in SHIPPED if path.stem == fault.recipe)
    text = source.read_text(encoding="utf-8")
    if fault.json:
        config = re.search(r"^deepspeed: (\S+)", text, re.MULTILINE)[1]
        mine = folder / "zero.json"
        mine.write_text(changed(Path(config).read_text(encoding="utf-8"), fault), encoding="utf-8")
        text = text.replace(config, str(mine))
    else:
        text = changed(text, fault).replace("{unmerged}", str(unmerged))
    out = folder / source.name
    out.write_text(text, encoding="utf-8")
    return out


def changed(text: str, fault: Fault) -> str:
    new = re.sub(fault.old, fault.new, text, count=1)
    assert new != text, f"{fault.old} is not in the file"
    return new


@pytest.fixture(scope="module")
def made() -> Iterator[set[tuple[str, int]]]:
    """File and line of every place in the source that has made a finding."""
    places, init = set(), Finding.__init__

    def noted(self, *args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith("/finding.py"):
            frame = frame.f_back
        places.add((frame.f_code.co_filename, frame.f_lineno))
        init(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finding, "__init__", noted)
        yield places


@pytest.fixture(scope="module")
def reports(made, tmp_path_factory) -> dict[str | Path, checker.Report]:
    """All shipped recipes and all faults, by path and by fault; tried for a step where it is who reads that matters."""
    import torch
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("faults")
    unmerged = root / "unmerged"
    unmerged.mkdir()
    save_file({"q_proj.lora_A.default.weight": torch.zeros(1)}, unmerged / "model.safetensors")
    (unmerged / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        planted = {}
        for number, (name, fault) in enumerate(FAULTS.items()):
            folder = root / str(number)
            folder.mkdir()
            planted[name] = plant(fault, folder, unmerged)
        tried = [name for name, fault in FAULTS.items() if re.match("(set, and )?never read|stopped", fault.said[0])]
        found = checker.check_all([*SHIPPED, *(planted[name] for name in tried)])
        static = {name: checker.inspect(path)[0] for name, path in planted.items() if name not in tried}
    return dict(zip([*SHIPPED, *tried], found, strict=True)) | static


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_right(reports, path):
    report = reports[path]
    assert [str(finding) for finding in report.errors] == []
    assert "the trial" not in {finding.key for finding in report.findings}  # it came to its end
    assert [row.key for row in report.rows if row.key != "global batch"][: len(read(path))] == list(read(path))
    assert {reader.key for reader in report.readers} >= set(read(path))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_key_and_remedy(reports, name):
    fault, report = FAULTS[name], reports[name]
    texts = [str(finding) for finding in report.errors if re.fullmatch(fault.key, finding.key)]
    assert any(all(re.search(said, text) for said in map(plain, fault.said)) for text in texts), report.errors


def plain(said: str) -> str:
    """A regular expression where it says `.*`, else text."""
    return ".*".join(re.escape(part) for part in said.split(".*"))


def test_every_kind_of_fault_is_planted(reports, made):
    """Each place in the source that makes an error has made one for a fault or a shipped recipe."""
    missing = []
    for file in sorted((ROOT / "hermes3/recipe").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "from_error"):
                lines = range(node.lineno, node.end_lineno + 1)
                if file.name != "finding.py" and not any((str(file), line) in made for line in lines):
                    missing.append(f"{file.name}:{node.lineno}")
    assert missing == []


def test_a_fault_is_the_only_error(reports):
    """A change of one line makes one error, where it is no more than that."""
    for name in ("wrong learning rate", "a key given twice", "typo in datasets", "no seed", "max_prompt_len", "ZeRO-2"):
        assert len(reports[name].errors) == 1, name


def test_fewer_gpus_at_the_papers_batch_are_no_error(tmp_path):
    text = (ROOT / "recipes/8b_sft.yml").read_text(encoding="utf-8").replace("nodes: 6", "nodes: 1")
    path = tmp_path / "8b_sft.yml"
    text = re.sub("(gpus_per_node: 8}  # )paper", r"\1ours", text)
    steps = "gradient_accumulation_steps: "
    text = re.sub(f"{steps}1  # paper, SFT", f"{steps}6  # ours: 8 x 6 = 48", text)
    path.write_text(text, encoding="utf-8")
    report = checker.check(path)
    assert report.errors == []
    status = {row.key: row.status for row in report.rows}
    assert (status["hardware"], status["global batch"]) == ("different", "same")


def test_a_recipe_of_ones_own_needs_no_marks(tmp_path):
    lines = (ROOT / "recipes/8b_sft.yml").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "mine.yml"
    text = "\n".join(line.partition("  #")[0] for line in lines if not line.startswith("#"))
    path.write_text(text.replace("output_dir: outputs/8b/sft", "output_dir: outputs/mine"), encoding="utf-8")
    report = checker.check(path)
    assert (report.errors, report.rows) == ([], [])


def source_line(where: str) -> str:
    """`axolotl/train.py:3` -> that line of what is installed."""
    module, _, number = where.rpartition(":")
    package, _, rest = module.partition("/")
    root = ROOT / package if package == "hermes3" else Path(find_spec(package).submodule_search_locations[0])
    return (root / rest).read_text(encoding="utf-8").splitlines()[int(number) - 1]


def test_the_evidence_from_the_source_is_there(reports):
    looked_up = {(reader.key, reader.line) for path in SHIPPED for reader in reports[path].readers if not reader.seen}
    assert {key for key, _ in looked_up} >= {"liger_rope", "fsdp_config.offload_params"}
    for key, line in looked_up:
        assert key.rpartition(".")[2] in source_line(line)


def test_only_what_a_cpu_cannot_do_is_looked_up(reports):
    looked_up = {reader.key for path in SHIPPED for reader in reports[path].readers if not reader.seen}
    assert {key for key in looked_up if not key.startswith(("liger_", "fsdp_"))} == {
        "deepspeed",
        "dataloader_prefetch_factor",
    }


def test_the_trial_sees_who_reads(reports):
    readers = {reader.key: reader for reader in reports[ROOT / "recipes/8b_dpo.yml"].readers}
    assert readers["rl_beta"].line.startswith("axolotl/core/builders/rl.py:")
    assert "rl_beta" in source_line(readers["rl_beta"].line)
    assert readers["neftune_noise_alpha"].line.startswith("hermes3/train/plugin.py:")
    assert "neftune_noise_alpha" in source_line(readers["neftune_noise_alpha"].line)


def test_the_trial_trains_and_saves_and_leaves_this_process_alone():
    from axolotl.utils.dict import DictDefault

    before = DictDefault.__getitem__, DictDefault.get
    result = trace(read(ROOT / "recipes/8b_sft.yml"))
    assert result.stopped is None
    assert any(line.startswith("axolotl/train.py:") for line in result.readers["output_dir"])  # the last save
    assert (DictDefault.__getitem__, DictDefault.get) == before


def test_siblings_share_a_trial_and_a_trial_leaves_the_recipe_alone():
    recipe = read(ROOT / "recipes/8b_sft.yml")
    as_read = json.dumps(recipe)
    trial, off = trial_of(recipe)
    assert json.dumps(recipe) == as_read
    assert {"deepspeed", "bf16", "liger_rope"} <= off
    assert "deepspeed" not in trial and trial["learning_rate"] == recipe["learning_rate"]
    assert trace(recipe).readers is trace(read(ROOT / "recipes/70b_sft.yml")).readers


def test_a_trial_that_stops_says_where_and_condemns_no_other_key():
    recipe = read(ROOT / "recipes/tiny_sft.yml") | {"optimizer": "no_such_optimizer"}
    result = trace(recipe)
    assert "no_such_optimizer" in result.stopped
    found = list(ignored.findings(recipe, result))
    assert [finding.key for finding in found if finding.level == "error"] == ["the trial"]


def test_what_only_the_trial_lacks_is_a_note():
    recipe = read(ROOT / "recipes/tiny_sft.yml")
    recipe["datasets"] = [recipe["datasets"][0] | {"type": "alpaca"}]
    found = list(ignored.findings(recipe, trace(recipe)))
    assert [(finding.level, "type alpaca" in finding.wrong) for finding in found if finding.key == "the trial"] == [
        ("note", True)
    ]
    assert {finding.level for finding in found} == {"note"}


def test_a_trial_that_stops_knows_the_plugin_s_keys():
    recipe = read(ROOT / "recipes/tiny_sft.yml")
    recipe["datasets"] = [recipe["datasets"][0] | {"type": "alpaca"}]
    lines = {reader.key: reader.line for reader in ignored.readers(recipe, trace(recipe))}
    assert lines["restart_steps"].startswith("hermes3/train/plugin.py:")
    assert "restart_steps" in source_line(lines["restart_steps"])


def test_files_of_another_kind_can_be_named():
    recipe = read(ROOT / "recipes/tiny_sft.yml")
    recipe["datasets"] = [recipe["datasets"][0] | {"ds_type": "json", "data_files": ["a.jsonl"], "revision": "1"}]
    result = trace(recipe)
    assert result.stopped is None
    assert list(ignored.findings(recipe, result)) == []


def test_what_overrides_a_stated_value_is_different(tmp_path):
    path = tmp_path / "8b_sft.yml"
    text = (ROOT / "recipes/8b_sft.yml").read_text(encoding="utf-8")
    path.write_text(text.replace("\nnum_epochs", "\nmax_steps: 100  # experiment: short\nnum_epochs"), encoding="utf-8")
    report = checker.inspect(path)[0]
    assert report.errors == []
    assert {row.key: row.status for row in report.rows}["max_steps"] == "different"


@pytest.mark.parametrize(
    ("base", "said"), [("meta-llama/Llama-3.2-3B", "is a Hub id"), ("outputs/mine", "is not built yet")]
)
def test_a_hub_id_is_not_a_folder_to_be_built(tmp_path, base, said):
    path = tmp_path / "mine.yml"
    text = (ROOT / "recipes/8b_sft.yml").read_text(encoding="utf-8")
    path.write_text(text.replace("outputs/8b/base\n", f"{base}\n"), encoding="utf-8")
    report = checker.inspect(path)[0]
    assert [said in finding.wrong for finding in report.findings if finding.key == "base_model"] == [True]


def test_a_file_that_is_not_there_is_not_judged(tmp_path):
    report = checker.inspect(tmp_path / "nosuch.yml")[0]
    assert [str(finding) for finding in report.errors] == ["file: no such file; check the path"]
    assert show.line(report).endswith("1 error: not looked at further")


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_its_screen(width):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    report = checker.inspect(ROOT / "recipes/8b_sft.yml")[0]
    console.print(show.conformance(report, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 3 * len(report.rows)  # a column of reasons would take eight lines for each
    assert any("fused is ours" in line for line in lines)
    assert max(map(len, lines)) <= width


def test_a_note_names_its_recipes(reports):
    found = show.notes([reports[path] for path in SHIPPED if path.stem.startswith("405b_sft")])
    assert [text.partition(": base_model: ")[0] for text in found] == [
        f"note {ROOT / 'recipes/405b_sft.yml'} (and 1 more)"
    ]


def test_elsewhere_than_at_the_root_there_is_nothing_to_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run from the root of the repository"):
        checker.default_recipes()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("tiny_sft", {"type": "chat_template", "field_messages": "talk", "message_property_mappings": SHAREGPT}),
        ("tiny_sft", {"type": "completion", "field": "body"}),
        ("tiny_dpo", {"type": "chat_template.default", "field_chosen": "good", "field_rejected": "bad"}),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else value,
)
def test_rows_of_other_shapes_can_be_tried(name, entry):
    recipe = read(ROOT / f"recipes/{name}.yml")
    recipe["datasets"] = [recipe["datasets"][0] | entry]
    result = trace(recipe)
    assert result.stopped is None
    assert {f"datasets.{key}" for key in entry} <= set(result.readers)


def test_evidence_is_of_the_path_taken():
    lines = lines_that_read("neftune_noise_alpha")
    assert any("builders/causal.py" in line for line in lines)
    assert on_path(lines, {"rl": "dpo"}, []) == []
    assert on_path(lines, {}, []) == lines
    liger = lines_that_read("liger_rope")
    assert on_path(liger, {}, []) == [] and on_path(liger, {}, ["axolotl.integrations.liger.LigerPlugin"]) == liger


def test_an_assignment_or_a_comment_is_no_evidence(monkeypatch):
    from hermes3.recipe import evidence

    code = ["cfg.key = 1", "# if cfg.key:", "if cfg.key == 1:", 'cfg.get("key")', "cfg.key_two"]
    monkeypatch.setattr(evidence, "sources", lambda package: [("axolotl/x.py", code)])
    assert lines_that_read("key") == ["axolotl/x.py:3", "axolotl/x.py:4"]


def test_what_transformers_fills_in_a_deepspeed_file_is_known():
    assert lines_that_fill("zero_optimization.reduce_bucket_size")
    assert not lines_that_fill("zero_optimization.sub_group_size")


def test_marks_are_read_from_behind_above_and_before(tmp_path):
    path = tmp_path / "x.yml"
    path.write_text(
        "# paper, SFT: above\na: 1\nb: 2  # ours: lent, as the next two\nc: 3\nd: 4\ne: 5\n"
        "f:\n  - g: 6  # experiment: leaf\n    h: '#7'\nplugins:\n  - p.Q  # CPU: item\n"
    )
    marks = {key: (mark.whose, mark.reason) for key, mark in marks_of(path).items()}
    assert marks["a"] == ("paper", "SFT: above")
    assert marks["b"][0] == marks["c"][0] == marks["d"][0] == "ours" and marks["d"][1] == "lent"
    assert marks["e"] == (None, "")
    assert marks["f.g"] == ("experiment", "leaf") and marks["f.h"][0] == "experiment"
    assert marks["plugins.0"] == ("CPU", "item")


def test_a100_has_no_fp8():
    from hermes3.recipe.schema import _capabilities

    recipe = read(ROOT / "recipes/8b_sft.yml")
    hopper, _ = _capabilities(hardware_of(Path("x.yml"), recipe))
    recipe["hardware"]["gpu"] = "a100-80gb"
    ampere, _ = _capabilities(hardware_of(Path("x.yml"), recipe))
    assert (hopper["fp8"], hopper["compute_capability"]) == (True, "sm_90")
    assert (ampere["fp8"], ampere["bf16"], ampere["compute_capability"]) == (False, True, "sm_80")


def test_the_command_reports_and_fails(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from hermes3.cli import app

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back
    good, bad = ROOT / "recipes/8b_sft.yml", tmp_path / "8b_sft.yml"
    bad.write_text(good.read_text(encoding="utf-8").replace("7.0e-6  #", "8.0e-6  #"), encoding="utf-8")
    ran = CliRunner().invoke(app, ["check", str(good), str(bad)])
    assert ran.exit_code == 1
    assert f"ok   {good}: 17 as in the paper" in ran.stdout and f"BAD  {bad}: 1 error: 16 as" in ran.stdout
    assert "learning_rate: 8e-06 is marked as the paper's, which states 7e-06; set 7e-06" in ran.stderr
    ran = CliRunner().invoke(app, ["check", str(good), "--json"])
    assert ran.exit_code == 0
    [report] = json.loads(ran.stdout)
    assert report["ok"] and {row["key"]: row["status"] for row in report["conformance"]}["learning_rate"] == "same"
    assert all(read["line"] for read in report["reads"])
    ran = CliRunner().invoke(app, ["check", str(good), "--reads"])
    assert "axolotl/core/builders/base.py" in ran.stdout
