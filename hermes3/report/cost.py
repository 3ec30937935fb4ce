"""What a run cost, measured from the trainer's own log, beside the plan of its recipe and the paper."""

from pathlib import Path
from typing import Any

from hermes3.report.curves import find_log, read_history

PERF = "perf/tokens_per_second_per_gpu"  # our plugin's: tokens without padding, by the time of steps alone
PACKED, SHARE = "tokens/total", "perf/packing_efficiency"  # Axolotl's count over all ranks, padding included
PAIRS = "num_tokens"  # TRL's, over all ranks, without padding
TRAINABLE, TRAINABLE_RATE = "tokens/trainable", "tokens/train_per_sec_per_gpu"  # Axolotl's; saves count as time


def gpu_hours(history: list[dict[str, Any]]) -> float | None:
    """GPU-hours of all logged steps: each entry's tokens over the rate at which one GPU trained them.

    So neither the number of GPUs nor interruptions matter: time that no step was made in does not count. Entries
    without a rate, as the first after a start, take the mean of the others. None where the log has no rates.
    """
    seconds, counted, before = 0.0, 0, {"step": 0}
    for entry in (one for one in history if "loss" in one):
        found = _gpu_seconds(entry, before)
        if found is not None:
            seconds, counted = seconds + found, counted + entry["step"] - before["step"]
        before = entry
    return seconds / 3600 * before["step"] / counted if counted else None


def _gpu_seconds(entry: dict[str, Any], before: dict[str, Any]) -> float | None:
    if entry.get(PERF) and (key := next((key for key in (PACKED, PAIRS) if key in entry), None)):
        share = entry.get(SHARE, 1.0) if key == PACKED else 1.0
        return (entry[key] - before.get(key, 0)) * share / entry[PERF]
    if entry.get(TRAINABLE_RATE):
        return (entry[TRAINABLE] - before.get(TRAINABLE, 0)) / entry[TRAINABLE_RATE]
    return None


def cost_of(name: str, folder: Path, recipe: Path | None) -> dict[str, Any]:
    """GPU-hours measured, planned and the paper's; each None where it is not known, with the reason in `notes`."""
    history = read_history(find_log(folder))
    found: dict[str, Any] = {"run": name, "measured": gpu_hours(history), "planned": None, "paper": None, "gpu": None}
    notes = [] if found["measured"] else ["the log has no token rates (perf/*)"]
    if recipe is None:
        return found | {"notes": [*notes, "no recipe names this folder as its output_dir"]}
    from hermes3.recipe.paper import paper_of

    paper = paper_of(recipe)
    if paper is not None:
        found["paper"] = paper.gpu_hours
        if paper.gpu_hours is None:
            notes.append("the paper gives no GPU-hours for this phase")
    try:
        from hermes3.plan.plan import plan

        made = plan(recipe, packed=False)  # packing the mix again takes minutes
    except ValueError as error:
        return found | {"notes": [*notes, f"no plan: {error}"]}
    if made.gpu.is_cpu:
        return found | {"notes": [*notes, "planned are GPUs only"]}
    found |= {"planned": made.cost.gpu_hours, "gpu": f"{made.gpus} x {made.gpu.name}, {made.schedule.source}"}
    return found | {"notes": notes}
