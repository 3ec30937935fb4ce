"""The verb `hermes3 launch`."""

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hermes3.files import UserError

Shown = tuple[list[str], dict, list[str]]  # what is missing, the page of --json, the lines for people


def launch(
    words: Annotated[list[str] | None, Argument(metavar="[RECIPE] [-- SBATCH OPTIONS]", help="recipes/*.yml")] = None,
    pipeline: Annotated[str | None, Option(help="instead of RECIPE: a name in launch/pipelines, or a file")] = None,
    nodes: Annotated[int | None, Option(min=1, help="another number of nodes, at the same global batch")] = None,
    done: Annotated[list[str], Option(help="take this stage of the pipeline for complete")] = [],  # noqa: B006
    check: Annotated[bool, Option("--check/--no-check", help="check the recipes first, and ask the cluster")] = True,
    dry_run: Annotated[bool, Option("--dry-run", help="write the files to read, submit nothing")] = False,
    as_json: Annotated[bool, Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Submit a training run or a whole pipeline to Slurm. It checks the recipes first.

    Example: hermes3 launch recipes/8b_sft.yml --dry-run
    """
    words = words or []
    if not pipeline and (not words or words[0].startswith("-")):
        raise UserError("give a recipe, or --pipeline NAME")
    if pipeline and nodes:
        raise UserError("--nodes: a pipeline takes each recipe's own; set `hardware` there")
    if done and not pipeline:
        raise UserError("--done: only with --pipeline")
    if not Path("launch/train.sbatch").is_file():  # from there scripts and recipes name their files
        raise UserError(f"no launch/train.sbatch in {Path.cwd()}; run this from the root of the repository")
    if pipeline:
        missing, page, lines = _pipeline(pipeline, words, done, check, dry_run)
    else:
        missing, page, lines = _recipe(Path(words[0]), nodes, words[1:], check, dry_run)
    if as_json:
        print(json.dumps(page))
        return
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    print("\n".join(lines))


def _recipe(path: Path, nodes: int | None, options: list[str], check: bool, dry_run: bool) -> Shown:
    from hermes3.slurm import submit

    launch = submit.prepare(path, nodes, options, check)
    job = None if dry_run else submit.submit(launch, check)
    page = {"job": job, "folder": str(launch.folder), "command": launch.line, "missing": launch.missing}
    lines = [f"to read: {launch.folder}/submit.sh, {launch.recipe}\n\n{submit.shell(launch.line)}\n"]
    if planned := launch.planned:
        hours = f"{planned.cost.hours:,.1f} hours, {planned.cost.gpu_hours:,.0f} GPU-hours"
        lines.append(f"planned: {hours} (hermes3 plan {launch.recipe})")
    ways = f"  watch:  tail -F logs/{path.stem}-{job}.log   (each rank: logs/{job}/attempt_N/rank_R.log)\n"
    ways += f"  state:  squeue --job {job} --start\n  end it: scancel {job}"
    lines.append("nothing was submitted (--dry-run)" if dry_run else f"job {job}\n{ways}")
    return launch.missing, page | {"recipe": str(launch.recipe)}, lines


def _pipeline(path: str, options: list[str], done: list[str], check: bool, dry_run: bool) -> Shown:
    from hermes3.slurm import chain, pipeline

    name, declared = chain.load(path)
    with pipeline.alone(pipeline.FOLDER / name):
        plan = pipeline.prepare(path, options, done, check, dry_run)
        submitted = {} if dry_run else plan.submit(check)
    rows = plan.rows(submitted)
    page = {"folder": str(plan.folder), "submitted": submitted, "missing": plan.missing, "stages": rows}
    lines = [f"{pipeline.table(rows)}\nto read: {plan.folder}/submit.sh"]
    for group in chain.judged(declared.evaluation.epochs):
        lines.append(f"epochs are chosen without {group}, which needs a judge (hermes3 mt-bench)")
    end = "nothing to submit: each stage is complete or in the queue"
    if dry_run:
        end = f"nothing was submitted (--dry-run{plan.unknown})"
    elif submitted:
        ids = " ".join(map(str, submitted.values()))
        end = f"{len(submitted)} jobs submitted\n  state:  {plan.again} --dry-run --no-check\n"
        end += f"  watch:  squeue --me   (logs/NAME-JOB.log)\n  end it: scancel {ids}"
    return plan.missing, page, [*lines, end]
