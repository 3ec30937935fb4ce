"""Import the schemas of Axolotl and DeepSpeed without what they import beside them: 0.6 s instead of 15.

In place of torch, transformers and the like stand modules whose attributes are empty classes: enough for annotations
and subclasses. Whoever asks more of one gets `NeedsTorch`, and the whole is imported: no answer is invented.
"""

from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from hermes3.files import read_yaml

TABLE = read_yaml(Path(__file__).with_suffix(".yml"))
HEAVY = tuple(f"{name}." for name in TABLE["heavy"])


class NeedsTorch(BaseException):
    """A stand-in was asked for what only the real package knows. No validator may take it for its own error."""


class _StandIn(type):
    def __getattr__(cls, name: str) -> Any:
        return _attribute(cls, f"{cls.__module__}.{cls.__qualname__}", name)

    def _refuse(cls, *args: Any) -> Any:
        raise NeedsTorch(f"{cls.__module__}.{cls.__qualname__}")

    __bool__ = __contains__ = __iter__ = __len__ = _refuse

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._refuse() if cls.__dict__.get("stands_in") else super().__call__(*args, **kwargs)

    def __or__(cls, other: Any) -> Any:
        return Union[cls, other]  # noqa: UP007, an annotation `torch.Tensor | None`

    __ror__ = __or__

    def __getitem__(cls, key: Any) -> Any:
        return cls


def _attribute(owner: Any, path: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if (answer := TABLE["answers"].get(f"{path}.{name}")) is not None:
        return lambda: answer
    stand_in = _StandIn(name, (), {"__module__": path, "__qualname__": name, "stands_in": True})
    setattr(owner, name, stand_in)
    return stand_in


class Finder(MetaPathFinder, Loader):
    """Put first into `sys.meta_path`, for good, before anything heavy is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in TABLE["schemas"] or not f"{name}.".startswith(HEAVY):
            return None
        installed = PathFinder.find_spec(name, path)
        if installed is None and "." not in name:
            return None  # so that it is missed here as it would be without us
        spec = ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = list(getattr(installed, "submodule_search_locations", None) or [])
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: _attribute(module, module.__name__, name)
