"""What a mix is made of: `data_mixes/*.yml`, read and checked before any work. Unknown keys are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hermes3.files import read_model

# Table 1 of the Hermes 3 report (arXiv 2408.11857): key, name, percent of tokens. The printed percentages sum to 100.5.
CATEGORIES = {
    "general_instructions": ("General Instructions", 60.6),
    "domain_expert": ("Domain Expert", 12.8),
    "math": ("Math", 6.7),
    "roleplaying": ("Roleplaying", 6.1),
    "coding": ("Coding", 4.5),
    "tool_use_agentic_rag": ("Tool Use, Agentic, and RAG", 4.3),
    "content_generation": ("Content Generation", 3.0),
    "steering_alignment": ("Steering and Alignment", 2.5),
}
Adapter = Literal[
    *("messages", "sharegpt", "instruction", "alpaca", "question_answer", "prompt_completion", "glaive_rag"),
    "preference",
]
Filter = Literal["refusal", "unterminated_code", "json_mode", "tool_call_text", "broken_text"]
Kind = Literal["sft", "preference"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """Rows of one shape: a local path, or files of a Hub dataset at a pinned revision."""

    name: str = Field(pattern=r"^[\w.-]+$")
    path: str | None = Field(default=None, description="file or glob, relative to --data-root")
    repo: str | None = Field(default=None, description="Hub dataset, OWNER/NAME")
    revision: str | None = Field(default=None, description="commit of the Hub dataset; `main` is not pinned")
    config: str | None = None
    split: str = "train"
    files: list[str] = Field(default=[], description="globs within the Hub dataset, instead of config and split")
    adapter: Adapter = Field(description="the shape of its rows: see hermes3/mix/adapt.py")
    licence: str = Field(description="as its publisher states it")
    columns: dict[str, str] = Field(default={}, description="column of its rows: the column that the adapter reads")
    ignore: list[str] = Field(default=[], description="columns and fields of turns that are not to be read")
    where: dict[str, Any] = Field(default={}, description="column: value, or list of values, of the rows to take")
    rank: int = Field(default=1, ge=1, description="quality; 1 is the strongest generator, taken and kept first")
    weight: float | None = Field(default=None, gt=0, description="share of its category's tokens, against the others'")
    max_repeat: int = Field(default=1, ge=1, description="how often a row may be used to fill a budget")
    max_bad_rows: float | None = Field(default=None, ge=0, le=1, description="as the mix's, for this source")
    skip_filters: list[Filter] = []

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path (local) or repo (Hub)")
        if self.repo and not self.revision:
            raise ValueError("revision is missing: a commit, or main until `hermes3 mix lock` resolves it")
        if self.path and (self.revision or self.config or self.files):
            raise ValueError("revision, config and files belong to a repo, not to a path")
        return self


class Category(Strict):
    """Without a budget, every row is taken."""

    tokens: int | None = Field(default=None, gt=0, description="budget in tokens as trained")
    percent: float | None = Field(default=None, gt=0, le=100, description="budget in percent of the mix's tokens")
    min_tokens: int = Field(default=0, ge=0, description="shorter conversations are dropped")
    max_tokens: int | None = Field(default=None, gt=0, description="longer conversations are dropped")
    sources: list[Source] = []

    @model_validator(mode="after")
    def _weights(self) -> Self:
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("weight: set it for every source of the category, or for none")
        return self


class NearDuplicates(Strict):
    threshold: float = Field(default=0.8, ge=0.3, le=1, description="Jaccard similarity of word n-grams, of each part")
    ngram: int = Field(default=5, ge=1)
    permutations: Literal[64, 128, 256] = 128


class EvalSet(Strict):
    """Text that must not be trained on: an lm-eval task's split, or a file."""

    task: str | None = None
    split: str | None = Field(default=None, description="of the task; by default the one that lm-eval scores")
    path: str | None = Field(default=None, description="jsonl or json, relative to --data-root")
    fields: list[str] = Field(
        default=[], description="what is searched for; by default all but what is named an answer"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.task is None):
            raise ValueError("give either task (lm-eval) or path (local)")
        return self

    @property
    def name(self) -> str:
        return self.task or Path(self.path or "").stem


class Decontaminate(Strict):
    ngram: int = Field(default=13, ge=5, description="words")
    min_words: int = Field(
        default=8, ge=5, description="shorter texts than ngram are searched for whole, down to this length"
    )
    against: list[EvalSet] = Field(min_length=1)


class Spec(Strict):
    """A whole mix."""

    name: str
    kind: Kind
    tokenizer: Path = Field(description="folder made by `hermes3 tokenizer build`; it holds the template")
    sequence_len: int = Field(gt=0, description="longer conversations are dropped, never cut")
    seed: int
    tokens: int | None = Field(default=None, gt=0, description="the mix's tokens; categories state percent of it")
    max_bad_rows: float = Field(default=0.01, ge=0, le=1, description="share of a source that may be unreadable")
    near_duplicates: NearDuplicates | None = None
    decontaminate: Decontaminate | None = None
    categories: dict[str, Category]
    classified: list[Source] = Field(default=[], description="sources whose rows are classified by rules")

    def sources(self) -> Iterator[tuple[str | None, Source]]:
        """(category, source) in the order of the file; None where hermes3/mix/classify.py sorts the rows."""
        yield from ((name, source) for name, category in self.categories.items() for source in category.sources)
        yield from ((None, source) for source in self.classified)

    def budgets(self) -> dict[str, int]:
        """Tokens per category that has a budget. Percentages are scaled to sum to 100 (the paper's sum to 100.5)."""
        total = sum(category.percent or 0 for category in self.categories.values())
        return {
            name: category.tokens or round((self.tokens or 0) * (category.percent or 0) / total)
            for name, category in self.categories.items()
            if category.tokens or category.percent
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := set(self.categories) - set(CATEGORIES):
            raise ValueError(f"categories.{min(unknown)}: not one of {', '.join(CATEGORIES)}")
        percents = [category.percent for category in self.categories.values()]
        if any(percents):
            if not all(percents) or any(category.tokens for category in self.categories.values()):
                raise ValueError("categories: give percent to every one of them, or to none")
            if self.tokens is None:
                raise ValueError("tokens: percentages need the mix's total")
            if not 99 <= sum(p or 0 for p in percents) <= 101:  # printed shares are rounded
                raise ValueError(f"categories: percentages sum to {sum(p or 0 for p in percents):g}, not to 100")
        elif self.tokens is not None:
            raise ValueError("tokens: states a total, but no category states its percent")
        sources = [source for _, source in self.sources()]
        if not sources:
            raise ValueError("categories: no source is declared")
        if not self.classified and (bare := [name for name, c in self.categories.items() if not c.sources]):
            raise ValueError(f"categories.{bare[0]}: no source is declared")
        names = [source.name for source in sources]
        if doubles := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two sources are named {min(doubles)}; names tell rows apart, give each its own")
        for source in sources:
            if (source.adapter == "preference") != (self.kind == "preference"):
                raise ValueError(f"source {source.name}: adapter {source.adapter} does not fit kind {self.kind}")
        return self


def load(path: Path) -> Spec:
    """Read a spec. `UserError` names the file, the key and what is wrong."""
    return read_model(path, Spec)
