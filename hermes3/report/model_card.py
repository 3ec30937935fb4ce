"""The model card of a trained model: what it is made of, how it scores, and how to talk to it.

Scores come from a `report.json` of `hermes3 report`, so card and report never differ.
"""

import json
import re
from pathlib import Path
from shlex import quote
from typing import Any

from hermes3.chat import prompts
from hermes3.files import UserError, read_yaml, sha256, write_text
from hermes3.model_folder import check_model
from hermes3.page.shell import render
from hermes3.recipe.paper import paper_of
from hermes3.recipe.read import on_hub
from hermes3.report import names

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
QUESTION, WEATHER = names("question"), names("weather")


def write_card(model: Path, report: Path, stage: str, recipe: Path, name: str) -> str:
    """Write `model`/README.md, and return its text. `name` is the Hub's, OWNER/NAME; `stage` is one of the report's.

    `UserError` for another name, a folder that is not a whole model, a file that is not a report, and a stage that it
    does not have.
    """
    from huggingface_hub import ModelCard

    check_name(name)
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
    facts |= _origin(facts, recipe, str(settings.get("base_model")))
    facts |= {"forms": _forms(model), "card_data": _card_data(facts).to_yaml()}
    card = str(
        ModelCard(render(TEMPLATE, facts, {}, {"quote": quote}))
    )  # parses the metadata: a card that the Hub cannot read fails
    write_text(model / "README.md", card)
    return card


def check_name(name: str) -> None:
    """`UserError` for what is no name on the Hub, OWNER/NAME: it goes into a shell line of the card."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--name {name!r}: {error}") from None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise UserError(f"--name {name!r}: give it as OWNER/NAME, in letters, digits, - _ and . alone")


def _origin(facts: dict[str, Any], recipe: Path, base_model: str) -> dict[str, Any]:
    """Base, licence and languages, as the base's name and the mixes' cards state them; None where none does."""
    from huggingface_hub import DatasetCard

    paper = paper_of(recipe)
    base = paper.base if paper else base_model if on_hub(base_model) else None
    llama = re.search(r"llama-?(\d(?:\.\d)?)", base or "", re.IGNORECASE)
    cards = [Path(mix["folder"]) / "README.md" for mix in facts["mixes"] if "folder" in mix]
    languages = [DatasetCard.load(card).data.language or [] for card in cards if card.is_file()]
    known = sorted({code for of in languages for code in of if len(code) == 2})
    licences = {source["licence"] for mix in facts["mixes"] for source in mix.get("sources", []) if source["rows_kept"]}
    return {"base": base, "licence": llama and f"llama{llama[1]}", "languages": known, "licences": sorted(licences)}


def push(model: Path, name: str) -> str:
    """Upload the folder `model` to the Hub as `name`; its address. Login and token are huggingface_hub's own."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=True, exist_ok=True)  # ours: private, until somebody has looked at it
    ignored = ["checkpoint-*", "epochs/*", "*.log", "*.bin", "wandb/*"]
    return str(api.upload_folder(repo_id=name, folder_path=model, ignore_patterns=ignored))


def _card_data(facts: dict[str, Any]):
    """The metadata that the Hub reads: an evaluation result for every score over all questions of its tasks."""
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
        if not {row["task"], *row.get("tasks", [])} & {*facts["evaluation"]["part"]}
    ]
    stated = {"base_model": facts["base"], "license": facts["licence"], "language": facts["languages"] or None}
    return ModelCardData(model_name=facts["model_name"], eval_results=results, **stated, **names("metadata"))


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
