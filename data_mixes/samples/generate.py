"""Write the small sample set that the project wrote itself: `python data_mixes/samples/generate.py OUT`.

    OUT/train/<source>.jsonl       conversations, one source a file; SOURCES gives the category of each
    OUT/preference/train.jsonl     pairs for DPO
    OUT/heldout/<kind>.jsonl       choice, tool_call, json_mode, preference: what the evaluation tasks read

The same seed gives the same bytes.
"""

import argparse
import json
import os
from pathlib import Path

import coding
import dialogue
import facts
import preference
import structured
import tools
from words import Row

# File stem -> category of the Hermes 3 mixture (report, Table 1), which counts structured output with tool use.
SOURCES = {
    "general_instructions": "general_instructions",
    "openings": "general_instructions",
    "domain_expert": "domain_expert",
    "math": "math",
    "roleplaying": "roleplaying",
    "coding": "coding",
    "tool_calls": "tool_use_agentic_rag",
    "rag": "tool_use_agentic_rag",
    "json_mode": "tool_use_agentic_rag",
    "content_generation": "content_generation",
    "steering_alignment": "steering_alignment",
}

# File below OUT -> what makes its rows.
FILES = {
    "train/general_instructions": facts.general_instructions,
    "train/openings": preference.openings,
    "train/domain_expert": facts.domain_expert,
    "train/math": facts.math,
    "train/roleplaying": dialogue.roleplaying,
    "train/coding": coding.coding,
    "train/tool_calls": tools.tool_calls,
    "train/rag": structured.rag,
    "train/json_mode": structured.json_mode,
    "train/content_generation": dialogue.content_generation,
    "train/steering_alignment": dialogue.steering_alignment,
    "preference/train": preference.preference_train,
    "heldout/choice": facts.held_out_choice,
    "heldout/tool_call": tools.held_out_tool_call,
    "heldout/json_mode": structured.held_out_json_mode,
    "heldout/preference": preference.held_out_preference,
}


def row_prefix(file: str) -> str:
    """Start of a file's row ids: `math` for train/math, `preference-train`, `heldout-choice`."""
    return file.removeprefix("train/").replace("/", "-")


def write_rows(rows: list[Row], path: Path) -> None:
    """Write `rows` as JSON lines; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the sample data set.")
    parser.add_argument("out", type=Path, help="folder to write train/, preference/ and heldout/ into")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    arguments = parser.parse_args()
    for file, build in FILES.items():
        prefix = row_prefix(file)
        rows = [{"id": f"{prefix}-{i:06d}", **row} for i, row in enumerate(build(arguments.seed))]
        write_rows(rows, arguments.out / f"{file}.jsonl")
        print(f"{file}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
