"""How a kernel of softmax attention can be wrong; it has no state that could be stale."""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.ops.faults import Fault, negated, shifted, tail_dropped, unscaled

__all__ = ["FAULTS"]

FAULTS: Mapping[str, Fault] = {
    "sign": negated,
    "off-by-one block": shifted("k", 2),
    "missing scale": unscaled("scale"),
    "dropped tail": tail_dropped("v", 2),
}
"""By what is wrong."""
