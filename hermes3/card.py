"""The model card of a trained model: what it is made of, how it scores, and how to talk to it.

Scores come from a `report.json` of `hermes3 report`, so card and report never differ.
"""

import json
from pathlib import Path
from typing import Any

from hermes3.chat import prompts
from hermes3.files import sha256, write_text
from hermes3.model_folder import check_model
from hermes3.page.shell import render
from hermes3.recipe.paper import paper_of

TEMPLATE = Path(__file__).with_name("card.md.jinja")
PAPER = "https://arxiv.org/abs/2408.11857"
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city today",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOLD = (  # keys of a recipe that the card tells; all of them are in the recipe, whose sha256 it gives
    *("base_model", "rl", "adapter", "lora_r", "lora_alpha", "num_epochs", "learning_rate", "lr_scheduler"),
    *("warmup_steps", "optimizer", "weight_decay", "sequence_len", "sample_packing", "micro_batch_size"),
    *("gradient_accumulation_steps", "hardware", "seed"),
)
QUESTION = {"role": "user", "content": "What is the weather in Oslo?"}


def write_card(model: Path, report: Path, stage: str, recipe: Path, name: str) -> str:
    """Write `model`/README.md, and return its text. `name` is the Hub's, OWNER/NAME; `stage` is one of the report's.

    ValueError for a folder that is not a whole model, a file that is not a report, and a stage that it does not have.
    """
    from huggingface_hub import ModelCard

    check_model(model)
    facts = collect(_read(report), report, stage, recipe, name)
    facts |= {"card_data": _card_data(facts).to_yaml(), "forms": _forms(model)}
    card = str(ModelCard(render(TEMPLATE, facts, {}, {})))  # parses the metadata: a card that the Hub cannot read fails
    write_text(model / "README.md", card)
    return card


def push(model: Path, name: str) -> str:
    """Upload the folder `model` to the Hub as `name`; its address. Login and token are huggingface_hub's own."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=True, exist_ok=True)  # ours: private, until somebody has looked at it
    return str(
        api.upload_folder(
            repo_id=name, folder_path=model, ignore_patterns=["checkpoint-*", "epochs/*", "*.log", "*.bin", "wandb/*"]
        )
    )


def collect(report: dict[str, Any], path: Path, stage: str, recipe: Path, name: str) -> dict[str, Any]:
    """What the card says, as plain data."""
    import yaml

    if stage not in report["scores"]["stages"]:
        raise ValueError(f"{path}: no stage {stage}; it has {', '.join(report['scores']['stages'])}")
    evaluation = next(one for one in report["evaluations"] if one["stage"] == stage)
    # no score without its interval, and none of what this stage was not asked
    rows = [row for row in report["scores"]["rows"] if (row["scores"].get(stage) or {}).get("low") is not None]
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return {
        "name": name,
        "model_name": name.split("/")[-1],
        "paper": PAPER,
        "stage": stage,
        "recipe": str(recipe),
        "recipe_sha256": sha256(recipe),
        "base": base.base if (base := paper_of(recipe)) else None,
        "settings": {key: settings[key] for key in TOLD if key in settings},
        "mixes": report["mixes"],
        "verdict": report["verdict"],
        "evaluation": evaluation,
        "scores": [
            {"shots": evaluation["tasks"].get(row["task"], {}).get("n_shot")} | row | row["scores"][stage]
            for row in rows
        ],
        "report_sha256": sha256(path),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["scores"]["stages"], report["evaluations"], report["mixes"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a report ({error!r}); give the report.json that `hermes3 report` wrote"
        ) from None
    return report


def _card_data(facts: dict[str, Any]):
    """The metadata that the Hub reads: every score is an evaluation result with its task and metric."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["task"],
            dataset_name=row["task_label"],
            metric_type=row["metric"],
            metric_name=f"{row['metric_label']}, 95 % interval {row['low']:.4f} to {row['high']:.4f}",
            metric_value=round(row["value"], 6),
            metric_args={"num_fewshot": row["shots"], "samples": row["n"]},
        )
        for row in facts["scores"]
    ]
    return ModelCardData(
        model_name=facts["model_name"],
        base_model=facts["base"],
        language="en",
        license="llama3.1",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hermes", "chatml", "function-calling", "json-mode", "axolotl"],
        eval_results=results,
    )


def _forms(model: Path) -> list[dict[str, str]]:
    """Prompts in the forms that the model was trained on, as its own template and tokenizer write them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    cases = [
        ("A question", [QUESTION], None),
        ("Tool use", [QUESTION], [{"type": "function", "function": WEATHER}]),
        ("JSON mode", [{"role": "system", "content": prompts.json_system(CITY)}, QUESTION], None),
    ]
    return [
        {
            "name": name,
            "text": tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True),
        }
        for name, messages, tools in cases
    ]
