"""The `hermes3 mix` verbs."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build data mixes and look into them.")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Spec = Annotated[Path, typer.Argument(help="mix spec, data_mixes/*.yml")]
Mix = Annotated[Path, typer.Argument(help="folder of a built mix")]
DataRoot = Annotated[Path, typer.Option(help="folder that the spec's paths are relative to")]


@app.command("build")
def build(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="folder to write")],
    data_root: DataRoot = Path(),
    workers: Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of finished work; .cache beside OUT by default")] = None,
    as_json: Json = False,
) -> None:
    """Turn declared sources into a mix that Axolotl trains on, with a record of what is in it and what is not."""
    from hermes3.mix import build

    built = build.build(spec, out, data_root, workers, cache)
    if as_json:
        print(json.dumps({"manifest": built.manifest, "seconds": built.wall, "worker_seconds": built.work}))
    else:
        print(build.summary(out, built))


@app.command("lock")
def lock(spec: Spec, data_root: DataRoot = Path(), as_json: Json = False) -> None:
    """Resolve every source's commit and file hashes, and write them beside SPEC; needs the network for Hub sources."""
    from hermes3.mix import lock

    made = lock.make(spec, data_root)
    if as_json:
        print(json.dumps(made))
        return
    for name, source in made["sources"].items():
        size = sum(file["bytes"] for file in source["files"].values())
        print(f"{name}: {len(source['files'])} files, {size / 1e6:,.1f} MB, {source.get('revision') or 'local'}")
    print(lock.lock_path(spec))


@app.command("verify")
def verify(
    mix: Mix,
    every_row: Annotated[bool, typer.Option("--all", help="render every row anew, not a sample of 2,000")] = False,
    as_json: Json = False,
) -> None:
    """Check a mix against its manifest: hashes, sums, budgets, and that rows render to what trains."""
    from hermes3.mix.verify import verify

    wrong = verify(mix, every_row)
    print(json.dumps(wrong) if as_json else "\n".join(wrong) or f"{mix}: every check holds")
    if wrong:
        raise typer.Exit(1)


@app.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(help="folder of a mix")],
    b: Annotated[Path, typer.Argument(help="folder of another")],
    as_json: Json = False,
) -> None:
    """Compare two mixes: settings, sources, rows that came and went, and why."""
    from hermes3.mix import diff

    found = diff.diff(a, b)
    print(json.dumps(found) if as_json else diff.as_text(found))


@app.command("classify")
def classify(
    files: Annotated[list[str], typer.Argument(help="CATEGORY=FILE: rows whose category is known")],
    adapter: Annotated[str, typer.Option(help="the rows' shape, as in a mix spec")] = "messages",
    as_json: Json = False,
) -> None:
    """Measure the rules that sort rows into categories on rows whose category is known."""
    from hermes3.mix import classify
    from hermes3.mix.categories import CATEGORIES
    from hermes3.mix.rows import read_rows

    known = []
    for pair in files:
        category, _, file = pair.partition("=")
        if category not in CATEGORIES or not file:
            raise ValueError(f"{pair}: give it as CATEGORY=FILE; categories are {', '.join(CATEGORIES)}")
        known += [(category, row) for row in read_rows(Path(file), adapter)]
    found = classify.confusion(known)
    print(json.dumps(found) if as_json else classify.table(found))


@app.command("refusals")
def refusals(
    labelled: Annotated[Path, typer.Argument(help='jsonl of {"text", "refusal": true or false}')],
    split: Annotated[str | None, typer.Option(help="rows of this `split` alone")] = None,
    as_json: Json = False,
) -> None:
    """Measure the refusal filter's precision and recall on texts that people have labelled."""
    from dataclasses import asdict

    from hermes3.mix import refusals

    found = refusals.measure(labelled, split)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    for name, value, (low, high) in (
        ("precision", found.precision, found.precision_interval),
        ("recall", found.recall, found.recall_interval),
    ):
        print(f"{name} {value:.3f} (95 %: {low:.3f} to {high:.3f})")
    for row in found.errors:
        print(f"{'missed' if row['refusal'] else 'wrongly found'}: {row['text'][:100]!r}")
