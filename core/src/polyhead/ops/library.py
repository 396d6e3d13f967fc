"""Register hand-written kernels with torch.library, so that torch.compile, torch.export and opcheck know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from polyhead.errors import KernelError

__all__ = ["distinct", "register"]

NAMESPACE = "polyhead"
_BARE = (
    "torch.ops.polyhead.{name} has no gradients: an exported program computes none. "
    "Train the model that was exported, or call the operator of polyhead.ops."
)
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *, backward_of: str | None = None
) -> Callable[..., Any]:
    """Register an operator and return it.

    Args:
        schema: in torch.library's language, without the namespace.
        kernel: runs on every device; autograd is no business of its own.
        fake: the same signature, returns empty tensors of the right shapes, dtypes and devices.
        backward_of: ``"KERNEL of OPERATOR"`` if this computes gradients: a gradient of those is refused with the mend.

    Returns:
        The operator, to be called inside of a ``torch.autograd.Function``. An exported program calls it bare; it runs
        with gradients enabled, and only asking for them is refused.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    refusal = _BARE.format(name=name) if backward_of is None else _second(backward_of)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", _refusing(refusal), lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors, a view instead of one that was there before.

    torch.compile does not trace a ``torch.autograd.Function`` that is given the same tensor twice, such as q and k.
    """
    seen: list[Tensor] = []
    for x in tensors:
        if x is not None:
            seen.append(x.view_as(x) if any(x is other for other in seen) else x)
    rest = iter(seen)
    return tuple(None if x is None else next(rest) for x in tensors)


def _second(owner: str) -> str:
    kernel, _, operator = owner.partition(" of ")
    return (
        f'Kernel "{kernel}" of {operator} has no gradients of gradients. '
        f'Run the forward pass under polyhead.use_kernel({operator}="reference").'
    )


def _refusing(text: str) -> Callable[..., NoReturn]:
    def refuse(_ctx: Any, *_gradients: Any) -> NoReturn:
        raise KernelError(text)

    return refuse
