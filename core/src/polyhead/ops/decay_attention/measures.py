"""Sizes at which linear attention with decay is measured, beside the quadratic attention that it replaces."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.decay_attention.slopes import lightning_slopes
from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "sdpa"]


def sdpa(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """Attend causally with a softmax: another function, for the same layer of a network."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _draw(shape: tuple[int, int, int, int], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    tensors = {name: (0.1 * torch.randn(shape, generator=generator)).to(dtype) for name in "qkv"}
    tensors["log_decay"] = -lightning_slopes(shape[1])
    return Inputs(tensors, {}, ("q", "k", "v"))


def _measure(batch: int, heads: int, length: int, dim: int) -> Measure:
    shape = (batch, heads, length, dim)
    name = f"B{batch} H{heads} S{length} D{dim}"
    peer = "polyhead.ops.decay_attention.measures:sdpa"
    return Measure(name, shape, partial(_draw, shape), peer=peer, peer_name="SDPA, causal", same=False)


MEASURES = (_measure(1, 8, 8192, 64), _measure(1, 8, 2048, 64), _measure(4, 16, 2048, 128))
