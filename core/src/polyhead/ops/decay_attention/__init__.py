"""Linear attention with decay: the public function, its contract, and the published decays."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.call import Call, name_of
from polyhead.ops.decay_attention.slopes import lightning_slopes
from polyhead.ops.decay_attention.streaming import init_state, prefill, step
from polyhead.ops.selection import dispatch
from polyhead.ops.validation import autocasted, check_broadcast, check_floating, check_ndim, shapes

__all__ = ["DecayAttention", "decay_attention", "init_state", "lightning_slopes", "prefill", "step"]


class DecayAttention(NamedTuple):
    """What ``decay_attention`` returns."""

    output: Tensor
    """Shape (B, H, S, Dv), q's dtype."""
    final_state: Tensor
    """Shape (B, H, D, Dv), or (sequences, H, D, Dv) of packed ones; float32, or float64 if q is."""


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
) -> DecayAttention:
    r"""Attend causally and linearly, older tokens weighing less.

    .. math:: S_t = e^{g_t} S_{t-1} + k_t^\top v_t, \qquad o_t = \text{scale} \cdot q_t S_t

    which is :math:`o_t = \text{scale} \sum_{s \le t} e^{g_{s+1} + \dots + g_t} \langle q_t, k_s \rangle v_s` for a
    state of zeros: attention without softmax, in linear time, with a state that does not grow.

    - There is no activation and no normalisation; both belong to the layer.
    - The state is what the formula says: it includes the last token and is not decayed ahead. The first token decays
      the initial state. A later call that starts from a final state goes on as if there were no cut, with gradients.
    - ``log_decay`` is 0 where nothing is forgotten and −∞ where everything is. Values above 0 make the state grow.
    - Several sequences packed behind one another in a batch of one are told apart by ``cu_seqlens``. None sees another
      one. Tokens after the last boundary belong to no sequence: output and gradients are exactly zero there, and NaN
      reaches nothing.
    - 16-bit inputs are multiplied and accumulated in float32; the state never has less than float32. In a
      ``torch.autocast`` region q, k and v are cast as for any matrix product.
    - Nothing is written into an input; B, S and sequences may be 0.

    Args:
        q: queries, shape (B, H, S, D).
        k: keys, shape (B, H, S, D).
        v: values, shape (B, H, S, Dv).
        log_decay: :math:`g`, any float dtype, shape (H,) for a constant of each head, or broadcastable to (B, H, S).
        initial_state: shape (B, H, D, Dv), or (sequences, H, D, Dv); zeros if None.
        cu_seqlens: int32, shape (sequences + 1,), rising from 0 to at most S: sequence i holds the tokens from
            cu_seqlens[i] up to, and without, cu_seqlens[i + 1].
        scale: multiplies q·k; 1, as published.

    Returns:
        DecayAttention(output, final_state): shapes (B, H, S, Dv) and (B, H, D, Dv), or (sequences, H, D, Dv).

    Raises:
        ShapeError: shapes do not fit together, log_decay has an entry for each channel, or the boundaries are wrong.
        DtypeError: dtypes or devices differ, or cu_seqlens is not int32.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    Complexity: O(B·H·S·(C·(D + Dv) + D·Dv)) time for chunks of C tokens; O(B·H·D·Dv) state, and O(B·H·S·D·Dv / C)
    memory for gradients.
    Source: Qin et al. 2024, Lightning Attention-2, arXiv:2401.04658 and arXiv:2405.17381, eq. 4.
    Differs: decays may vary by token and have gradients, as do states; any length; packed sequences.

    >>> import torch
    >>> ones = torch.ones(1, 1, 4, 1)
    >>> decay_attention(ones, ones, ones, torch.tensor([0.5]).log()).output.flatten()
    tensor([1.0000, 1.5000, 1.7500, 1.8750])
    """
    q, k, v = autocasted(q, k, v)
    check_ndim(4, "(batch, heads, seq, head_dim)", q=q, k=k, v=v)
    check_floating(q=q, k=k, v=v)
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or 0 in (q.shape[-1], v.shape[-1]):
        raise ShapeError(
            f"q and k must have one shape, v the same batch, heads and seq, and each a head_dim of 1 or more. "
            f"{shapes(q=q, k=k, v=v)}."
        )
    tensors: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "log_decay": _decay(log_decay, q),
        "initial_state": initial_state,
        "cu_seqlens": cu_seqlens,
    }
    for name in ("log_decay", "initial_state", "cu_seqlens"):
        x = tensors[name]
        if x is None:
            continue
        if x.device != q.device:
            raise DtypeError(f"{name} is on {x.device} and q on {q.device}: move one of them.")
        if name != "cu_seqlens" and not x.dtype.is_floating_point:
            raise DtypeError(f"{name} is {name_of(x.dtype)}, expected a float dtype. Convert it with {name}.float().")
    sequences = q.shape[0] if cu_seqlens is None else _sequences(cu_seqlens, q)
    expected = (sequences, q.shape[1], q.shape[3], v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        what = (
            "(batch, heads, head_dim, value_dim)" if cu_seqlens is None else "(sequences, heads, head_dim, value_dim)"
        )
        raise ShapeError(f"initial_state {tuple(initial_state.shape)} is not {what} = {expected}.")
    return dispatch(Call("decay_attention", tensors, {"scale": float(scale)}, q.shape[2]))


def _decay(log_decay: Tensor, q: Tensor) -> Tensor:
    """Return log_decay as (H,) or (B, H, S)."""
    batch, heads, length, _ = q.shape
    if log_decay.ndim == 1 and log_decay.shape[0] == heads:
        return log_decay
    if log_decay.ndim == 4:
        raise ShapeError(
            f"log_decay {tuple(log_decay.shape)} has a decay for each channel, which no kernel computes yet: give "
            f"(heads,) = ({heads},), or (batch, heads, seq) = {(batch, heads, length)}."
        )
    if log_decay.ndim != 3:
        raise ShapeError(
            f"log_decay {tuple(log_decay.shape)} is neither (heads,) = ({heads},) "
            f"nor (batch, heads, seq) = {(batch, heads, length)}."
        )
    check_broadcast("log_decay", log_decay, (batch, heads, length), "(batch, heads, seq)")
    return log_decay.expand(batch, heads, length)


def _sequences(cu_seqlens: Tensor, q: Tensor) -> int:
    """Return how many sequences are packed."""
    if cu_seqlens.dtype != torch.int32:
        raise DtypeError(f"cu_seqlens is {name_of(cu_seqlens.dtype)}, expected int32. Convert it with .int().")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ShapeError(f"cu_seqlens {tuple(cu_seqlens.shape)} is not (sequences + 1,).")
    if q.shape[0] != 1:
        raise ShapeError(
            f"cu_seqlens packs sequences in a batch of 1, but q has a batch of {q.shape[0]}. {shapes(q=q)}."
        )
    return cu_seqlens.shape[0] - 1
