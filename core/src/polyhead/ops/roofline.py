"""The least time that a call can take on known devices: counted arithmetic and traffic over what the device has.

Peaks are the vendors' figures for dense products, without sparsity, at full power: NVIDIA A100 80GB SXM datasheet
(2021), H100 SXM datasheet (2023), HGX B200 datasheet (2025, an eighth of the board), AMD Instinct MI300X datasheet
(2023). A kernel that reaches 70 % of such a bound is a very good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyhead.ops.spec import Cost

__all__ = ["DEVICES", "Device"]


@dataclass(frozen=True)
class Device:
    """What a device can do in a second."""

    name: str
    target: str
    """The device family that programs are compiled for."""
    flops_per_s: Mapping[str, float]
    """By dtype; "tf32" for float32 products in reduced precision."""
    bytes_per_s: float

    def bound(self, cost: Cost, dtype: str) -> dict[str, Any]:
        """Return the least time in seconds, and whether arithmetic or memory traffic sets it."""
        arithmetic, traffic = cost.flops / self.flops_per_s[dtype], cost.bytes / self.bytes_per_s
        return {"seconds": max(arithmetic, traffic), "by": "arithmetic" if arithmetic > traffic else "memory"}


def _device(name: str, target: str, terabytes: float, **teraflops: float) -> Device:
    sixteen = teraflops.pop("sixteen")
    peaks = {**teraflops, "bfloat16": sixteen, "float16": sixteen}
    return Device(name, target, {dtype: 1e12 * peak for dtype, peak in peaks.items()}, 1e12 * terabytes)


DEVICES = (
    _device("A100", "sm_80", 2.039, float64=19.5, float32=19.5, tf32=156, sixteen=312),
    _device("H100", "sm_90", 3.35, float64=67, float32=67, tf32=494.7, sixteen=989.4),
    _device("B200", "sm_100", 8.0, float64=37, float32=75, tf32=1125, sixteen=2250),
    _device("MI300X", "gfx942", 5.3, float64=163.4, float32=163.4, tf32=653.7, sixteen=1307.4),
)
