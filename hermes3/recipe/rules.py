"""What Axolotl accepts and this project refuses: what trains wrongly, loses checkpoints or cannot be repeated.
Rules about single values are rows of `rules.yml`; those here compare numbers, or look at files."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hermes3.files import UserError, read_json
from hermes3.model_folder import check_model, on_hub
from hermes3.recipe.hardware import CPU
from hermes3.recipe.read import ERROR, NOTE, Finding, deepspeed_config, from_error, in_deepspeed, read, value_at
from hermes3.recipe.reads import READS
from hermes3.recipe.schema import PLUGIN

BEST = "best"  # in a run's folder: the link to the epoch that `hermes3 select` chose
TABLE = yaml.safe_load(Path(__file__).with_name("rules.yml").read_text(encoding="utf-8"))
SPLIT = re.compile(r"train(\[[^\]]*\])?(\+train\[[^\]]*\])*")
NUMBER = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")
# Numbers of a DeepSpeed file that the recipe has too, as transformers fills an "auto"
SAME_AS = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "max_grad_norm",
}


def findings(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """Everything that the lines of the recipe at `path`, and of its DeepSpeed file, tell."""
    yield from basic(path, recipe)
    yield from _values(path, recipe, resolve=False)
    for key, value in _leaves(recipe):
        if isinstance(value, str) and (number := NUMBER.fullmatch(value)):
            whole, rest, sign, power = number.groups()
            remedy = f"write {whole}{rest or '.0'}e{sign or '+'}{power}"
            yield Finding(key, f"YAML reads {value} as text, not as a number", remedy)
    yield from _saving(recipe)
    yield from _inputs(path, recipe)


def basic(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
    """Those of them without which a recipe cannot be resolved to what it means."""
    yield from _values(path, recipe, resolve=True)
    datasets = recipe.get("datasets") or []
    for entry in datasets:
        split = str(entry.get("split") or "train")
        if Path(str(entry.get("path"))).name == "train" and not SPLIT.fullmatch(split):
            yield Finding("datasets.split", f"{split}: a mix has the split train alone", "set train, or train[:10%]")
    for key, part in [("", recipe), *(("datasets.", entry) for entry in datasets)]:
        template = part.get("chat_template_jinja")
        if isinstance(template, str) and not re.search(r"[{\n]", template) and not Path(template).is_file():
            yield Finding(f"{key}chat_template_jinja", f"no file {template}", "run from the root of the repository")


def _values(path: Path, recipe: dict[str, Any], resolve: bool) -> Iterator[Finding]:
    hardware = recipe.get("hardware")
    facts = {key: bool(value) for key, value in recipe.items()} | {
        "HermesPlugin": PLUGIN in (recipe.get("plugins") or []),
        "cpu": isinstance(hardware, dict) and hardware.get("gpu") == CPU,
        "sdpa": recipe.get("attn_implementation") == "sdpa",
        # a save in one piece is 812 GB
        "405b": "405b" in f"{path.stem} {recipe.get('base_model')}".lower() and not recipe.get("adapter"),
    }
    try:
        config = deepspeed_config(path, recipe)
    except UserError as error:
        config = None
        if resolve:
            yield from_error(error, "deepspeed", path)
    for row in (row for row in TABLE if row.get("resolve", False) == resolve):
        names = {name.removeprefix("not "): not name.startswith("not ") for name in row.get("when", [])}
        _, in_file, key = row["key"].rpartition("deepspeed.")
        if in_file and config is None or any(facts.get(name, False) != wanted for name, wanted in names.items()):
            continue
        for finding in _refused(row, value_at(config if in_file else recipe, key)):
            yield in_deepspeed(recipe, finding) if in_file else finding
    if config is not None and not resolve:
        yield from (in_deepspeed(recipe, finding) for finding in _deepspeed(config, recipe))


def _refused(row: dict[str, Any], values: Any) -> Iterator[Finding]:
    """A finding for each value, the one or those of a list, that a row of `rules.yml` refuses."""
    tests = {"bad", "only", "like", "least"} & row.keys()
    for value in values if tests and isinstance(values, list) else [values]:
        bad = "bad" in row and value in row["bad"] or "only" in row and value not in row["only"]
        bad |= "least" in row and not (isinstance(value, int | float) and value >= row["least"])
        if not tests or bad or "like" in row and re.fullmatch(row["like"], str(value)):
            named = "absent" if value is None else str(value).lower() if isinstance(value, bool) else value
            yield Finding(row["key"], row["wrong"].format(value=named), row["remedy"].format(value=named))


def _deepspeed(config: dict[str, Any], recipe: dict[str, Any]) -> Iterator[Finding]:
    for name, key in SAME_AS.items():
        value = config.get(name, "auto")
        if value != "auto" and value != recipe.get(key, 1):
            wrong = f"{name} is {value}, and the recipe has {key}: {recipe.get(key)}"
            yield Finding("deepspeed", wrong, f'set "{name}": "auto"')
    for name, value in _leaves(config):
        if value == "auto" and name not in READS.deepspeed_auto:
            yield Finding("deepspeed", f'{name} is "auto", and transformers fills no such key', "give a value")


def _leaves(part: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping and no list."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _leaves(value, f"{key}.{name}" if key else f"{name}")
    elif isinstance(part, list):
        for value in part:
            yield from _leaves(value, key)
    else:
        yield key, part


def _number(recipe: dict[str, Any], key: str, default: int) -> int | float:
    """The value if it is a number other than 0; what is none, Axolotl's schema refuses."""
    value = recipe.get(key)
    return value if value and isinstance(value, (int, float)) else default


