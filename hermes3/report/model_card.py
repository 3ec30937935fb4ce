"""The model card of a trained model: what it is made of, how it scores, and how to talk to it.

Scores come from a `report.json` of `hermes3 report`, so card and report never differ.
"""

import json
from pathlib import Path
from typing import Any

from hermes3.chat import prompts
from hermes3.files import UserError, read_yaml, sha256, write_text
from hermes3.model_folder import check_model
from hermes3.page.shell import render
from hermes3.recipe.paper import paper_of
from hermes3.report import names

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
QUESTION, WEATHER = names("question"), names("weather")


def write_card(model: Path, report: Path, stage: str, recipe: Path, name: str) -> str:
    """Write `model`/README.md, and return its text. `name` is the Hub's, OWNER/NAME; `stage` is one of the report's.

    `UserError` for a folder that is not a whole model, a file that is not a report, and a stage that it does not have.
    """
    from huggingface_hub import ModelCard

    check_model(model)
    try:
        facts = json.loads(report.read_text(encoding="utf-8"))
        stages, rows, evaluations = facts["scores"]["stages"], facts["scores"]["rows"], facts["evaluations"]
        facts = {"mixes": facts["mixes"], "verdict": facts["verdict"]}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{report}: not a report ({error!r}); give the report.json of `hermes3 report`") from None
    if stage not in stages:
        raise UserError(f"{report}: no stage {stage}; it has {', '.join(stages)}")
    evaluation = next(one for one in evaluations if one["stage"] == stage)
    # no score without its interval, and none of what this stage was not asked
    rows = [row for row in rows if (row["scores"].get(stage) or {}).get("low") is not None]
    shots = {task: of.get("n_shot") for task, of in evaluation["tasks"].items()}
    settings = read_yaml(recipe)
    facts |= {"name": name, "model_name": name.split("/")[-1], "stage": stage, "evaluation": evaluation}
    facts |= {"recipe": str(recipe), "recipe_sha256": sha256(recipe), "report_sha256": sha256(report)}
    facts["settings"] = {key: settings[key] for key in names("settings") if key in settings}
    facts["scores"] = [{"shots": shots.get(row["task"])} | row | row["scores"][stage] for row in rows]
    paper = paper_of(recipe)
    facts |= {"forms": _forms(model), "card_data": _card_data(facts, paper and paper.base).to_yaml()}
    card = str(ModelCard(render(TEMPLATE, facts, {}, {})))  # parses the metadata: a card that the Hub cannot read fails
    write_text(model / "README.md", card)
    return card


def push(model: Path, name: str) -> str:
    """Upload the folder `model` to the Hub as `name`; its address. Login and token are huggingface_hub's own."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=True, exist_ok=True)  # ours: private, until somebody has looked at it
    ignored = ["checkpoint-*", "epochs/*", "*.log", "*.bin", "wandb/*"]
    return str(api.upload_folder(repo_id=name, folder_path=model, ignore_patterns=ignored))


def _card_data(facts: dict[str, Any], base: str | None):
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
    return ModelCardData(model_name=facts["model_name"], base_model=base, eval_results=results, **names("metadata"))


def _forms(model: Path) -> dict[str, str]:
    """Prompts in the forms that the model was trained on, as its own template and tokenizer write them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    options = {"tokenize": False, "add_generation_prompt": True}
    asked_for_json = [{"role": "system", "content": prompts.json_system(WEATHER["parameters"])}, QUESTION]
    tools = [{"type": "function", "function": WEATHER}]
    return {
        "A question": tokenizer.apply_chat_template([QUESTION], **options),
        "Tool use": tokenizer.apply_chat_template([QUESTION], tools=tools, **options),
        "JSON mode": tokenizer.apply_chat_template(asked_for_json, **options),
    }
