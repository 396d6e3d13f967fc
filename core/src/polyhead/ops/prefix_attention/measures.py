"""Sizes at which attention over prefixes is measured, and what people write without it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "sdpa"]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Repeat the query at every position, in memory of its own, and attend causally."""
    repeated = q[None, :, None].expand(k.shape[0], -1, k.shape[2], -1).contiguous()
    return F.scaled_dot_product_attention(repeated, k, v, is_causal=True)


def _draw(shape: tuple[int, int, int, int], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name in "kv"}
    tensors["q"] = torch.randn(shape[1], shape[3], generator=generator).to(dtype)
    return Inputs(tensors, {}, ("q", "k", "v"))


def _measure(batch: int, heads: int, length: int, dim: int) -> Measure:
    shape = (batch, heads, length, dim)
    name = f"B{batch} H{heads} S{length} D{dim}"
    peer = "polyhead.ops.prefix_attention.measures:sdpa"
    return Measure(name, shape, partial(_draw, shape), peer=peer, peer_name="SDPA, query repeated")


MEASURES = (_measure(1, 8, 4096, 64), _measure(1, 8, 1024, 64), _measure(16, 8, 256, 64))
