"""The `hermes3 plan` verb."""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[Path, typer.Argument(help="a recipe, recipes/*.yml")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs, eight a node; the recipe's by default")] = None,
    gpu: Annotated[str | None, typer.Option(help="h100-80gb, h200, a100-80gb, ...; the recipe's by default")] = None,
    mix: Annotated[Path | None, typer.Option(help="a built mix; the recipe's by default, if it is built")] = None,
    mfu: Annotated[float | None, typer.Option(min=0.01, max=1, help="share of the peak FLOP/s; the paper's")] = None,
    host_memory: Annotated[float | None, typer.Option(min=0.001, help="GB of host memory a node")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="USD a GPU-hour")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="GB/s that a node writes to storage")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say what RECIPE takes before it runs: steps, memory, nodes, hours, checkpoints, money."""
    from hermes3.plan.plan import plan as make

    made = make(
        recipe,
        gpus,
        gpu,
        mix,
        mfu,
        price,
        bandwidth=bandwidth * 1e9 if bandwidth else None,
        host_memory=host_memory * 1e9 if host_memory else None,
    )
    if as_json:
        print(json.dumps(made.as_json()))
    else:
        from hermes3.plan.text import show

        show(made)
