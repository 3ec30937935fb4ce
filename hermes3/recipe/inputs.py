"""What a recipe starts from, trains on and writes: its base model, its prepared data, its folder among other recipes'.

Axolotl names its prepared data by the recipe's keys and paths, not by what the files hold: after a mix has changed it
goes on training on the old one without a word. So a mix folder holds a folder `prepared-HASH`, HASH being the first 12
digits of its manifest's `output.sha256`, and a link `prepared` to it: a recipe keeps its text, and a mix's own prepared
data cannot be taken for another's.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_json
from hermes3.model_folder import check_model
from hermes3.recipe.finding import ERROR, NOTE, Finding, from_error
from hermes3.recipe.read import on_hub, read

BEST = "best"  # in a run's folder: the link to the epoch that `hermes3 select` chose


@lru_cache
def _in_folder(folder: Path) -> dict[Path, dict[str, Any]]:
    """The recipes in `folder`, above and below it."""
    recipes = {}
    for file in sorted({*folder.glob("*.yml"), *folder.glob("experiments/*.yml"), *folder.parent.glob("*.yml")}):
        with suppress(UserError, OSError):
            recipe, inside = read(file), file.is_relative_to(Path.cwd())
            if isinstance(recipe.get("output_dir"), str):
                recipes[file.relative_to(Path.cwd()) if inside else file] = recipe
    return recipes


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with what the recipe at `path` starts from, reads and writes; a note for what is not there yet."""
    base, output = recipe.get("base_model"), recipe.get("output_dir")
    folders = dict.fromkeys([path.resolve().parent, Path("recipes").resolve(), Path("recipes/experiments").resolve()])
    recipes = {file: its for folder in folders if folder.is_dir() for file, its in _in_folder(folder).items()}
    # a file of the same name elsewhere is a copy, which takes the place of the other
    beside = {file: its for file, its in recipes.items() if file.name != path.name}
    if isinstance(base, str):
        yield from _base_model(recipe, base, beside)
    else:
        yield Finding("base_model", "missing", "name the folder of the model to start from")
    same = [
        other for other, its in beside.items() if isinstance(output, str) and Path(its["output_dir"]) == Path(output)
    ]
    if same:
        wrong = f"{output} is where {same[0]} writes too, and the later run would take up its checkpoints"
        yield Finding("output_dir", wrong, "give this recipe a folder of its own")
    try:
        check_prepared(path, recipe)
    except UserError as error:
        yield from_error(error, "datasets", path)


def _base_model(recipe: dict[str, Any], base: str, beside: dict[Path, dict[str, Any]]) -> Iterator[Finding]:
    raw = [other for other, its in beside.items() if its.get("base_model") == base and not its.get("rl")]
    if recipe.get("rl") and raw:
        wrong = f"{base} is what {raw[0]} starts from, and so has not learnt to chat"
        remedy = f"set {beside[raw[0]]['output_dir']}/{BEST}, the epoch that `hermes3 select` chose"
        yield Finding("base_model", wrong, remedy, ERROR if recipe.get("reproduces") else NOTE)
    for other, its in beside.items():
        output = Path(its["output_dir"])
        if its.get("adapter") and Path(base) in (output, output / BEST):
            wrong = f"{base} is what {other} writes, an adapter and no whole model"
            yield Finding("base_model", wrong, f"run `axolotl merge-lora {other}` and set {output}/merged")
    if Path(base).is_dir():
        try:
            check_model(Path(base))
        except UserError as error:
            yield from_error(error, "base_model")
    elif on_hub(base):
        remedy = f"`hermes3 tokenizer build {base} FOLDER` gives it the Hermes tokenizer"
        yield Finding("base_model", f"{base} is a Hub id, which was not looked at", remedy, NOTE)
    else:
        yield Finding("base_model", f"{base} is not built yet", "see the comment on its line", NOTE)


def check_prepared(path: Path, recipe: dict[str, Any]) -> None:
    """`UserError` unless the prepared data of the recipe at `path` can be those of its mix, and of no other.

    Of a mix that is yet to be built only the paths are compared. What is not a mix is refused: its prepared data cannot
    be told apart from stale ones. So is a recipe without `dataset_prepared_path`, as Axolotl then shares one folder,
    `last_run_prepared`, among all recipes.
    """
    entries = [*(recipe.get("datasets") or []), *(recipe.get("test_datasets") or [])]
    folders = sorted({str(Path(str(entry.get("path")))) for entry in entries})
    mix = Path(folders[0]).parent if folders else Path()
    if folders != [str(mix / "train")]:
        wrong = f"{', '.join(folders) or 'nothing'} is not the train folder of one mix, so that data prepared from it"
        remedy = "make a mix of it with `hermes3 mix build`"
        raise UserError(f"{path}: datasets: {wrong} cannot be told apart from stale data; {remedy}")
    link = mix / "prepared"
    if Path(recipe.get("dataset_prepared_path") or "").absolute() != link.absolute():
        raise UserError(f"{path}: dataset_prepared_path: must be {link}, in the mix that datasets name; set that")
    if not mix.exists():
        return
    from hermes3.mix.manifest import prepared_folder  # needs pyarrow, which a host of containers may not have

    again = f"build {mix} again with `hermes3 mix build`"
    if not (mix / "manifest.json").is_file():
        raise UserError(f"{path}: datasets: {mix} is no mix, it has no manifest.json; {again}")
    name = prepared_folder(read_json(mix / "manifest.json", "output.sha256"))
    if not link.is_dir() or link.resolve() != mix.resolve() / name:
        target = f"leads to {link.resolve()}" if link.is_dir() else "leads nowhere"
        raise UserError(f"{path}: dataset_prepared_path: {link} {target}, not to {name} beside it; {again}")
