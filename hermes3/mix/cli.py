"""The `hermes3 mix` verbs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build data mixes and look into them.")

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
) -> None:
    """Turn declared sources into a mix that Axolotl trains on, with a record of what is in it and what is not."""
    from rich.console import Console
    from rich.markdown import Markdown

    from hermes3.mix import build

    Console().print(Markdown(build.summary(out, build.build(spec, out, data_root, workers, cache))))


@app.command("lock")
def lock(spec: Spec, data_root: DataRoot = Path()) -> None:
    """Resolve every source's commit and file hashes, and write them beside SPEC; needs the network for Hub sources."""
    from hermes3.mix import lock

    pinned = lock.make(spec, data_root)
    for name, source in pinned["sources"].items():
        size = sum(file["bytes"] for file in source["files"].values())
        print(f"{name}: {len(source['files'])} files, {size / 1e6:,.1f} MB, {source.get('revision') or 'local'}")
    print(lock.lock_path(spec))


@app.command("verify")
def verify(
    mix: Mix,
    every_row: Annotated[bool, typer.Option("--all", help="render every row anew, not a sample of 2,000")] = False,
) -> None:
    """Check a mix against its manifest: hashes, sums, budgets, and that rows render to what trains."""
    from hermes3.mix.verify import verify

    wrong = verify(mix, every_row)
    print("\n".join(wrong) or f"{mix}: every check holds")
    if wrong:
        raise typer.Exit(1)
