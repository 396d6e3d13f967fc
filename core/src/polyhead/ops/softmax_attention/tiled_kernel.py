"""Softmax attention over sparse patterns on the CPU, tile by tile: pairs that no tile holds are never computed.

A tile is a block of queries with the keys that some of them see, gathered; tiles of one size are one call of SDPA, in
which the rows of the batch stand beside the heads. Gathered keys are bounded in size and gathered again in the backward
pass, so memory stays linear in the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.ops.softmax_attention import SoftmaxAttention
from polyhead.ops.softmax_attention.patterns import Pattern, tiles
from polyhead.ops.softmax_attention.second import no_second
from polyhead.ops.softmax_attention.torch_kernel import attend

__all__ = ["softmax_attention"]

BYTES = 2**25
"""Gathered keys and values of one call of SDPA."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,  # noqa: ARG001  # limits: always None
    causal: bool,
    scale: float,
    heads: tuple[int, ...] | None,  # noqa: ARG001  # limits: always None
    pattern: Pattern,
) -> SoftmaxAttention:
    """Run SDPA on the tiles of a pattern; arguments as the public function validated them."""
    return SoftmaxAttention(_Tiled.apply(q, k, v, mask, pattern, causal, scale), None)


class _Part(NamedTuple):
    """Tiles of one call of SDPA."""

    rows: Tensor
    """Indices of queries, shape (tiles, queries of each)."""
    columns: Tensor
    """Indices of keys, shape (tiles, keys of each)."""
    allowed: Tensor | None
    """Broadcastable to (tiles, batch · heads, queries, keys of each)."""


def _parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pattern: Pattern, causal: bool) -> Iterator[_Part]:
    queries, keys = q.shape[2], k.shape[2]
    width = (k.shape[-1] + v.shape[-1]) * k.shape[0] * k.shape[1] * k.element_size()
    for group in tiles(pattern, queries, keys, causal):
        count = max(1, BYTES // max(1, group.keys.shape[1] * width))
        for first in range(0, len(group.queries), count):
            rows, columns = (x[first : first + count].to(q.device) for x in (group.queries, group.keys))
            allowed = None if group.allowed is None else group.allowed[first : first + count].unsqueeze(1).to(q.device)
            if mask is not None:
                own = _of_tiles(mask, q.shape[0], q.shape[1], rows, columns)
                allowed = own if allowed is None else allowed & own
            yield _Part(rows, columns, allowed)


def _of_tiles(mask: Tensor, batch: int, heads: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Return what a mask says of each tile, broadcastable to (tiles, batch · heads, queries, keys)."""
    along = rows if mask.shape[2] > 1 else torch.zeros_like(rows[:, :1])
    across = columns if mask.shape[3] > 1 else torch.zeros_like(columns[:, :1])
    part = mask[:, :, along.unsqueeze(2), across.unsqueeze(1)]  # (batch, heads, tiles, queries, keys)
    if mask.shape[0] > 1 or mask.shape[1] > 1:
        part = part.expand(batch, heads, -1, -1, -1)
    return part.flatten(0, 1).transpose(0, 1)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Return rows of (batch, heads, seq, dim) by tile, shape (tiles, batch · heads, rows, dim)."""
    rows = x.flatten(0, 1).index_select(1, index.flatten())
    return rows.unflatten(1, index.shape).transpose(0, 1)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pattern: Pattern, causal: bool, scale: float
    ) -> Tensor:
        output = q.new_zeros(*q.shape[:3], v.shape[-1])
        flat = output.view(-1, *output.shape[2:])
        for part in _parts(q, k, v, mask, pattern, causal):
            tile = attend(
                _gathered(q, part.rows), _gathered(k, part.columns), _gathered(v, part.columns), part.allowed, scale
            )
            flat.index_copy_(1, part.rows.flatten(), tile.transpose(0, 1).flatten(1, 2))
        ctx.save_for_backward(q, k, v, mask)
        ctx.options = pattern, causal, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Gradients.apply(*ctx.saved_tensors, grads[0], *ctx.options), None, None, None, None)


class _Gradients(torch.autograd.Function):
    """The gradients, without a derivative of their own."""

    @staticmethod
    def forward(
        _ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        d_output: Tensor,
        pattern: Pattern,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
        dq = q.new_zeros(q.shape)
        dk, dv = (x.new_zeros(x.shape, dtype=wide) for x in (k, v))  # a key is in several tiles: their sum
        for part in _parts(q, k, v, mask, pattern, causal):
            indices = part.rows, part.columns, part.columns
            with torch.enable_grad():
                inputs = [_gathered(x, i).detach().requires_grad_() for x, i in zip((q, k, v), indices, strict=True)]
                tile = attend(inputs[0], inputs[1], inputs[2], part.allowed, scale)
            found = torch.autograd.grad(tile, inputs, _gathered(d_output, part.rows))
            for total, x, index in zip((dq, dk, dv), found, indices, strict=True):
                rows = x.transpose(0, 1).flatten(1, 2).to(total.dtype)
                total.view(-1, *total.shape[2:]).index_add_(1, index.flatten(), rows)
        return dq, dk.to(k.dtype), dv.to(v.dtype)

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Any:
        raise no_second("tiled")
