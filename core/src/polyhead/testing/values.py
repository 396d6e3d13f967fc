"""Walk through what models and sources give: tensors in mappings, tuples and lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["difference", "first_axis", "leaves", "map_tensors", "rows"]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path, such as ``("boxes[0]", tensor)``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, item in zip(value._fields, value, strict=True):
            yield from leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    else:
        yield name or "value", value


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to every tensor in mappings, tuples and lists."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def rows(value: Any, chosen: Sequence[int]) -> Any:
    """Return the samples ``chosen`` of a batch or prediction: along the first axis of tensors, arrays and lists."""
    if isinstance(value, Tensor | np.ndarray):
        return value[list(chosen)]
    if isinstance(value, Mapping):
        return {key: rows(item, chosen) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rows(item, chosen) for item in value))
    if isinstance(value, tuple):
        return tuple(rows(item, chosen) for item in value)
    if isinstance(value, list):
        return [value[i] for i in chosen]
    return value


def first_axis(value: Any) -> int | None:
    """Return the length of a batch entry's first axis; None if it has none."""
    if isinstance(value, Tensor | np.ndarray):
        return value.shape[0] if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None


def difference(a: Any, b: Any, *, rtol: float = 0.0, atol: float = 0.0) -> str:
    """Return in words where two values differ; empty if they are equal to the tolerances. NaN equals NaN."""
    mine, theirs = dict(leaves(a)), dict(leaves(b))
    if mine.keys() != theirs.keys():
        return f"one has {', '.join(mine) or 'nothing'} and the other {', '.join(theirs) or 'nothing'}"
    for name, left in mine.items():
        if text := _leaf_difference(left, theirs[name], rtol, atol):
            return f"{name} {text}"
    return ""


def _leaf_difference(a: Any, b: Any, rtol: float, atol: float) -> str:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind in "biufc" and b.dtype.kind in "biufc":
        a, b = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        same = type(a) is type(b) and (bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b))
        return "" if same or (a != a and b != b) else f"is {a!r} once and {b!r} then"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"has shape {tuple(a.shape)} and dtype {a.dtype} once, {tuple(b.shape)} and {b.dtype} then"
    a, b = a.detach(), b.detach()
    if not (a.is_floating_point() or a.is_complex()):
        wrong = a != b
    else:
        wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return ""
    where = tuple(int(i) for i in wrong.nonzero()[0]) if a.ndim else ()
    return f"differs in {int(wrong.sum())} of {wrong.numel()} elements, first at {where}: {a[where]} and {b[where]}"
