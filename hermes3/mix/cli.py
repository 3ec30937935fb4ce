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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="estimate from a sample what it would hold")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest, or the estimate, as JSON")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of finished work; .cache beside OUT by default")] = None,
    executor: Annotated[str, typer.Option(help="dask://HOST:PORT: a cluster's workers in place of processes")] = "",
) -> None:
    """Build the mix of SPEC: what Axolotl trains on. A manifest records what is in it and what is not.

    Example: hermes3 mix build data_mixes/tiny_sft.yml --out mixes/tiny_sft
    """
    from hermes3.mix import build

    if dry_run:
        share, rows = build.estimate(spec, data_root)
        lines = [
            f"{{category}}: {{source}}: {{tokens:,}} tokens{' of {budget:,}' * bool(one['budget'])}".format(**one)
            for one in rows
        ]
        note = f"from {share:.0%} of the rows; without decontamination, and near-copies beyond the sample"
        return print(json.dumps(rows) if as_json else "\n".join([*lines, note]))
    built = build.build(spec, out, data_root, executor or workers or 0, cache).manifest
    if as_json:
        return print(json.dumps(built))
    for name, category in built["categories"].items():
        print(f"{name}: {category['rows']:,} rows, {category['tokens']:,} tokens")
    for key in ("rejects", "shortfalls", "unmet_weights"):
        for why, what in built[key].items():
            print(f"{key.replace('_', ' ')}: {why}: {what}")
    print(out / "card.html")


@app.command("shards")
def shards(
    spec: Spec,
    part: Annotated[str, typer.Option(help="i/N: the i-th of N parts, of which each may run on another machine")],
    cache: Annotated[Path, typer.Option(help="the build's folder of finished work")] = Path("mixes/.cache"),
    data_root: DataRoot = Path(),
    workers: Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")] = None,
) -> None:
    """Do a part of the work on SPEC's rows. When all parts are done, `mix build` with that cache chooses and writes.

    Example: hermes3 mix shards data_mixes/tiny_sft.yml --part 1/4
    """
    from hermes3.mix import build

    new, own = build.make_part(spec, part, cache, data_root, workers or 0)
    print(f"{cache}: part {part}: {new} shards made, {own - new} were there")


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
    every_row: Annotated[bool, typer.Option("--all", help="render every row anew, not the first 2,000")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Check a built mix against its manifest. Hashes, sums, and that rows render to what trains.

    Example: hermes3 mix verify mixes/tiny_sft
    """
    from hermes3.mix import build

    wrong = list(build.verify(mix, every_row))
    print(json.dumps(wrong) if as_json else "\n".join(wrong) or f"{mix}: every check holds")
    if wrong:
        raise typer.Exit(1)


@app.command("audit")
def audit(
    mix: Annotated[Path, typer.Argument(help="folder of a built mix")],
    per_stage: Annotated[int, typer.Option(min=1, help="rows of each stage to look at")] = 30,
    data_root: DataRoot = Path(),
) -> None:
    """Look at rows that MIX left out. Each is shown beside what it repeats, to be marked; the card says how many were
    right.

    Example: hermes3 mix audit mixes/tiny_sft
    """
    from rich.console import Console
    from rich.prompt import Prompt
    from rich.table import Table
    from rich.text import Text

    from hermes3.mix import audit

    console = Console()

    def ask(title: str, why: str, text: str, other: str) -> str:
        table = Table("left out", *(["it repeats"] if other else []), title=Text(f"{title}\n{why}"), expand=True)
        table.add_row(*map(Text, filter(None, (text, other))))
        console.print(table)
        try:
            return Prompt.ask("(r)ight to leave it out, (w)rong, (s)kip, (q)uit", choices=list("rwsq"), console=console)
        except EOFError:
            return "q"

    if not (precision := audit.audit(mix, per_stage, data_root, ask)):
        print("nothing is marked: MIX left out no row but for its budgets, or every row was skipped")
    for one in precision:
        print(f"{one['stage']}: {one['right']} of {one['marked']} right, 95 %: {one['low']:.2f} to {one['high']:.2f}")
