"""The verb `hermes3 mt-bench`."""

import os
from pathlib import Path
from typing import Annotated

import typer

MODEL_KEY, JUDGE_KEY = "HERMES3_MODEL_API_KEY", "HERMES3_JUDGE_API_KEY"


def mt_bench(
    model: Annotated[str, typer.Argument(help="folder of a whole model; with --endpoint, the name it is served by")],
    questions: Annotated[Path, typer.Option(help="MT-Bench's question.jsonl")],
    judge_url: Annotated[str, typer.Option(help=f"OpenAI-compatible endpoint, to /v1; its key in ${JUDGE_KEY}")],
    judge_model: Annotated[str, typer.Option(help="the judge's name there")],
    out: Annotated[Path, typer.Option(help="folder for answers, ratings and results")],
    endpoint: Annotated[
        str | None, typer.Option(help=f"where MODEL is served, to /v1; its key in ${MODEL_KEY}")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="seconds for one reply")] = 600,
    limit: Annotated[int | None, typer.Option(min=2, help="only the first questions, for a first look")] = None,
    max_unrated: Annotated[int, typer.Option(min=0, help="questions that may be left without a rating")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be asked, ask nothing")] = False,
) -> None:
    """Answer MT-Bench's questions with MODEL and have a judge rate them; what is there already is not asked again."""
    from hermes3.mt_bench.run import Bench, run

    bench = Bench(
        model=model,
        questions=questions,
        judge_url=judge_url,
        judge_model=judge_model,
        out=out,
        endpoint=endpoint,
        parallel=parallel,
        timeout=timeout,
        limit=limit,
        max_unrated=max_unrated,
        model_key=os.environ.get(MODEL_KEY),
        judge_key=os.environ.get(JUDGE_KEY),
    )
    run(bench, dry_run)
