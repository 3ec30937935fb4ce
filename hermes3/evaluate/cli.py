"""The verbs `hermes3 eval` and `hermes3 select`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Backend(StrEnum):
    hf = "hf"
    vllm = "vllm"


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="folder of a whole model, or with --epoch of a training run")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the results")] = None,
    suite: Annotated[str, typer.Option(help="a name in eval/suites, or a file")] = "tiny",
    backend: Annotated[Backend, typer.Option(help="vllm needs the environment of requirements-eval.txt")] = Backend.hf,
    epoch: Annotated[int | None, typer.Option(min=1, help="which epoch of the run MODEL")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions a task, for a first look")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; the suite's by default")] = None,
    model_args: Annotated[str, typer.Option(help="more of lm_eval's --model_args: tensor_parallel_size=8")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the lm_eval commands, do not run them")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="no MODEL: only fetch the questions, for nodes without a network")
    ] = False,
) -> None:
    """Evaluate MODEL with lm-eval, through its own chat template; tasks whose results are whole are not run again."""
    from hermes3.evaluate.epoch import epoch_model
    from hermes3.evaluate.run import run
    from hermes3.evaluate.suite import load

    given = {"limit": limit, "device": device}
    loaded = load(suite).model_copy(update={key: value for key, value in given.items() if value is not None})
    if fetch:
        from hermes3.evaluate.fetch import fetch as fetch_questions

        return fetch_questions(loaded)
    if model is None or out is None:
        raise ValueError("give MODEL and --out FOLDER; --fetch alone needs neither")
    if epoch is not None:
        model = epoch_model(model, epoch, make=not dry_run)
    run(model, out, loaded, backend.value, model_args, dry_run)
    for name, group in loaded.groups.items():
        if group.by == "mt_bench":
            options = "--questions FILE --judge-url URL --judge-model NAME"
            print(f"{name} is not lm-eval's: hermes3 mt-bench {model} --out {out / 'mt_bench'} {options}")


def select(
    run: Annotated[Path | None, typer.Argument(help="folder of the training run")] = None,
    results: Annotated[list[str] | None, typer.Argument(help="EPOCH=FOLDER of its results, for every epoch")] = None,
    suite: Annotated[str, typer.Option(help="its groups are what counts: a name in eval/suites, or a file")] = "tiny",
    without: Annotated[list[str], typer.Option(help="leave out this group, as MT-Bench")] = [],  # noqa: B006
    published: Annotated[str | None, typer.Option(help="apply the rule to a table of eval/published: table2")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Choose an epoch of RUN by the paper's rule, and link RUN/best to its model, RUN/best_results to its results."""
    from hermes3.evaluate import select as rule

    if published:
        from hermes3.evaluate.published import select_published

        chosen = select_published(published)
    else:
        if run is None or not results:
            raise ValueError("give RUN and EPOCH=FOLDER for every epoch, or --published table2")
        chosen = rule.select(run, suite, rule.named(results), without)
    print(json.dumps(chosen) if as_json else rule.table(chosen))
