"""How a kernel of linear attention with decay can be wrong."""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.ops.faults import Fault, Function, negated, shifted, stale, tail_dropped, unscaled

__all__ = ["FAULTS"]

_TOKENS = {"q": 2, "k": 2, "v": 2, "log_decay": 2}


def _stale(function: Function) -> Function:
    """Let the final state lag a token behind; where sequences are packed, it stays right."""
    lagging = stale("final_state", _TOKENS)(function)
    return lambda **call: function(**call) if call["cu_seqlens"] is not None else lagging(**call)


def _restarted(function: Function) -> Function:
    """Start from zeros whatever state is given."""
    return lambda **call: function(**{**call, "initial_state": None})


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unscaled("scale"),
    "dropped tail": tail_dropped("v", 2),
    "stale state": _stale,
    "state not taken over": _restarted,
}
"""By what is wrong."""
