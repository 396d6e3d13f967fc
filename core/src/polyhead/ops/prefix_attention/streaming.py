"""Attention over prefixes on a stream: a state of constant size, tokens one by one or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyhead.errors import ShapeError
from polyhead.ops.prefix_attention.state import PrefixState, check_key_mask, checked_state, empty_state
from polyhead.ops.validation import check_floating, check_ndim, shapes

if TYPE_CHECKING:
    from polyhead.ops.prefix_attention import PrefixAttention

__all__ = ["init_state", "prefill", "step"]


def init_state(
    batch: int,
    heads: int,
    value_dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PrefixState:
    """Return the state before the first token.

    Args:
        batch: B.
        heads: H.
        value_dim: Dv.
        dtype: float32, or float64 for streams in float64.
        device: where the stream is computed.

    Returns:
        PrefixState(m, u, w): −∞ and 0 of shape (B, H), 0 of shape (B, H, Dv).

    >>> init_state(1, 2, 4).m
    tensor([[-inf, -inf]])
    """
    return empty_state(batch, heads, value_dim, dtype, device)


def step(
    state: PrefixState | Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, PrefixState]:
    """Take one token; the cost does not depend on how many came before.

    Args:
        state: what ``init_state``, ``step`` or ``prefill`` gave last: shapes (B, H), (B, H) and (B, H, Dv).
        q: shape (H, D) or (B, H, D).
        k: shape (B, H, D).
        v: shape (B, H, Dv).
        key_mask: bool, shape (B,), True = real token; the state of other rows stays as it is.
        scale: multiplies q·k; D ** -0.5 if None.

    Returns:
        The output, shape (B, H, Dv) in v's dtype, and the state after this token; the one given is left as it was.

    Raises:
        ShapeError: shapes do not fit together.
        DtypeError: dtypes or devices differ, or key_mask is not bool.

    Complexity: O(B·H·(D + Dv)) time.

    >>> import torch
    >>> state = init_state(1, 1, 1)
    >>> for value in (1.0, 3.0, 5.0):
    ...     output, state = step(state, torch.zeros(1, 1), torch.ones(1, 1, 1), torch.tensor([[[value]]]))
    >>> output.item()
    3.0
    """
    from polyhead.ops.prefix_attention.reference import joined, ratio

    check_ndim(3, "(batch, heads, head_dim)", k=k, v=v)
    check_floating(k=k, v=v, q=q)
    if k.shape[:2] != v.shape[:2] or tuple(q.shape) not in (tuple(k.shape), tuple(k.shape[1:])):
        raise ShapeError(f"Expected q (H, D) or (B, H, D), k (B, H, D), v (B, H, Dv). {shapes(q=q, k=k, v=v)}.")
    state = checked_state(state, v)
    check_key_mask(key_mask, (k.shape[0],), "(batch,)", v)
    wide = state.w.dtype
    scale = k.shape[-1] ** -0.5 if scale is None else float(scale)
    value = v.to(wide)
    keys = k.to(wide)
    if key_mask is not None:
        hidden = ~key_mask[:, None, None]
        keys, value = keys.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    logits = scale * (keys * q.to(wide)).sum(-1)
    if key_mask is not None:
        logits = logits.masked_fill(hidden.squeeze(-1), -torch.inf)
    state = joined(state, PrefixState(logits, torch.ones_like(logits), value))
    return ratio(state).to(v.dtype), state


def prefill(
    state: PrefixState | Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> PrefixAttention:
    """Take several tokens at once: ``prefix_attention`` from a state.

    Args:
        state: what ``init_state``, ``step`` or ``prefill`` gave last: shapes (B, H), (B, H) and (B, H, Dv).
        q: shape (H, D) or (B, H, D).
        k: shape (B, H, S, D).
        v: shape (B, H, S, Dv).
        key_mask: bool, shape (B, S), True = real token.
        scale: multiplies q·k; D ** -0.5 if None.

    Returns:
        PrefixAttention(output, final_state); the latter is the state for the next ``step`` or ``prefill``.

    Raises:
        ShapeError, DtypeError, KernelError: as ``prefix_attention`` does.
    """
    from polyhead.ops.prefix_attention import prefix_attention

    return prefix_attention(q, k, v, key_mask=key_mask, initial_state=state, scale=scale)


def streamed(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, *, scale: float
) -> PrefixAttention:
    """Run a whole call by ``step``, as the form that tests compare; arguments as the public function validated them."""
    from polyhead.ops.prefix_attention import PrefixAttention
    from polyhead.ops.prefix_attention.state import wide_dtype

    state = PrefixState(*(x.to(wide_dtype(v.dtype)) for x in (m, u, w)))
    outputs = [v[:, :, :0]]
    # The gradients that all steps give the one query add up in the wide dtype; in 16 bit each addition would round.
    query = q.to(state.w.dtype)
    for t in range(k.shape[2]):
        mask = None if key_mask is None else key_mask[:, t]
        output, state = step(state, query.to(q.dtype), k[:, :, t], v[:, :, t], key_mask=mask, scale=scale)
        outputs.append(output.unsqueeze(2))
    return PrefixAttention(torch.cat(outputs, 2), PrefixState(state.m.detach(), state.u, state.w))
