"""The verbs `hermes3 eval`, `hermes3 select` and `hermes3 mt-bench`."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from hermes3.files import UserError

MODEL_KEY, JUDGE_KEY = "HERMES3_MODEL_API_KEY", "HERMES3_JUDGE_API_KEY"


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="folder of a whole model, or with --epoch of a run")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the results")] = None,
    suite: Annotated[str | None, typer.Option(help="a name in eval/suites, or a file")] = None,
    backend: Annotated[Literal["hf", "vllm"], typer.Option(help="vllm needs requirements-eval.txt")] = "hf",
    epoch: Annotated[int | None, typer.Option(min=1, help="which epoch of the run MODEL")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions per task, for a first look")] = None,
    seed: Annotated[int | None, typer.Option(help="of sampling and shuffled choices; the suite's by default")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; the suite's by default")] = None,
    model_args: Annotated[str, typer.Option(help="more of lm_eval's --model_args: tensor_parallel_size=8")] = "",
    part: Annotated[str, typer.Option(help="i/N, the i-th of N shares of the tasks; launch/eval.sbatch --array")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the lm_eval commands, do not run them")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="no MODEL: only fetch the questions, with a network")] = False,
) -> None:
    """Evaluate MODEL with lm-eval, through its own chat template. Tasks with whole results are not run again.

    Example: hermes3 eval outputs/tiny/sft --epoch 4 --suite tiny --out outputs/tiny/eval/epoch_4 --dry-run
    """
    from hermes3.evaluate import run
    from hermes3.evaluate.select import epoch_model
    from hermes3.results.suite import load

    changes = {"limit": limit, "device": device, "seed": seed}
    loaded = load(suite).model_copy(update={key: value for key, value in changes.items() if value is not None})
    if fetch:
        return run.fetch(loaded)
    if model is None or out is None:
        raise UserError("give MODEL and --out FOLDER; --fetch alone needs neither")
    if epoch is not None:
        model = epoch_model(model, epoch, make=not (dry_run or part))  # of several parts each would join it
    run.run(model, out, loaded, backend, model_args, dry_run, part)
    for name in (name for name, group in loaded.groups.items() if group.by == "mt_bench"):
        print(f"{name} is not lm-eval's: hermes3 mt-bench {model} --out {out / 'mt_bench'} ... (docs/alignment.md)")


def select(
    run: Annotated[Path | None, typer.Argument(help="folder of the training run")] = None,
    results: Annotated[list[str], typer.Argument(help="EPOCH=FOLDER of its results, for every epoch")] = [],  # noqa: B006
    suite: Annotated[str | None, typer.Option(help="whose groups count: a name in eval/suites, or a file")] = None,
    without: Annotated[list[str], typer.Option(help="leave out this group, as MT-Bench")] = [],  # noqa: B006
    published: Annotated[str | None, typer.Option(help="no RUN: apply the rule to a table of eval/published")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Choose an epoch of RUN by the paper's rule. Links RUN/best to its model, RUN/best_results to its results.

    Example: hermes3 select outputs/tiny/sft --suite tiny 3=outputs/tiny/eval/epoch_3 4=outputs/tiny/eval/epoch_4
    """
    from hermes3.evaluate import select as rule

    if published:
        chosen = rule.select_published(published)
    elif run is None or not results:
        raise UserError("give RUN and EPOCH=FOLDER for every epoch, or --published table2")
    else:
        folders = folders_by_name(results, "EPOCH")
        if wrong := [epoch for epoch, of in folders.items() if not epoch.isdigit() or epoch[0] == "0" or len(of) > 1]:
            raise UserError(f"epoch {wrong[0]} is given twice or is no number; give each once, as EPOCH=FOLDER")
        by_epoch = {int(epoch): of[0] for epoch, of in folders.items()}
        chosen = rule.select(run, suite, dict(sorted(by_epoch.items())), without)
    print(json.dumps(chosen) if as_json else rule.table(chosen))


def folders_by_name(pairs: list[str], name_of: str = "NAME", option: str = "") -> dict[str, list[Path]]:
    """{name: folders} of arguments given as NAME=FOLDER, in their order; the error calls the name `name_of`."""
    folders: dict[str, list[Path]] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not (name and folder):
            raise UserError(f"{option} {pair}: give it as {name_of}=FOLDER".lstrip())
        folders.setdefault(name, []).append(Path(folder))
    return folders


def mt_bench(
    model: Annotated[str, typer.Argument(help="the name that the endpoint calls it by, as its folder")],
    endpoint: Annotated[str, typer.Option(help=f"where MODEL is served, to /v1; its key in ${MODEL_KEY}")],
    questions: Annotated[Path, typer.Option(help="MT-Bench's question.jsonl")],
    judge_url: Annotated[str, typer.Option(help=f"OpenAI-compatible endpoint, to /v1; its key in ${JUDGE_KEY}")],
    judge_model: Annotated[str, typer.Option(help="the judge's name there")],
    out: Annotated[Path, typer.Option(help="folder for answers, ratings and results")],
    parallel: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="seconds for one reply")] = 600,
    references: Annotated[Path | None, typer.Option(help="MT-Bench's reference_answer/MODEL.jsonl")] = None,
    judge_price: Annotated[tuple[float, float], typer.Option(help="$ per million tokens, in and out: 2.5 10")] = (0, 0),
    limit: Annotated[int | None, typer.Option(min=2, help="only the first questions, for a first look")] = None,
    max_unrated: Annotated[int, typer.Option(min=0, help="questions that may be left without a rating")] = 0,
) -> None:
    """Score MODEL on MT-Bench with a judge model. Run again, it asks only for what is missing.

    Example: hermes3 mt-bench outputs/8b/dpo/merged --endpoint http://localhost:8000/v1 --questions question.jsonl
    --judge-url https://api.openai.com/v1 --judge-model gpt-4-0613 --out outputs/8b/eval/dpo/mt_bench
    """
    from hermes3.evaluate.mt_bench import Endpoint, load_questions, run

    answering = Endpoint(endpoint, model, os.environ.get(MODEL_KEY), timeout, parallel)
    judge = Endpoint(judge_url, judge_model, os.environ.get(JUDGE_KEY), timeout, parallel, judge_price)
    run(load_questions(questions, references), answering, judge, out, limit, max_unrated)
