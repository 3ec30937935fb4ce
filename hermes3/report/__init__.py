"""Whether it reproduced: the report of scores, runs and mixes, and the model card that is written from it."""

from functools import cache
from pathlib import Path

from hermes3.files import read_yaml


@cache
def names(part: str) -> dict:
    """A part of names.yml: words and keys that the report and the card use."""
    return read_yaml(Path(__file__).with_name("names.yml"))[part]
