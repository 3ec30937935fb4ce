"""The verb `hermes3 launch`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hermes3.files import UserError


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
    """Submit a training run or a whole pipeline to Slurm. It checks the recipes first.

    Example: hermes3 launch recipes/8b_sft.yml --dry-run
    """
    words = words or []
    if pipeline:
        if nodes:
            raise UserError("--nodes: a pipeline takes each recipe's own; set `hardware` there")
        _pipeline(pipeline, words, done, check, dry_run, as_json)
    elif not words or words[0].startswith("-"):
        raise UserError("give a recipe, or --pipeline NAME")
    elif done:
        raise UserError("--done: only with --pipeline")
    else:
        _recipe(Path(words[0]), nodes, words[1:], check, dry_run, as_json)


def _recipe(path: Path, nodes: int | None, options: list[str], check: bool, dry_run: bool, as_json: bool) -> None:
    from hermes3.slurm import submit

    launch = submit.prepare(path, nodes, options, check)
    submit.write(launch)
    job = None if dry_run else submit.submit(launch, check)
    if as_json:
        page = {"job": job, "folder": str(launch.folder), "command": launch.line, "missing": launch.missing}
        print(json.dumps(page | {"settings": launch.settings}))
        return
    for key, value in launch.settings.items():
        text = ", ".join(f"{name} {inner}" for name, inner in value.items()) if isinstance(value, dict) else value
        print(f"{key.replace('_', ' ')}: {text}")
    print(f"to read: {launch.folder}/submit.sh, {launch.folder}/settings.yml\n\n{submit.shell(launch.line)}\n")
    _print_missing(launch.missing)
    if dry_run:
        print("nothing was submitted (--dry-run)")
    else:
        print(f"job {job}")
        print(f"  watch:  tail -F logs/{path.stem}-{job}.log   (each rank: logs/{job}/attempt_N/rank_R.log)")
        print(f"  state:  squeue --job {job} --start\n  end it: scancel {job}")


def _pipeline(path: str, options: list[str], done: list[str], check: bool, dry_run: bool, as_json: bool) -> None:
    from hermes3.slurm import chain, pipeline, submit

    submit.in_repository()
    name, declared = chain.load(path)
    submit.reject(options, submit.OF_PIPELINE)
    for script, site in declared.sbatch.items():
        submit.reject(site, submit.OF_PIPELINE, f"{path}: sbatch: {script}: ")
    with pipeline.alone(pipeline.FOLDER / name):
        plan = pipeline.prepare(path, name, declared, options, done, check, dry_run)
        submitted = {} if dry_run else plan.submit(check)
    rows = plan.rows(submitted)
    if as_json:
        page = {"folder": str(plan.folder), "submitted": submitted, "missing": plan.missing, "stages": rows}
        print(json.dumps(page))
        return
    print(f"{pipeline.table(rows)}\nto read: {plan.folder}/submit.sh")
    _print_missing(plan.missing)
    for group in chain.judged(declared.evaluation.epochs):
        print(f"epochs are chosen without {group}, which needs a judge (hermes3 mt-bench)")
    if dry_run:
        print(f"nothing was submitted (--dry-run{plan.unknown})")
    elif submitted:
        ids = " ".join(map(str, submitted.values()))
        print(f"{len(submitted)} jobs submitted\n  state:  {plan.again} --dry-run --no-check")
        print(f"  watch:  squeue --me   (logs/NAME-JOB.log)\n  end it: scancel {ids}")
    else:
        print("nothing to submit: each stage is complete or in the queue")


def _print_missing(missing: list[str]) -> None:
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
