"""Have Axolotl's configuration note who reads which of its keys."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

# What reads everything, or reads in order to judge: no evidence that a key acts
NO_READERS = re.compile(
    r"axolotl/(utils/schemas|telemetry)/|/(validate_config|load_cfg|generate_dataset_hash_from_config|_get_hash_field)$"
)


def watch(readers: dict[str, list[str]], config_path: str, data_under: str) -> None:
    """Have Axolotl's configuration class note who reads which key. For this process, and for good.

    The configuration, and an entry of its `datasets`, are known by what they hold, so that a copy of either counts too.
    Copying reads nothing: `dict(cfg)` and `**cfg` do not ask for single keys.
    """
    from axolotl.utils.dict import DictDefault

    def note(self: DictDefault, key: Any, frame: FrameType | None) -> None:
        if dict.get(self, "axolotl_config_path") == config_path:
            name = str(key)
        elif str(dict.get(self, "path")).startswith(data_under):
            name = f"datasets.{key}"
        else:
            return
        while frame and frame.f_code.co_filename.endswith(("/addict.py", "axolotl/utils/dict.py", __file__)):
            frame = frame.f_back
        where = short_name(frame.f_code.co_filename)
        if NO_READERS.search(f"{where}/{frame.f_code.co_name}"):
            return
        line = f"{where}:{frame.f_lineno}"
        known = readers.setdefault(name, [])
        if line not in known:
            known.append(line)

    getitem, get = DictDefault.__getitem__, DictDefault.get

    def noted_getitem(self, key):
        note(self, key, sys._getframe(1))
        return getitem(self, key)

    def noted_get(self, key, default=None):
        note(self, key, sys._getframe(1))
        return get(self, key, default)

    DictDefault.__getitem__, DictDefault.get = noted_getitem, noted_get


def short_name(filename: str) -> str:
    """`axolotl/core/builders/base.py`, `hermes3/train/plugin.py`."""
    root = str(Path(__file__).parents[2])
    return filename.rpartition("site-packages/")[2].removeprefix(root + "/")
