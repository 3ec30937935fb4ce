"""The keys of `fsdp_config`, under the names that Axolotl reads them by."""

from typing import Any


def fsdp_config(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's `fsdp_config` without the deprecated prefix `fsdp_`; {} without one.

    As Axolotl's `check_fsdp_config_kwargs_prefix` does it: of a key with and without the prefix the later one counts.
    """
    given = recipe.get("fsdp_config") or {}
    return {key if key == "fsdp_version" else key.removeprefix("fsdp_"): value for key, value in given.items()}
