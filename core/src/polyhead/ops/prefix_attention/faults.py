"""How a kernel of attention over prefixes can be wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from polyhead.ops.faults import Fault, Function, negated, shifted, stale, tail_dropped, unscaled

__all__ = ["FAULTS"]


def _restarted(function: Function) -> Function:
    """Start without tokens whatever state is given."""
    return lambda **call: function(
        **{
            **call,
            "m": torch.full_like(call["m"], -torch.inf),
            "u": torch.zeros_like(call["u"]),
            "w": torch.zeros_like(call["w"]),
        }
    )


def _from_zero(function: Function) -> Function:
    """Start the running maximum at 0, with which very low logits underflow."""
    return lambda **call: function(**{**call, "m": call["m"].clamp(min=0)})


def _unmasked(function: Function) -> Function:
    """Attend padding."""
    return lambda **call: function(**{**call, "key_mask": None})


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unscaled("scale"),
    "dropped tail": tail_dropped("v", 2),
    "stale state": stale("final_state", {"k": 2, "v": 2, "key_mask": 1}),
    "state not taken over": _restarted,
    "maximum that starts at 0": _from_zero,
    "padding attended": _unmasked,
}
"""By what is wrong."""
