"""Attention of one query over every prefix: the public function and its contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from polyhead.errors import ShapeError
from polyhead.ops.call import Call
from polyhead.ops.prefix_attention.state import PrefixState, check_key_mask, checked_state, empty_state, wide_dtype
from polyhead.ops.prefix_attention.streaming import init_state, prefill, step
from polyhead.ops.selection import dispatch
from polyhead.ops.validation import autocasted, check_floating, check_ndim, shapes

__all__ = ["PrefixAttention", "PrefixState", "init_state", "prefill", "prefix_attention", "step"]


class PrefixAttention(NamedTuple):
    """What ``prefix_attention`` returns."""

    output: Tensor
    """Shape (B, H, S, Dv), v's dtype."""
    final_state: PrefixState
    """Shapes (B, H), (B, H) and (B, H, Dv); float32, or float64 if v is."""


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    initial_state: PrefixState | Sequence[Tensor] | None = None,
    scale: float | None = None,
) -> PrefixAttention:
    r"""Attend with one query over every prefix of a sequence.

    .. math:: s_i = \text{scale} \cdot \langle q, k_i \rangle, \qquad
        o_t = \sum_{i \le t} \frac{e^{s_i}}{\sum_{j \le t} e^{s_j}} v_i

    which is causal softmax attention whose query is the same at every position, in linear time, with a state that does
    not grow: the largest logit m, the sum u of exp(s − m) and the sum w of exp(s − m)·v.

    - A masked key contributes nothing; its own output repeats the one before. Where no key came yet, output and
      gradients are exactly zero. NaN and Inf in masked keys and values reach nothing.
    - A later call that starts from a final state goes on as if there were no cut, with gradients. A state without
      tokens is (−∞, 0, 0), which is what resets a row of a stream.
    - Gradients of and through a state are those of u and w for the given m, see ``PrefixState``.
    - Logits of any size are safe: every exponent is a difference from a sum that includes it.
    - 16-bit inputs are multiplied and accumulated in float32; the state never has less than float32. In a
      ``torch.autocast`` region q, k and v are cast as for any matrix product.
    - Nothing is written into an input; B and S may be 0.

    Args:
        q: the query, shape (H, D) for all rows of the batch, or (B, H, D) for each.
        k: keys, shape (B, H, S, D).
        v: values, shape (B, H, S, Dv).
        key_mask: bool, shape (B, S), True = real token.
        initial_state: what an earlier call ended with: m and u of shape (B, H), w of shape (B, H, Dv); no tokens if
            None.
        scale: multiplies q·k; D ** -0.5 if None.

    Returns:
        PrefixAttention(output, final_state): shape (B, H, S, Dv), and PrefixState(m, u, w).

    Raises:
        ShapeError: shapes do not fit together.
        DtypeError: dtypes or devices differ, or key_mask is not bool.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    Complexity: O(B·H·S·(D + C·Dv)) time for chunks of C tokens; O(B·H·Dv) state, and O(B·H·S) memory for gradients
    beyond inputs and output.
    Source: Feng et al. 2024, Attention as an RNN (Aaren), arXiv:2405.13956, section 3.
    Differs: the recurrence starts from m = −∞ instead of 0, with which logits below −88 underflow to 0/0; masks, and
    states with gradients.

    >>> import torch
    >>> q, k = torch.zeros(1, 2), torch.ones(1, 1, 4, 2)
    >>> v = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)
    >>> prefix_attention(q, k, v).output.flatten()
    tensor([1.0000, 1.5000, 2.3333, 3.7500])
    """
    q, k, v = autocasted(q, k, v)
    check_ndim(4, "(batch, heads, seq, head_dim)", k=k, v=v)
    check_floating(k=k, v=v, q=q)
    if k.shape[:3] != v.shape[:3] or 0 in (k.shape[-1], v.shape[-1]):
        raise ShapeError(
            f"k and v must have the same batch, heads and seq, and each a head_dim of 1 or more. {shapes(k=k, v=v)}."
        )
    batch, heads, length, head_dim = k.shape
    if tuple(q.shape) not in ((heads, head_dim), (batch, heads, head_dim)):
        raise ShapeError(
            f"q {tuple(q.shape)} is neither (heads, head_dim) = {(heads, head_dim)} "
            f"nor (batch, heads, head_dim) = {(batch, heads, head_dim)}: one query for each head."
        )
    check_key_mask(key_mask, (batch, length), "(batch, seq)", v)
    if initial_state is None:
        state = empty_state(batch, heads, v.shape[3], wide_dtype(v.dtype), v.device)
    else:
        state = checked_state(initial_state, v)
    tensors: dict[str, Any] = {"k": k, "v": v, "q": q, "key_mask": key_mask, **state._asdict()}
    scale = head_dim**-0.5 if scale is None else float(scale)
    return dispatch(Call("prefix_attention", tensors, {"scale": scale}, length))
