"""Word lists and patterns of the rules on text: data_mixes/rules/*.yml, whose heads say how they are written."""

import re
from typing import Any

from hermes3.files import ROOT, read_yaml

FOLDER = ROOT / "data_mixes/rules"


def load(name: str) -> dict[str, Any]:
    """The file NAME.yml: `words` as sets, `marks` as tuples, `patterns` and each rule's own `pattern` compiled."""
    data = read_yaml(FOLDER / f"{name}.yml")
    parts: dict[str, str] = {}

    def expanded(text: str) -> str:
        return re.sub(r"@\{(\w+)\}", lambda part: parts[part[1]], "".join(text.splitlines()))

    for part, text in data.get("parts", {}).items():
        parts[part] = expanded(text)
    data["words"] = {key: frozenset(text.split()) for key, text in data.get("words", {}).items()}
    data["marks"] = {key: tuple(mark.replace("~", "\n") for mark in m) for key, m in data.get("marks", {}).items()}
    data["patterns"] = {key: re.compile(expanded(text)) for key, text in data.get("patterns", {}).items()}
    for rule in data.get("rules", []):
        if "pattern" in rule:
            rule["pattern"] = re.compile(expanded(rule["pattern"]), re.DOTALL)
    return data
