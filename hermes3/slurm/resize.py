"""A recipe for another number of nodes than it declares, at the same global batch: its text with two values changed."""

from pathlib import Path

import yaml

from hermes3.files import write_text
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import read


def resize(path: Path, nodes: int, out: Path) -> Path:
    """Write the recipe at `path` for `nodes` nodes into the folder `out`, under its own name; returns the new file.

    gradient_accumulation_steps is set so that micro_batch_size x gradient_accumulation_steps x GPUs stays. Raises
    ValueError naming the numbers of nodes that can, when this one cannot.
    """
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    micro, accumulation = (recipe.get(key) or 1 for key in ("micro_batch_size", "gradient_accumulation_steps"))
    slots = accumulation * hardware.nodes  # micro-batches of a step that a GPU of each node takes, over all nodes
    if slots % nodes:
        possible = ", ".join(str(n) for n in range(1, slots + 1) if slots % n == 0)
        raise ValueError(
            f"--nodes {nodes}: {path} has a global batch of {micro * accumulation * hardware.gpus}, which {nodes} "
            f"nodes of {hardware.gpus_per_node} GPUs cannot make with micro_batch_size {micro}; take {possible}"
        )
    text = path.read_text(encoding="utf-8")
    why = f"ours: {nodes} nodes at launch, where {path} has {hardware.nodes}; the global batch stays"
    given = f"{{gpu: {hardware.gpu}, nodes: {nodes}, gpus_per_node: {hardware.gpus_per_node}}}"
    text = _set(text, "hardware", f"{given}  # {why}")
    text = _set(text, "gradient_accumulation_steps", f"{slots // nodes}  # {why}")
    write_text(out / path.name, text)
    return out / path.name


def _set(text: str, key: str, value: str) -> str:
    """`text` with the top-level `key` set to `value`, comment included, where it was or on a new last line."""
    lines = text.splitlines(keepends=True)
    node = yaml.compose(text)
    for name, old in node.value:
        if name.value == key:
            # a mapping written over several lines ends at the start of the next key's line
            last = old.end_mark.line + (old.end_mark.column > 0)
            return "".join([*lines[: name.start_mark.line], f"{key}: {value}\n", *lines[last:]])
    return text.rstrip("\n") + f"\n{key}: {value}\n"
