"""hermes3: the thin Python layer under the recipes (mix, chat format, evaluation, report)."""

__version__ = "0.1.0"
