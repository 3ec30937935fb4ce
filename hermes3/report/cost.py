"""What a run cost, measured from the trainer's own log, beside the plan of its recipe and the paper."""

from pathlib import Path
from typing import Any

from hermes3.report.curves import find_log, read_history

TOKENS, RATE = "tokens/trainable", "tokens/train_per_sec_per_gpu"  # Axolotl's: over all ranks, and of one


def gpu_hours(history: list[dict[str, Any]]) -> float | None:
    """GPU-hours of all logged steps: tokens that bear loss over the rate at which one GPU trained them, an entry each.

    So neither the number of GPUs nor interruptions matter: time that no step was made in does not count. Entries
    without a rate, as the first after a start, take the mean of the others. None where the log has no rates.
    """
    done = counted = seconds = 0.0
    for entry in history:
        if TOKENS not in entry:
            continue
        tokens, done = max(entry[TOKENS] - done, 0.0), float(entry[TOKENS])
        if entry.get(RATE):
            counted, seconds = counted + tokens, seconds + tokens / entry[RATE]
    return seconds / 3600 * done / counted if counted else None


def cost_of(name: str, folder: Path, recipe: Path | None) -> dict[str, Any]:
    """GPU-hours measured, planned and the paper's; each None where it is not known, with the reason in `notes`."""
    history = read_history(find_log(folder))
    found: dict[str, Any] = {"run": name, "measured": gpu_hours(history), "planned": None, "paper": None, "gpu": None}
    notes = [] if found["measured"] else ["the log has no token rates; set include_tokens_per_second"]
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
