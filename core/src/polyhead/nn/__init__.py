"""Modules built on the operators, one file a module; names resolve when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead.nn.reduced_batch_norm import ReducedBatchNorm

__all__ = ["ReducedBatchNorm"]

_MODULES = {"ReducedBatchNorm": "polyhead.nn.reduced_batch_norm"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
