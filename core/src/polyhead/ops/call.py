"""One call of an operator, described so that a kernel can say whether it serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Call", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """What ``explain`` knows of a tensor that does not exist; carries the attributes that kernels ask of a real one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False


@dataclass(frozen=True)
class Call:
    """The validated arguments of one call; a kernel is run as ``function(**call.tensors, **call.options)``."""

    operator: str
    tensors: Mapping[str, Any]
    """Tensor, TensorInfo or None by argument name. The first one decides dtype and device."""
    options: Mapping[str, Any]
    """The other arguments by name, defaults filled in."""
    length: int
    """The size that ``KernelSpec.wins_from`` is compared with, usually the number of keys."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first tensor."""
        return next(iter(self.tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return next(iter(self.tensors.values())).device

    @property
    def needs_grad(self) -> bool:
        """Whether autograd will ask for gradients of this call."""
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in self.tensors.values())

    def __str__(self) -> str:
        """Return shapes, dtype, device and options, for messages."""
        parts = [f"{name} {tuple(x.shape)}" for name, x in self.tensors.items() if isinstance(x, Tensor | TensorInfo)]
        parts += [f"dtype {name_of(self.dtype)}", f"device {self.device}"]
        parts += [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join(parts)


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name as people type it.

    >>> name_of(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")
