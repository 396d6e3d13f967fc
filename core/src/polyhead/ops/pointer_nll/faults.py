"""How a kernel of a pointer's loss can be wrong; it has no state that could be stale."""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.ops.additive_attention_scores.faults import unbounded, unlimited
from polyhead.ops.faults import Fault, Function, negated, shifted, tail_dropped

__all__ = ["FAULTS"]


def _late(function: Function) -> Function:
    """Count keys from 1, as the field's files do."""
    return lambda **call: function(**{**call, "targets": call["targets"] - 1})


def _clamped(function: Function) -> Function:
    """Take the nearest key for a target that is none."""
    return lambda **call: function(**{**call, "targets": call["targets"].clamp(0, max(call["k"].shape[2] - 1, 0))})


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unbounded,
    "dropped tail": tail_dropped("k", 2),
    "padded keys": unlimited("lengths"),
    "padded queries": unlimited("query_lengths"),
    "mask ignored": unlimited("mask"),
    "targets from 1": _late,
    "targets clamped": _clamped,
}
"""By what is wrong."""
