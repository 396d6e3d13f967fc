"""How a kernel of softmax attention can be wrong; it has no state that could be stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polyhead.ops.faults import Fault, Function, negated, shifted, tail_dropped, unscaled
from polyhead.ops.softmax_attention.patterns import BlockMask, Neighbourhood

__all__ = ["FAULTS"]


def _misplaced(function: Function) -> Function:
    """Give blocks of queries those of the next ones, and move windows at the border the other way."""

    def broken(**call: Any) -> Any:
        pattern = call.get("pattern")
        if isinstance(pattern, BlockMask):
            call["pattern"] = replace(pattern, rows=(*pattern.rows[1:], *pattern.rows[:1]))
        elif isinstance(pattern, Neighbourhood):
            call["pattern"] = replace(pattern, cut=not pattern.cut)
        return function(**call)

    return broken


FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unscaled("scale"),
    "dropped tail": tail_dropped("v", 2),
    "pattern misplaced": _misplaced,
}
"""By what is wrong."""
