"""Sizes at which softmax attention is measured, and what people write without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "sdpa"]


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Call PyTorch's own function; its triangle is aligned top left, which is the same for Sq = Sk."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _draw(shape: tuple[int, ...], options: dict[str, Any], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name in "qkv"}
    return Inputs(tensors, options, ("q", "k", "v"))


def _measure(name: str, shape: tuple[int, ...], **options: Any) -> Measure:
    here = "polyhead.ops.softmax_attention.measures"
    return Measure(name, shape, partial(_draw, shape, options), options, f"{here}:sdpa", "SDPA")


MEASURES = (
    _measure("B4 H8 S1024 D64", (4, 8, 1024, 64)),
    _measure("B4 H8 S1024 D64, causal", (4, 8, 1024, 64), causal=True),
    _measure("B1 H8 S4096 D64, causal", (1, 8, 4096, 64), causal=True),
)
