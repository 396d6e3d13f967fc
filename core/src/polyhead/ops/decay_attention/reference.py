"""The definition of linear attention with decay, and its quadratic form; nothing faster."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from polyhead.ops.decay_attention import DecayAttention
from polyhead.ops.decay_attention.strands import boundaries

__all__ = ["decay_attention", "parallel"]

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps q, k, v, log decays (B, H, S) and the initial state to output and final state; scale is in q."""


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> DecayAttention:
    """Run the recurrence token by token; arguments as the public function validated them.

    Complexity: O(B·H·S·D·Dv) time, O(B·H·S·D·Dv) memory with gradients.
    """
    return by_sequence(_recurrence, q, k, v, log_decay, initial_state, cu_seqlens, scale)


def parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> DecayAttention:
    """Multiply by the matrix of all decays; arguments as the public function validated them.

    Complexity: O(B·H·S²·(D + Dv)) time, O(B·H·S²) memory.
    """
    return by_sequence(_quadratic, q, k, v, log_decay, initial_state, cu_seqlens, scale)


def _recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(q.shape[2]):
        state = log_decay[:, :, t, None, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 2) if outputs else v, state


def _quadratic(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    length = q.shape[2]
    if not length:
        return v, state
    # Summed for each pair by itself: a difference of two sums from the start would lose digits, and be NaN at -inf.
    after, before = torch.arange(1, length + 1, device=q.device)[:, None], torch.arange(length + 1, device=q.device)
    sums = torch.where(after > before, log_decay.unsqueeze(-1), 0).cumsum(2)
    decays = torch.where(after >= before, sums.exp(), 0)  # of what was there before token 0, and of tokens 0 …
    output = ((q @ k.mT) * decays[..., 1:]) @ v + decays[..., :1] * (q @ state)
    final = (k * decays[:, :, -1, 1:, None]).mT @ v + decays[:, :, -1, 0, None, None] * state
    return output, final


def by_sequence(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> DecayAttention:
    """Run a form on a batch, or on packed sequences one by one, in float32 at least."""
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v, log_decay = scale * q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide)
    batch, heads, length, head_dim = q.shape
    if log_decay.ndim == 1:
        log_decay = log_decay[None, :, None].expand(batch, heads, length)
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    empty = q.new_zeros(sequences, heads, head_dim, v.shape[3])
    state = empty if initial_state is None else initial_state.to(wide)
    if cu_seqlens is None:
        output, final = form(q, k, v, log_decay, state)
        return DecayAttention(output.to(dtype), final)
    ends = boundaries(cu_seqlens, length)
    outputs, finals = [v[:, :, :0]], [state[:0]]
    for i, (start, end) in enumerate(pairwise(ends)):
        part = slice(start, end)
        output, final = form(q[:, :, part], k[:, :, part], v[:, :, part], log_decay[:, :, part], state[i : i + 1])
        outputs.append(output)
        finals.append(final)
    outputs.append(torch.zeros_like(v[:, :, ends[-1] :]))
    return DecayAttention(torch.cat(outputs, 2).to(dtype), torch.cat(finals))
