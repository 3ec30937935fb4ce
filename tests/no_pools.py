"""datasets 5 starts a process where `num_proc` is 1: a fork of all that torch has loaded, seconds for a few rows."""

from functools import wraps

from datasets import Dataset


def in_process(method):
    @wraps(method)
    def call(self, *args, num_proc=None, **kwargs):
        return method(self, *args, num_proc=None if num_proc == 1 else num_proc, **kwargs)

    return call


METHODS = {name: in_process(getattr(Dataset, name)) for name in ("map", "filter", "save_to_disk")}


def use() -> None:
    """For the life of this process."""
    for name, method in METHODS.items():
        setattr(Dataset, name, method)
