"""What a mix is made of: `data_mixes/*.yml`, read and checked before any work. Unknown keys are refused."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hermes3.files import ROOT, read_model, read_yaml

# {category: (name, percent of tokens)}
CATEGORIES = {key: tuple(value) for key, value in read_yaml(ROOT / "data_mixes/rules/categories.yml").items()}
Adapter = Literal[
    "messages", "sharegpt", "instruction", "alpaca", "question_answer", "prompt_completion", "glaive_rag", "preference"
]
Filter = Literal["refusal", "unterminated_code", "json_mode", "tool_call_text", "broken_text"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """Rows of one shape: a local path, or files of a Hub dataset at a pinned revision."""

    name: str = Field(pattern=r"^[\w.-]+$")
    path: str | None = None  # file or glob, relative to --data-root
    repo: str | None = None  # Hub dataset, OWNER/NAME
    revision: str | None = None  # commit of the Hub dataset; `main` is not pinned
    config: str | None = None
    split: str = "train"
    files: list[str] = []  # globs within the Hub dataset, instead of config and split
    adapter: Adapter  # the shape of its rows: see hermes3/mix/adapt.py
    licence: str  # as its publisher states it
    columns: dict[str, str] = {}  # column of its rows: the column that the adapter reads
    ignore: list[str] = []  # columns and fields of turns that are not to be read
    where: dict[str, Any] = {}  # column: value, or list of values, of the rows to take
    rank: PositiveInt = 1  # quality; 1 is the strongest generator, taken and kept first
    weight: PositiveFloat | None = None  # share of its category's tokens, against the others'
    max_repeat: PositiveInt = 1  # how often a row may be used to fill a budget
    max_bad_rows: float | None = Field(None, ge=0, le=1)  # as the mix's, for this source
    skip_filters: list[Filter] = []


class Category(Strict):
    """Without a budget, every row is taken."""

    tokens: PositiveInt | None = None  # budget as trained
    percent: float | None = Field(None, gt=0, le=100)  # budget in percent of the mix's tokens
    min_tokens: NonNegativeInt = 0  # shorter conversations are dropped
    max_tokens: PositiveInt | None = None  # longer conversations are dropped
    sources: list[Source] = []


class NearDuplicates(Strict):
    threshold: float = Field(0.8, ge=0.3, le=1)  # Jaccard similarity of word n-grams, of each part
    ngram: PositiveInt = 5
    permutations: Literal[64, 128, 256] = 128


class EvalSet(Strict):
    """Text that must not be trained on: an lm-eval task's split, or a file."""

    task: str | None = None
    split: str | None = None  # of the task; by default the one that lm-eval scores
    path: str | None = None  # jsonl or json, relative to --data-root
    fields: list[str] = []  # what is searched for; by default all but what is named an answer

    @property
    def name(self) -> str:
        return self.task or Path(self.path or "").stem


class Decontaminate(Strict):
    ngram: int = Field(13, ge=5)  # words
    min_words: int = Field(8, ge=5)  # shorter texts than ngram are searched for whole, down to this length
    against: list[EvalSet] = Field(min_length=1)


class Spec(Strict):
    """A whole mix."""

    name: str
    kind: Literal["sft", "preference"]
    tokenizer: Path  # folder made by `hermes3 tokenizer build`; it holds the template
    sequence_len: PositiveInt  # longer conversations are dropped, never cut
    seed: int
    tokens: PositiveInt | None = None  # the mix's; categories state percent of it
    max_bad_rows: float = Field(0.01, ge=0, le=1)  # share of a source that may be unreadable
    near_duplicates: NearDuplicates | None = None
    decontaminate: Decontaminate | None = None
    categories: dict[str, Category]
    classified: list[Source] = []  # sources whose rows are classified by rules

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
        for name in set(self.categories) - set(CATEGORIES):  # one of the user's own, if it is no slip of the pen
            if meant := get_close_matches(name, CATEGORIES, 1, 0.75):
                raise ValueError(f"categories.{name}: {meant[0]} is meant; one of your own needs another name")
        percents = [category.percent or 0 for category in self.categories.values()]
        if any(percents) or self.tokens:
            if not self.tokens or not all(percents) or any(category.tokens for category in self.categories.values()):
                raise ValueError("tokens, categories: give the mix's total and percent of each, or tokens of some")
            if not 99 <= sum(percents) <= 101:  # printed shares are rounded
                raise ValueError(f"categories: percentages sum to {sum(percents):g}, not to 100")
        if self.decontaminate and not all(bool(one.task) != bool(one.path) for one in self.decontaminate.against):
            raise ValueError("decontaminate.against: give each either task (lm-eval) or path (local)")
        for name, category in self.categories.items():
            if not category.sources and not self.classified:
                raise ValueError(f"categories.{name}: no source is declared")
            if len({source.weight is None for source in category.sources}) > 1:
                raise ValueError(f"categories.{name}: set weight for every source, or for none")
        if not (names := [source.name for _, source in self.sources()]):
            raise ValueError("categories: no source is declared")
        for _, source in self.sources():
            place = f"source {source.name}: "
            if (source.path is None) == (source.repo is None) or bool(source.repo) != bool(source.revision):
                raise ValueError(f"{place}give path (local), or repo and revision (main until it is locked)")
            if source.path and (source.config or source.files):
                raise ValueError(f"{place}config and files belong to a repo, not to a path")
            if (source.adapter == "preference") != (self.kind == "preference"):
                raise ValueError(f"{place}adapter {source.adapter} does not fit kind {self.kind}")
            if names.count(source.name) > 1:
                raise ValueError(f"{place}two have this name; names tell rows apart, give each its own")
        return self


def load(path: Path) -> Spec:
    """Read a spec. `UserError` names the file, the key and what is wrong."""
    return read_model(path, Spec)
