"""Linear attention with decay on a stream: a state of constant size, tokens one by one or in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyhead.errors import ShapeError
from polyhead.ops.validation import check_floating, check_ndim, shapes

if TYPE_CHECKING:
    from polyhead.ops.decay_attention import DecayAttention

__all__ = ["init_state", "prefill", "step"]


def init_state(
    batch: int,
    heads: int,
    head_dim: int,
    value_dim: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the state before the first token.

    Args:
        batch: B.
        heads: H.
        head_dim: D.
        value_dim: Dv; D if None.
        dtype: float32, or float64 for streams in float64.
        device: where the stream is computed.

    Returns:
        Zeros of shape (B, H, D, Dv).
    """
    value_dim = head_dim if value_dim is None else value_dim
    return torch.zeros(batch, heads, head_dim, value_dim, dtype=dtype, device=device)


def step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Take one token; the cost does not depend on how many came before.

    Args:
        state: what ``init_state``, ``step`` or ``prefill`` gave last, shape (B, H, D, Dv).
        q: shape (B, H, D).
        k: shape (B, H, D).
        v: shape (B, H, Dv).
        log_decay: shape (H,) or (B, H).
        scale: multiplies q·k.

    Returns:
        The output, shape (B, H, Dv) in q's dtype, and the state after this token; the one given is left as it was.

    Raises:
        ShapeError: shapes do not fit together.
        DtypeError: dtypes or devices of q, k and v differ.

    Complexity: O(B·H·D·Dv) time.

    >>> import torch
    >>> one, state = torch.ones(1, 1, 1), init_state(1, 1, 1)
    >>> for _ in range(3):
    ...     output, state = step(state, one, one, one, torch.tensor([0.5]).log())
    >>> output.item()
    1.75
    """
    check_ndim(3, "(batch, heads, head_dim)", q=q, k=k, v=v)
    check_floating(q=q, k=k, v=v)
    fits = q.shape == k.shape and q.shape[:2] == v.shape[:2] and state.shape == (*k.shape, v.shape[-1])
    if not fits or tuple(log_decay.shape) not in ((q.shape[1],), tuple(q.shape[:2])):
        raise ShapeError(
            f"Expected state (B, H, D, Dv), q and k (B, H, D), v (B, H, Dv), log_decay (H,) or (B, H). "
            f"{shapes(state=state, q=q, k=k, v=v, log_decay=log_decay)}."
        )
    wide = state.dtype
    decay = log_decay.to(wide).exp()[..., None, None]
    state = torch.addcmul(decay * state, k.to(wide).unsqueeze(-1), v.to(wide).unsqueeze(-2))
    output = ((scale * q.to(wide)).unsqueeze(-2) @ state).squeeze(-2)
    return output.to(q.dtype), state


def prefill(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, scale: float = 1.0) -> DecayAttention:
    """Take several tokens at once: ``decay_attention`` from a state.

    Args:
        state: shape (B, H, D, Dv).
        q: shape (B, H, S, D).
        k: shape (B, H, S, D).
        v: shape (B, H, S, Dv).
        log_decay: shape (H,), or broadcastable to (B, H, S).
        scale: multiplies q·k.

    Returns:
        DecayAttention(output, final_state); the latter is the state for the next ``step`` or ``prefill``.

    Raises:
        ShapeError, DtypeError, KernelError: as ``decay_attention`` does.
    """
    from polyhead.ops.decay_attention import decay_attention

    return decay_attention(q, k, v, log_decay, initial_state=state, scale=scale)


def streamed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> DecayAttention:
    """Run a whole call by ``step``, as the form that tests compare; arguments as the public function validated them."""
    from polyhead.ops.decay_attention.reference import by_sequence

    def form(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs = [v[:, :, :0]]
        for t in range(q.shape[2]):
            output, state = step(state, *(x[:, :, t] for x in (q, k, v, log_decay)))
            outputs.append(output.unsqueeze(2))
        return torch.cat(outputs, 2), state

    return by_sequence(form, q, k, v, log_decay, initial_state, cu_seqlens, scale)
