"""The verb `hermes3 launch`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def launch(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [-- SBATCH OPTIONS]", help="recipes/*.yml")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="instead of RECIPE, a whole chain: a name in launch/pipelines, or a file")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="another number of nodes, at the same global batch")] = None,
    done: Annotated[list[str], typer.Option(help="take this stage of the pipeline for complete")] = [],  # noqa: B006
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="recipes are checked first, and the cluster asked")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the files to read, submit nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Submit to Slurm: one training run, or the chain from mixes to report as jobs that wait for each other."""
    words = words or []
    if pipeline:
        if nodes:
            raise ValueError("--nodes: a pipeline takes each recipe's own; set `hardware` there")
        _pipeline(pipeline, words, done, check, dry_run, as_json)
    elif not words or words[0].startswith("-"):
        raise ValueError("give a recipe, or --pipeline NAME")
    elif done:
        raise ValueError("--done: only with --pipeline")
    else:
        _recipe(Path(words[0]), nodes, words[1:], check, dry_run, as_json)


def _recipe(path: Path, nodes: int | None, options: list[str], check: bool, dry_run: bool, as_json: bool) -> None:
    from hermes3.slurm import submit

    made = submit.prepare(path, nodes, options, check)
    submit.write(made)
    job = None if dry_run else submit.submit(made, check)
    if as_json:
        said = {"job": job, "folder": str(made.folder), "command": made.line, "missing": made.missing}
        print(json.dumps({**said, "settings": made.settings}))
        return
    for key, value in made.settings.items():
        print(f"{key.replace('_', ' ')}: {_flow(value)}")
    print(f"to read: {made.folder}/submit.sh, {made.folder}/settings.yml\n\n{submit.shell(made.line)}\n")
    for text in made.missing:
        print(f"missing: {text}", file=sys.stderr)
    if dry_run:
        print("nothing was submitted (--dry-run)")
    else:
        print(f"job {job}")
        print(f"  watch:  tail -F logs/{path.stem}-{job}.log   (each rank: logs/{job}/attempt_N/rank_R.log)")
        print(f"  state:  squeue --job {job} --start\n  end it: scancel {job}")


def _pipeline(given: str, options: list[str], done: list[str], check: bool, dry_run: bool, as_json: bool) -> None:
    from hermes3.files import write_text
    from hermes3.slurm import chain, pipeline, states, submit

    submit.in_repository()
    pipeline.reject(options)
    name, read = chain.load(given)
    for script, site in read.sbatch.items():
        pipeline.reject(site, f"{given}: sbatch: {script}: ")
    folder, again = states.FOLDER / name, f"hermes3 launch --pipeline {given}"
    with pipeline.alone(folder):
        stages = chain.stages(read, folder / "commands")
        jobs, unknown = _queue(dry_run)
        found = states.states(again, name, stages, jobs, done)
        to_run = {one.name: one for one in stages if found[one.name].what == states.RUN}
        recipes = {one.name: Path(one.arguments[0]) for one in to_run.values() if one.run}
        plans = submit.look(list(recipes.values()), check)
        times = {one: submit.time_limit(plans[path]) for one, path in recipes.items()}
        made = pipeline.Submission(again, name, stages, found, times, options, done)
        write_text(folder / "submit.sh", made.script())
        made.write_commands(folder / "commands")
        missing = chain.missing(list(to_run.values()))
        if missing and not dry_run:
            raise ValueError("\n  ".join(["nothing is submitted:", *missing]))
        if check and not dry_run:
            made.test()
        submitted = {} if dry_run else made.submit()
    rows = made.rows(submitted)
    if as_json:
        print(json.dumps({"folder": str(folder), "submitted": submitted, "missing": missing, "stages": rows}))
        return
    print(pipeline.table(rows))
    print(f"to read: {folder}/submit.sh")
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    for group in chain.judged(read.evaluation.epochs):
        print(f"epochs are chosen without {group}, which needs a judge (hermes3 mt-bench)")
    if dry_run:
        print(f"nothing was submitted (--dry-run{unknown})")
    elif submitted:
        ids = " ".join(map(str, submitted.values()))
        print(f"{len(submitted)} jobs submitted\n  state:  {again} --dry-run --no-check")
        print(f"  watch:  squeue --me   (logs/NAME-JOB.log)\n  end it: scancel {ids}")
    else:
        print("nothing to submit: each stage is complete or in the queue")


def _queue(dry_run: bool) -> tuple[dict, str]:
    """The jobs; a dry run goes on without Slurm, and says so."""
    from hermes3.slurm import queue

    try:
        return queue.jobs(), ""
    except ValueError as error:
        if not dry_run:
            raise
        return {}, f"; the queue is not known: {str(error).splitlines()[0]}"


def _flow(value: object) -> str:
    return ", ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)
