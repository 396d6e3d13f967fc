"""Softmax attention as a token mixer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyhead.nn.kv_state import KVCache, KVRing
from polyhead.nn.mixing import Context, Mixed
from polyhead.nn.multi_head_attention import MultiHeadAttention

__all__ = ["SoftmaxMixer"]


class SoftmaxMixer(nn.Module):
    """`MultiHeadAttention` from a sequence to itself, as the mixer ``softmax``.

    Whether it is causal is the context's affair; the state is a `KVCache`, or a `KVRing` where there is a window or a
    capacity.
    """

    def __init__(self, dim: int, heads: int, **settings: Any) -> None:
        """Make a mixer; the settings are those of `MultiHeadAttention`, such as ``rotary`` and ``kv_heads``."""
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, **{"causal": settings.get("window") is not None, **settings})

    def forward(self, x: Tensor, *, ctx: Context, state: KVCache | KVRing | None = None) -> Mixed:
        """Mix the tokens of x, shape (B, S, dim)."""
        attended = self.attention(
            x, key_mask=ctx.key_mask, positions=ctx.positions, causal=ctx.causal or state is not None, state=state
        )
        return Mixed(attended.output, attended.state)

    def init_state(self, batch: int, **settings: Any) -> KVCache | KVRing:
        """Return the state before the first token; the settings are those of `MultiHeadAttention.init_state`."""
        return self.attention.init_state(batch, **settings)

    def step(self, x: Tensor, *, ctx: Context, state: KVCache | KVRing) -> Mixed:
        """Take one token of every row, shape (B, dim)."""
        mixed = self.forward(x.unsqueeze(1), ctx=ctx, state=state)
        return mixed._replace(x=mixed.x.squeeze(1))
