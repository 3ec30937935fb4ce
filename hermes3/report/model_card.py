"""The model card, its scores from a `report.json`: what the model is made of, how it scores, how to talk to it."""

import re
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from hermes3.chat.prompts import json_system
from hermes3.files import UserError, read_json, read_yaml, sha256, write_text
from hermes3.model_folder import check_model, on_hub
from hermes3.page.shell import render
from hermes3.recipe.paper import paper_of
from hermes3.report.tables import NAMES

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
READ = ("mixes", "verdict", "evaluations", "scores.stages", "scores.rows")  # of report.json
NAME = re.compile(r"(?!.*(?:--|[.][.]))\b[\w.-]+\b/\b[\w.-]{1,96}\b", re.ASCII)  # on the Hub: it goes into a shell line


def write_card(model: Path, report: Path, stage: str, recipe: Path, name: str) -> str:
    """Write `model`/README.md, and return its text. `name` is the Hub's, OWNER/NAME; `stage` is one of the report's."""
    from huggingface_hub import ModelCard
    from transformers import AutoTokenizer

    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: no name on the Hub; give OWNER/NAME, in letters, digits, - _ and . alone")
    check_model(model)
    facts, settings = read_json(report, *READ), read_yaml(recipe)
    if stage not in facts["scores"]["stages"]:
        raise UserError(f"{report}: no stage {stage}; it has {', '.join(facts['scores']['stages'])}")
    evaluation = next(one for one in facts["evaluations"] if one["stage"] == stage)
    # no score without its interval, and none of what this stage was not asked
    rows = [row for row in facts["scores"]["rows"] if (row["scores"].get(stage) or {}).get("low") is not None]
    part = {*evaluation["part"]}
    facts["scores"] = [row | row["scores"][stage] | {"whole": not part & {*row["tasks"]}} for row in rows]
    facts |= {"name": name, "stage": stage, "evaluation": evaluation, "recipe": str(recipe)}
    facts |= {"recipe_sha256": sha256(recipe), "report_sha256": sha256(report)}
    facts |= {"settings": {key: settings[key] for key in NAMES["settings"] if key in settings}}
    facts |= _origin(facts["mixes"], recipe, str(settings.get("base_model")))
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    prompt = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    filters = {"quote": quote, "prompt": prompt, "json_system": json_system}
    card = str(ModelCard(render(TEMPLATE, NAMES | facts, {}, filters)))  # metadata that the Hub cannot read fail
    write_text(model / "README.md", card)
    return card


def _origin(mixes: list[dict[str, Any]], recipe: Path, base_model: str) -> dict[str, Any]:
    """Base, licence and languages, as the base's name and the mixes' cards state them; None where none does."""
    from huggingface_hub import DatasetCard

    paper = paper_of(recipe)
    base = paper.base if paper else base_model if on_hub(base_model) else None
    llama = re.search(r"llama-?(\d(?:\.\d)?)", base or "", re.IGNORECASE)
    cards = [Path(mix["folder"]) / "README.md" for mix in mixes if "folder" in mix]
    languages = [DatasetCard.load(card).data.language or [] for card in cards if card.is_file()]
    known = sorted({code for of in languages for code in ([of] if isinstance(of, str) else of) if len(code) == 2})
    licences = {source["licence"] for mix in mixes for source in mix.get("sources", []) if source["rows_kept"]}
    return {"base": base, "licence": llama and f"llama{llama[1]}", "languages": known, "licences": sorted(licences)}
