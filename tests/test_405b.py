"""docs/405b.md: its tables and figures are the plan's."""

from functools import lru_cache
from pathlib import Path

import pytest

from hermes3.files import ROOT
from hermes3.plan.plan import Plan, plan

PAGE = (ROOT / "docs/405b.md").read_text(encoding="utf-8")
GPUS = ("h100-80gb", "h200", "b200")
RECIPES = {"SFT": "recipes/405b_sft.yml", "DPO": "recipes/405b_dpo.yml"}


@lru_cache
def planned(recipe: str, gpu: str) -> Plan:
    return plan(Path(recipe), gpu=gpu, packed=False)


def cost_row(stage: str, gpu: str) -> str:
    one = planned(RECIPES[stage], gpu)
    cost, fewest = one.cost, one.best()["cheapest"]
    return (
        f"| {stage} | {one.gpus} {gpu} | {cost.hours:.1f} | {cost.gpu_hours:,.0f} | {cost.usd:,.0f} "
        f"| {fewest} ({one.choices[fewest][0]:.1f} h) |"
    )


def memory_rows(stage: str) -> list[str]:
    """A row per way of sharding: the peak of a GPU and of a host in GB, and the fewest nodes, on each GPU."""
    plans = [planned(RECIPES[stage], gpu) for gpu in GPUS]
    rows = []
    for n, own in enumerate(plans[0].settings):
        nodes = [one.nodes_to_run[own.setting.name] or "–" for one in plans]
        gpu, host = (sum(parts.values()) / 1e9 for parts in (own.gpu, own.host))
        name = own.setting.name + (" (the recipe's)" if n == 0 else "")
        rows.append(f"| {stage} | {name} | {gpu:.1f} | {host:,.0f} | " + " | ".join(map(str, nodes)) + " |")
    return rows


@pytest.mark.parametrize("stage", RECIPES)
def test_hours_cost_and_memory_are_the_plans(stage):
    rows = [cost_row(stage, gpu) for gpu in GPUS] + memory_rows(stage)
    assert [row for row in rows if row not in PAGE] == []


def test_bytes_and_times_are_the_plans():
    own = planned(RECIPES["SFT"], "h100-80gb")
    saves, steps = own.checkpoints, own.schedule.steps
    for text in (
        f"{saves.weights / 1e9:.0f} GB of weights",
        f"{saves.state / 1e12:.1f} TB per checkpoint, written in {saves.state_seconds / 60:.1f} minutes",
        f"{saves.storage / 1e12:.1f} TB for {saves.kept} checkpoints at once",
        f"{steps:,} steps of {own.cost.step_seconds:.0f} s",
        f"every {saves.interval_seconds / 3600:.1f} hours",
        f"{100 * own.cost.interruption_chance:.1f} % chance of an interruption",
    ):
        assert text in PAGE, text