def _saving(recipe: dict[str, Any]) -> Iterator[Finding]:
    steps, strategy = recipe.get("save_steps"), recipe.get("save_strategy", "epoch")
    if not recipe.get("rl") and (steps or strategy != "epoch" and not recipe.get("saves_per_epoch")):
        wrong = "keeps no checkpoint of each epoch, and the best epoch is chosen of them"
        wrong = f"{f'save_steps: {steps}' if steps else strategy} {wrong}"
        yield Finding("save_strategy", wrong, "set save_strategy: epoch; restart_steps saves in between")
    epochs, restart = int(_number(recipe, "num_epochs", 1)), bool(recipe.get("restart_steps"))
    needed = epochs * int(_number(recipe, "saves_per_epoch", 1)) + restart
    limit = _number(recipe, "save_total_limit", 4)  # Axolotl's default
    if limit < needed:
        limit = f"{limit}{'' if 'save_total_limit' in recipe else ' by default'}"
        saves = f"{epochs} epochs{', and a restart point' if restart else ''}"
        wrong = f"{limit}, and {needed} checkpoints must survive ({saves}): the oldest would be deleted"
        yield Finding("save_total_limit", wrong, f"set save_total_limit: {needed} or more")


@lru_cache
def _in_folder(folder: Path) -> dict[Path, dict[str, Any]]:
    recipes = {}
    for file in sorted({*folder.glob("*.yml"), *folder.glob("experiments/*.yml"), *folder.parent.glob("*.yml")}):
        with suppress(UserError, OSError):
            recipe, inside = read(file), file.is_relative_to(Path.cwd())
            if isinstance(recipe.get("output_dir"), str):
                recipes[file.relative_to(Path.cwd()) if inside else file] = recipe
    return recipes


def _inputs(path: Path, recipe: dict[str, Any]) -> Iterator[Finding]:
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
    same = [other for other, its in beside.items() if Path(its["output_dir"]) == Path(str(output))]
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

    Axolotl names prepared data by keys and paths: after a mix has changed it goes on training on the old one without a
    word. So a mix holds `prepared-HASH`, of its manifest's `output.sha256`, and a link `prepared` to it.
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
