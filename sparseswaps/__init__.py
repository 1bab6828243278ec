"""Pruning masks of large language models, refined by exact 1-swaps (arXiv 2512.10922)."""

from importlib import import_module
from typing import Any

_PUBLIC = {"apply_masks": "sparseswaps.apply", "keep_zeros": "sparseswaps.apply"}


def __getattr__(name: str) -> Any:
    """What users call, imported when it is: the workflow's quick stages need no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
