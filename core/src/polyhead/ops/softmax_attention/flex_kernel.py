"""Softmax attention over sparse patterns on a GPU, by PyTorch's FlexAttention, repaired where that leaves the contract.

FlexAttention compiles a Triton kernel for each pattern and skips blocks of 128 by 128 pairs that it leaves out. It has
no backward pass on a CPU, so it is for GPUs alone; there it is compiled once for each pattern, for all lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from polyhead.ops.softmax_attention import SoftmaxAttention
from polyhead.ops.softmax_attention.patterns import BlockMask, Neighbourhood, Pattern, tiles
from polyhead.ops.softmax_attention.second import refusal

__all__ = ["softmax_attention"]


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,  # noqa: ARG001  # limits: always None, as are bias and heads
    bias: Tensor | None,  # noqa: ARG001
    causal: bool,
    scale: float,
    heads: tuple[int, ...] | None,  # noqa: ARG001
    pattern: Pattern,
) -> SoftmaxAttention:
    """Run FlexAttention with a pattern; arguments as the public function validated them."""
    plan = _plan(pattern, q.shape[2], k.shape[2], causal, q.device)
    if plan.idle is not None:
        q = q.masked_fill(plan.idle, 0)
    if plan.unseen is not None:
        k, v = k.masked_fill(plan.unseen, 0), v.masked_fill(plan.unseen, 0)
    grouped = q.shape[1] != k.shape[1]
    output = _compiled()(q, k, v, block_mask=plan.blocks, scale=scale, enable_gqa=grouped)
    if plan.idle is not None:
        output = output.masked_fill(plan.idle, 0)
    if output.grad_fn is not None:
        output.grad_fn.register_hook(refusal("flex", "FlexAttention"))
    return SoftmaxAttention(output, None)


class _Plan(NamedTuple):
    """What a pattern means for certain lengths on a device."""

    blocks: Any
    """FlexAttention's own description."""
    idle: Tensor | None
    """Queries that see nothing, shape (Sq, 1); None if there are none."""
    unseen: Tensor | None
    """Keys that nothing sees, shape (Sk, 1); None if there are none."""


@cache
def _compiled() -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return function


@cache
def _creating() -> Callable[..., Any]:
    # Compiled, it finds the blocks without a mask of all pairs in memory.
    function: Callable[..., Any] = torch.compile(create_block_mask)
    return function


@lru_cache(maxsize=16)
def _plan(pattern: Pattern, queries: int, keys: int, causal: bool, device: torch.device) -> _Plan:
    blocks = _creating()(_allowed(pattern, queries, keys, causal, device), None, None, queries, keys, device=device)
    idle, unseen = torch.ones(queries, dtype=torch.bool), torch.ones(keys, dtype=torch.bool)
    for group in tiles(pattern, queries, keys, causal):
        if group.allowed is None:
            idle[group.queries], unseen[group.keys] = False, False
        else:
            idle[group.queries[group.allowed.any(2)]] = False
            unseen[group.keys[group.allowed.any(1)]] = False
    nothing, nobody = (x.unsqueeze(1).to(device) if bool(x.any()) else None for x in (idle, unseen))
    return _Plan(blocks, nothing, nobody)


def _allowed(
    pattern: Pattern, queries: int, keys: int, causal: bool, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the pattern as FlexAttention asks for it: whether a query sees a key, by their indices."""
    kept = _kept_blocks(pattern, keys, device) if isinstance(pattern, BlockMask) else _kept_around(pattern)

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept(query, key) & (key <= query + keys - queries) if causal else kept(query, key)

    return allowed


def _kept_blocks(pattern: BlockMask, keys: int, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    high, wide = pattern.size
    table = torch.zeros(len(pattern.rows), -(-keys // wide), dtype=torch.bool)
    for at, row in enumerate(pattern.rows):
        table[at, list(row)] = True
    table = table.to(device)
    return lambda query, key: table[query // high, key // wide]


def _kept_around(pattern: Neighbourhood) -> Callable[[Tensor, Tensor], Tensor]:
    def kept(query: Tensor, key: Tensor) -> Tensor:
        inside, stride = query >= 0, 1
        for positions, window in zip(reversed(pattern.grid), reversed(pattern.window), strict=True):
            start = (query // stride) % positions - window // 2
            if not pattern.cut:
                start = start.clamp(0, positions - window)
            after = (key // stride) % positions - start
            inside = inside & (after >= 0) & (after < window)
            stride *= positions
        return inside

    return kept
