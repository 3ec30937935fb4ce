"""What a batch script must know of a recipe, in one line.

NODES GPUS_PER_NODE GPU STAMP, e.g. `16 8 h100-80gb mixes/hermes3_sft/prepared/recipe-1f0a...`. GPU is `cpu` where
processes take the place of GPUs. STAMP is the file that says that the mix is prepared for this very recipe: it lies in
the mix's prepared data, and so goes with them.
"""

from pathlib import Path

from hermes3.files import sha256
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import read


def declared(path: Path) -> str:
    """The line. `ValueError` names the file, the key and the remedy."""
    recipe = read(path)
    hardware = hardware_of(path, recipe)
    prepared = recipe.get("dataset_prepared_path")
    if not prepared:
        raise ValueError(f"{path}: dataset_prepared_path is missing; set it to `prepared` in the folder of the mix")
    return f"{hardware.nodes} {hardware.gpus_per_node} {hardware.gpu} {prepared}/recipe-{sha256(path)[:12]}"
