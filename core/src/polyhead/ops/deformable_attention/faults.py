"""How a kernel of multi-scale deformable attention can be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from polyhead.ops.faults import Fault, Function, negated, shifted, tail_dropped

__all__ = ["FAULTS"]


def _moved(function: Function) -> Function:
    """Take the corners of the map for the centres of its outermost pixels, as ``align_corners=True`` does."""

    def broken(**call: Any) -> Any:
        extents = torch.tensor([[width, height] for height, width in call["shapes"]], device=call["locations"].device)
        extents = extents.reshape(-1, 1, 2).clamp(min=1)
        locations = (call["locations"] * (extents - 1) + 0.5) / extents
        return function(**{**call, "locations": locations.to(call["locations"].dtype)})

    return broken


def _clamped(function: Function) -> Function:
    """Go on with the border's pixels outside of the map."""
    return lambda **call: function(**{**call, "locations": call["locations"].clamp(0, 1)})


def _turned(function: Function) -> Function:
    """Take x for y."""
    return lambda **call: function(**{**call, "locations": call["locations"].flip(-1)})


def _unweighted(function: Function) -> Function:
    """Forget the weights."""
    return lambda **call: function(**{**call, "weights": torch.ones_like(call["weights"])})


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("locations", 2),
    "missing scale": _unweighted,
    "dropped tail": tail_dropped("weights", 2),
    "aligned corners": _moved,
    "border outside": _clamped,
    "x for y": _turned,
}
"""By what is wrong."""
