"""Refuse data that Axolotl prepared from another mix.

Axolotl names its prepared data by the recipe's keys and paths, not by what the files hold: after a mix has changed it
goes on training on the old one without a word. So a mix folder holds a folder `prepared-HASH`, HASH being the first 12
digits of its manifest's `output.sha256`, and a link `prepared` to it: a recipe keeps its text, and a mix's own prepared
data cannot be taken for another's.
"""

import json
from pathlib import Path
from typing import Any


def check_prepared(path: Path, recipe: dict[str, Any]) -> None:
    """`ValueError` unless the prepared data of the recipe at `path` can be those of its mix, and of no other.

    A mix that is yet to be built is held to its paths alone. What is not a mix is refused: its prepared data cannot be
    told apart from stale ones. So is a recipe without `dataset_prepared_path`, as Axolotl then shares one folder,
    `last_run_prepared`, among all recipes.
    """
    entries = [*(recipe.get("datasets") or []), *(recipe.get("test_datasets") or [])]
    folders = {Path(str(entry.get("path"))) for entry in entries}
    if len(folders) != 1 or next(iter(folders)).name != "train":
        given = ", ".join(sorted(map(str, folders))) or "nothing"
        raise ValueError(
            f"{path}: datasets: {given} is not the train folder of one mix, so that data prepared from it cannot "
            "be told apart from stale data; make a mix of it with `hermes3 mix build`"
        )
    mix = folders.pop().parent
    link = mix / "prepared"
    if Path(recipe.get("dataset_prepared_path") or "").absolute() != link.absolute():
        raise ValueError(f"{path}: dataset_prepared_path: must be {link}, in the mix that datasets name; set that")
    if not mix.exists():
        return
    from hermes3.mix.manifest import prepared_folder  # needs pyarrow, which a host of containers may not have

    again = f"build {mix} again with `hermes3 mix build`"
    if not (mix / "manifest.json").is_file():
        raise ValueError(f"{path}: datasets: {mix} is no mix, it has no manifest.json; {again}")
    name = prepared_folder(json.loads((mix / "manifest.json").read_text(encoding="utf-8")))
    if not link.is_dir() or link.resolve() != mix.resolve() / name:
        found = f"leads to {link.resolve()}" if link.is_dir() else "leads nowhere"
        raise ValueError(f"{path}: dataset_prepared_path: {link} {found}, not to {name} beside it; {again}")
