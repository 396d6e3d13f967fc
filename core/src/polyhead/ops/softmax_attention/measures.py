"""Sizes at which softmax attention is measured, and what people write without it."""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.softmax_attention.patterns import Neighbourhood, Pattern
from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "sdpa"]


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, pattern: Pattern | None = None) -> Tensor:
    """Call PyTorch's own function, a pattern as a mask; its triangle is top left, which is the same for Sq = Sk."""
    mask = None if pattern is None else _mask(pattern, q.shape[2], k.shape[2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


@lru_cache(maxsize=1)
def _mask(pattern: Pattern, queries: int, keys: int, device: torch.device) -> Tensor:
    """Make the mask once, as people do."""
    return pattern.materialise(queries, keys, device)


def _draw(shape: tuple[int, ...], options: dict[str, Any], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name in "qkv"}
    return Inputs(tensors, options, ("q", "k", "v"))


def _measure(name: str, shape: tuple[int, ...], **options: Any) -> Measure:
    here = "polyhead.ops.softmax_attention.measures"
    return Measure(name, shape, partial(_draw, shape, options), options, f"{here}:sdpa", "SDPA")


def _around(grid: tuple[int, ...], window: tuple[int, ...]) -> Measure:
    shape, pattern = (1, 8, prod(grid), 64), Neighbourhood(grid, window)
    texts = {name: "x".join(map(str, sizes)) for name, sizes in (("grid", grid), ("window", window))}
    name = f"B1 H8 D64, {texts['window']} on {texts['grid']}"
    make = partial(_draw, shape, {"pattern": pattern})
    return Measure(name, shape, make, texts, "polyhead.ops.softmax_attention.measures:sdpa", "SDPA, masked")


MEASURES = (
    _measure("B4 H8 S1024 D64", (4, 8, 1024, 64)),
    _measure("B4 H8 S1024 D64, causal", (4, 8, 1024, 64), causal=True),
    _measure("B1 H8 S4096 D64, causal", (1, 8, 4096, 64), causal=True),
    _around((4096,), (255,)),
    _around((56, 56), (7, 7)),
)
