"""How a kernel of additive attention scores can be wrong; it has no state that could be stale."""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.ops.faults import Fault, Function, negated, shifted, tail_dropped

__all__ = ["FAULTS", "unbounded", "unlimited"]


def unbounded(function: Function) -> Function:
    """Leave out the factor in front of the outer tanh, and that tanh."""
    return lambda **call: function(**{**call, "clip": None})


def unlimited(name: str) -> Fault:
    """Let padding, or what the mask forbids, take part."""

    def fault(function: Function) -> Function:
        return lambda **call: function(**{**call, name: None})

    return fault


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unbounded,
    "dropped tail": tail_dropped("k", 2),
    "padded keys": unlimited("lengths"),
    "padded queries": unlimited("query_lengths"),
    "mask ignored": unlimited("mask"),
}
"""By what is wrong."""
