"""Why the kernels for sparse patterns cannot serve a call."""

from __future__ import annotations

import torch

from polyhead.ops.call import Call

__all__ = ["flex", "tiled"]

_NARROWEST = 16
"""What a matrix unit takes."""


def tiled(call: Call) -> list[str]:
    """Return why the tiles do not serve a call."""
    if call.options.get("pattern") is None:
        return ["there is no pattern"]
    reasons = []
    if call.tensors["bias"] is not None:
        reasons.append("there is a bias")
    if call.options["heads"] is not None:
        reasons.append("weights are asked for")
    # torch.autograd.Function asks the same private question; there is no public one.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        reasons.append("the call is traced (kernel torch can be)")
    return reasons


def flex(call: Call) -> list[str]:
    """Return why FlexAttention does not serve a call."""
    reasons = tiled(call)
    if call.options.get("pattern") is None:
        return reasons
    if call.tensors["mask"] is not None:
        reasons.append("there is a mask")
    for name, width in (("head_dim", call.tensors["q"].shape[-1]), ("value_dim", call.tensors["v"].shape[-1])):
        if width < _NARROWEST or width & (width - 1):
            reasons.append(f"{name} is {width} (needs a power of two from {_NARROWEST} on)")
    if 0 in call.tensors["q"].shape or 0 in call.tensors["v"].shape:
        reasons.append("there is nothing to attend")
    return reasons
