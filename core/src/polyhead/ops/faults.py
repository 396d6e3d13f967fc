"""Ways to break a kernel, with which `kernels verify --self-test` shows that an operator's cases would catch each one.

A fault takes a kernel's function and returns one that makes a mistake which people make when they write kernels. An
operator names its own in ``FAULTS`` of its ``faults`` module, by what is wrong; the gradients' are added for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["BLOCK", "Fault", "Function", "negated", "shifted", "stale", "tail_dropped", "unscaled"]

Function = Callable[..., Any]
"""A kernel: takes the call's tensors and options as keywords, returns the operator's NamedTuple."""
Fault = Callable[[Function], Function]
BLOCK = 16
"""The block that the broken kernels pretend to have: the smallest one that a matrix unit takes."""


def negated(function: Function) -> Function:
    """Give every result the wrong sign."""

    def broken(**arguments: Any) -> Any:
        return tree_map(_minus, function(**arguments))

    return broken


def shifted(name: str, axis: int, block: int = BLOCK) -> Fault:
    """Read a tensor one row too early in every block but the first."""

    def fault(function: Function) -> Function:
        def broken(**arguments: Any) -> Any:
            x = arguments[name]
            if x is not None and x.shape[axis] > block:
                rest = x.narrow(axis, block - 1, x.shape[axis] - block)
                arguments[name] = torch.cat([x.narrow(axis, 0, block), rest], axis)
            return function(**arguments)

        return broken

    return fault


def unscaled(option: str = "scale", value: float = 1.0) -> Fault:
    """Forget a factor."""

    def fault(function: Function) -> Function:
        def broken(**arguments: Any) -> Any:
            return function(**{**arguments, option: value})

        return broken

    return fault


def tail_dropped(name: str, axis: int, block: int = BLOCK, fill: float = 0.0) -> Fault:
    """Leave out what a tensor holds past the last whole block, where there is a whole one."""

    def fault(function: Function) -> Function:
        def broken(**arguments: Any) -> Any:
            x = arguments[name]
            if x is not None and x.shape[axis] > block and (tail := x.shape[axis] % block):
                whole = x.narrow(axis, 0, x.shape[axis] - tail)
                gone = torch.full_like(x.narrow(axis, 0, tail), fill)
                arguments[name] = torch.cat([whole, gone], axis)
            return function(**arguments)

        return broken

    return fault


def stale(field: str, axes: Mapping[str, int]) -> Fault:
    """Return a state that the last token has not reached.

    Args:
        field: the state in the operator's result.
        axes: by tensor with tokens, their axis; one with fewer axes has no tokens.
    """

    def fault(function: Function) -> Function:
        def broken(**arguments: Any) -> Any:
            before = dict(arguments)
            for name, axis in axes.items():
                x = arguments[name]
                if x is not None and x.ndim > axis and x.shape[axis]:
                    before[name] = x.narrow(axis, 0, x.shape[axis] - 1)
            return function(**arguments)._replace(**{field: getattr(function(**before), field)})

        return broken

    return fault


def _minus(x: Any) -> Any:
    return -x if isinstance(x, Tensor) and x.is_floating_point() else x
