"""The questions, from the user's file: https://huggingface.co/spaces/lmsys/mt-bench, `data/mt_bench/question.jsonl`."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(min_length=1)]
# The original's sampling temperatures; every other category is answered greedily.
TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


# and its categories that are judged by a reference
REFERENCED = ("math", "reasoning", "coding")


class Question(BaseModel):
    """One line of the file. `reference`: what is right at each turn."""

    model_config = ConfigDict(extra="ignore")

    question_id: int
    category: Text
    turns: list[Text] = Field(min_length=2, max_length=2)
    reference: list[str | None] = []

    @property
    def temperature(self) -> float:
        return TEMPERATURE.get(self.category, 0.0)

    @property
    def references(self) -> list[str | None]:
        """What the judge is shown."""
        return self.reference if self.category in REFERENCED else []


def load(path: Path, limit: int | None = None) -> list[Question]:
    """The first `limit` questions, or all. `ValueError` names file, line and key."""
    if not path.is_file():
        raise ValueError(f"--questions {path}: no such file; see docs/alignment.md for where to get it")
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            questions.append(Question.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: no JSON: {error}") from None
    ids = [question.question_id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ValueError(f"{path}: question_id {twice} stands there twice")
    if not questions:
        raise ValueError(f"{path}: no questions")
    return questions[:limit]
