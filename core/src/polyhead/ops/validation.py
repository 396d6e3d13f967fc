"""Checks that operators share. They look at shapes, dtypes and devices only, which torch.compile can trace."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.call import name_of

__all__ = ["autocast_dtype", "autocasted", "check_broadcast", "check_floating", "check_grouped", "check_ndim", "shapes"]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of the autocast region around this call, or None outside of one."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def autocasted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors as an autocast region casts the inputs of a matrix product: float64 stays."""
    dtype = autocast_dtype(tensors[0].device)
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def shapes(**tensors: Tensor | None) -> str:
    """Return names with shapes, for messages.

    >>> import torch
    >>> shapes(q=torch.ones(2, 3), mask=None)
    'q (2, 3)'
    """
    return ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items() if x is not None)


def check_ndim(ndim: int, layout: str, **tensors: Tensor) -> None:
    """Refuse tensors of another rank than the operator's layout, such as "(batch, heads, seq, head_dim)"."""
    for name, x in tensors.items():
        if x.ndim != ndim:
            raise ShapeError(f"{name} has {x.ndim} dimensions, expected {ndim}: {layout}. {shapes(**tensors)}.")


def check_floating(**tensors: Tensor) -> None:
    """Refuse tensors that are not float or differ from the first in dtype or device."""
    first, like = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not x.dtype.is_floating_point:
            raise DtypeError(f"{name} is {name_of(x.dtype)}, expected a float dtype. Convert it with {name}.float().")
        if x.dtype != like.dtype:
            raise DtypeError(
                f"{name} is {name_of(x.dtype)} and {first} is {name_of(like.dtype)}: both must have the same dtype. "
                f"Convert one, or run under torch.autocast what made them."
            )
        if x.device != like.device:
            raise DtypeError(f"{name} is on {x.device} and {first} on {like.device}: move one of them.")


def check_grouped(q: Tensor, k: Tensor) -> None:
    """Refuse head counts that cannot be grouped: each key head serves the same number of query heads."""
    heads, groups = q.shape[1], k.shape[1]
    if groups == 0 or heads % groups:
        raise ShapeError(
            f"k has {groups} heads and q has {heads}: heads of q must be a multiple of heads of k. {shapes(q=q, k=k)}."
        )


def check_broadcast(name: str, x: Tensor, target: Sequence[int], layout: str) -> Tensor:
    """Return ``x`` with as many dimensions as ``target``, which it must be broadcastable to."""
    sizes = tuple(x.shape)
    if x.ndim > len(target) or any(size not in (1, t) for size, t in zip(sizes[::-1], target[::-1], strict=False)):
        raise ShapeError(f"{name} {sizes} does not broadcast to {layout} = {tuple(target)}.")
    return x.reshape((1,) * (len(target) - x.ndim) + sizes)
