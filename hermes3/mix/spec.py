"""What a mix is made of: `data_mixes/*.yml`, read and checked before any work. Unknown keys are refused."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes3.mix.categories import CATEGORIES

Adapter = Literal["messages", "sharegpt", "instruction", "question_answer", "preference"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """One file of rows of one shape."""

    name: str
    path: Path = Field(description="jsonl or json, relative to --data-root")
    adapter: Adapter = Field(description="the shape of its rows: see hermes3/mix/adapters.py")
    licence: str = Field(description="as its publisher states it")


class Category(Strict):
    tokens: int | None = Field(default=None, gt=0, description="budget in tokens as trained; without it, every row")
    sources: list[Source] = Field(min_length=1)


class Spec(Strict):
    """A whole mix."""

    name: str
    kind: Literal["sft", "preference"]
    tokenizer: Path = Field(description="folder made by `hermes3 tokenizer build`")
    sequence_len: int = Field(gt=0, description="longer conversations are dropped, never cut")
    seed: int
    categories: dict[str, Category]

    def sources(self) -> list[tuple[str, Source]]:
        """(category, source) in the order of the file."""
        return [(name, source) for name, category in self.categories.items() for source in category.sources]


def load(path: Path) -> Spec:
    """Read a spec. `ValueError` names the file, the key and what is wrong."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}:\n  " + "\n  ".join(lines)) from None
    if unknown := set(spec.categories) - set(CATEGORIES):
        raise ValueError(f"{path}: categories.{min(unknown)}: not one of {', '.join(CATEGORIES)}")
    names = [source.name for _, source in spec.sources()]
    if doubles := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: two sources are named {min(doubles)}; names tell rows apart, give each its own")
    for _, source in spec.sources():
        if (source.adapter == "preference") != (spec.kind == "preference"):
            raise ValueError(f"{path}: source {source.name}: adapter {source.adapter} does not fit kind {spec.kind}")
    return spec
