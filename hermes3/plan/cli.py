"""The `hermes3 plan` verb."""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[Path, typer.Argument(help="a recipe, recipes/*.yml")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs, eight per node; default: the recipe's")] = None,
    gpu: Annotated[str | None, typer.Option(help="h100-80gb, h200, a100-80gb, ...; default: the recipe's")] = None,
    mix: Annotated[Path | None, typer.Option(help="a built mix; default: the recipe's, if it is built")] = None,
    mfu: Annotated[float | None, typer.Option(min=0.01, max=1, help="share of the peak; the nearest measured")] = None,
    host_memory: Annotated[float | None, typer.Option(min=0.001, help="GB of host memory per node")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="USD per GPU-hour")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="GB/s that a node writes to storage")] = None,
    network: Annotated[float | None, typer.Option(min=0.001, help="Gb/s per node, all of its adapters")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Print what RECIPE takes: memory, nodes, hours, storage, cost. Needs no GPU.

    Example: hermes3 plan recipes/8b_sft.yml --gpus 8
    """
    from hermes3.plan import plan as plans

    bytes_per_second, host_bytes = (value * 1e9 if value else None for value in (bandwidth, host_memory))
    planned = plans.plan(recipe, gpus, gpu, mix, mfu, price, bytes_per_second, host_bytes, network=network)
    if as_json:
        print(json.dumps(planned.as_json()))
    else:
        plans.show(planned)
