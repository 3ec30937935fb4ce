"""The `hermes3 mix` verbs."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build data mixes and check them.")

Spec = Annotated[Path, typer.Argument(help="mix spec, data_mixes/*.yml")]
DataRoot = Annotated[Path, typer.Option(help="folder that the spec's paths are relative to")]


@app.command("build")
def build(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="folder to write")],
    data_root: DataRoot = Path(),
    workers: Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of finished work; .cache beside OUT by default")] = None,
) -> None:
    """Build the mix of SPEC: what Axolotl trains on. A manifest records what is in it and what is not.

    Example: hermes3 mix build data_mixes/tiny_sft.yml --out mixes/tiny_sft
    """
    from hermes3.mix import build

    built = build.build(spec, out, data_root, workers or 0, cache).manifest
    for name, category in built["categories"].items():
        print(f"{name}: {category['rows']:,} rows, {category['tokens']:,} tokens")
    for key in ("rejects", "shortfalls", "unmet_weights"):
        for why, what in built[key].items():
            print(f"{key.replace('_', ' ')}: {why}: {what}")
    print(out / "card.html")


@app.command("lock")
def lock(spec: Spec, data_root: DataRoot = Path()) -> None:
    """Pin every source of SPEC: its commit and file hashes. Sources on the Hub need the network.

    Example: hermes3 mix lock data_mixes/tiny_sft.yml
    """
    from hermes3.mix import lock

    for name, source in lock.make(spec, data_root)["sources"].items():
        print(f"{name}: {len(source['files'])} files, {source.get('revision') or 'local'}")
    print(lock.lock_path(spec))


@app.command("verify")
def verify(
    mix: Annotated[Path, typer.Argument(help="folder of a built mix")],
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Check a built mix against its manifest. Hashes of files, tokenizer and template, and sums.

    Example: hermes3 mix verify mixes/tiny_sft
    """
    from hermes3.mix import build

    wrong = list(build.verify(mix))
    print(json.dumps(wrong) if as_json else "\n".join(wrong) or f"{mix}: every check holds")
    if wrong:
        raise typer.Exit(1)
