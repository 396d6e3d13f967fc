"""Softmax attention: the public function and its contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.call import Call, name_of
from polyhead.ops.selection import dispatch
from polyhead.ops.softmax_attention.patterns import BlockMask, Neighbourhood, Pattern
from polyhead.ops.validation import autocasted, check_broadcast, check_floating, check_grouped, check_ndim, shapes

__all__ = ["BlockMask", "Neighbourhood", "SoftmaxAttention", "softmax_attention"]


class SoftmaxAttention(NamedTuple):
    """What ``softmax_attention`` returns."""

    output: Tensor
    """Shape (B, H, Sq, Dv), q's dtype."""
    weights: Tensor | None
    """Shape (B, heads asked for, Sq, Sk), q's dtype; None unless asked for."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    return_weights: bool | Sequence[int] = False,
    pattern: Pattern | None = None,
) -> SoftmaxAttention:
    r"""Attend from each query to the keys it may see.

    .. math:: o_i = \sum_{j \in A_i} w_{ij} v_j, \qquad
        w_{ij} = \frac{e^{l_{ij}}}{\sum_{j' \in A_i} e^{l_{ij'}}}, \qquad
        l_{ij} = \text{scale} \cdot \langle q_i, k_j \rangle + b_{ij}

    where :math:`A_i` holds the keys that mask, pattern, causality and a bias above −∞ all allow.

    What PyTorch's ``scaled_dot_product_attention`` leaves open is fixed here, for every kernel:

    - A query with no allowed key gets an output, weights and gradients of exactly zero.
    - A key that no query may attend (padding) never reaches an output or a gradient, even if k or v is NaN or Inf
      there; nor does a query that may attend nothing. Its own gradient is exactly zero.
    - ``causal`` is aligned bottom right: the last query sees the last key, also if Sq ≠ Sk.
    - Every ``scale`` and Dv ≠ D keep the memory linear in the lengths, unless a mask or bias is itself quadratic, a
      bias needs a gradient on the CPU, or weights are asked for.
    - Asking for weights leaves the output the same, bit by bit.
    - 16-bit inputs are accumulated in float32. In a ``torch.autocast`` region q, k and v are cast as for any matrix
      product.
    - Nothing is written into an input; B, Sq and Sk may be 0.

    Args:
        q: queries, shape (B, H, Sq, D).
        k: keys, shape (B, Hkv, Sk, D), where Hkv divides H: key head h serves the H/Hkv query heads from h·H/Hkv on.
        v: values, shape (B, Hkv, Sk, Dv).
        mask: bool, True = may attend, broadcastable to (B, H, Sq, Sk). A key_mask (B, Sk) is given as
            ``key_mask[:, None, None]``.
        bias: float, added to the logits after scaling, broadcastable to (B, H, Sq, Sk); −∞ forbids.
        causal: whether a query sees only keys up to its own position.
        scale: multiplies q·k; D**-0.5 if None.
        return_weights: True for the weights of all heads, or the indices of the heads wanted, in this order.
        pattern: a ``BlockMask`` or a ``Neighbourhood``: which keys a query may see by its place alone. Kernels skip
            what it leaves out; a mask of the same content would cost all pairs.

    Returns:
        SoftmaxAttention(output, weights): shapes (B, H, Sq, Dv) and (B, heads asked for, Sq, Sk); weights is None
        unless asked for.

    Raises:
        ShapeError: shapes do not fit together or to the pattern, or a head asked for does not exist.
        DtypeError: dtypes or devices differ, mask is not bool, or bias is not float.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    There is no dropout: it would make the operator random and no two kernels alike. Modules drop their outputs.

    Complexity: O(B·H·Sq·Sk·(D + Dv)) time, O(B·H·Sq) memory beyond inputs and outputs; with a pattern, pairs kept
    instead of Sq·Sk.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
    Differs: queries without keys, masked non-finite values and Sq ≠ Sk are defined as above.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).reshape(1, 1, 3, 2)
    >>> softmax_attention(x, x, x, causal=True, return_weights=True).weights[0, 0]
    tensor([[1.0000, 0.0000, 0.0000],
            [0.3302, 0.6698, 0.0000],
            [0.2483, 0.2483, 0.5035]])
    """
    q, k, v = autocasted(q, k, v)
    check_ndim(4, "(batch, heads, seq, head_dim)", q=q, k=k, v=v)
    check_floating(q=q, k=k, v=v)
    check_grouped(q, k)
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ShapeError(f"q and k must have the same head_dim, at least 1. {shapes(q=q, k=k, v=v)}.")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3]:
        raise ShapeError(f"q, k and v must share batch, k and v heads and seq too. {shapes(q=q, k=k, v=v)}.")
    logits = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask is not None:
        if mask.dtype != torch.bool:
            raise DtypeError(
                f"mask is {name_of(mask.dtype)}, expected bool, True = may attend. What is added to logits is the bias."
            )
        mask = check_broadcast("mask", mask, logits, "(batch, heads, Sq, Sk)")
    if bias is not None:
        if not bias.dtype.is_floating_point:
            raise DtypeError(f"bias is {name_of(bias.dtype)}, expected a float dtype. True/False belongs in mask.")
        bias = check_broadcast("bias", bias, logits, "(batch, heads, Sq, Sk)")
    options: dict[str, Any] = {
        "causal": causal,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "heads": _heads(return_weights, q.shape[1]),
    }
    if pattern is not None:
        pattern.check(q.shape[2], k.shape[2])
        options["pattern"] = pattern
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias}
    return dispatch(Call("softmax_attention", tensors, options, k.shape[2]))


def _heads(asked: bool | Sequence[int], heads: int) -> tuple[int, ...] | None:
    """Return the heads whose weights are wanted, or None."""
    if isinstance(asked, bool):
        return tuple(range(heads)) if asked else None
    if wrong := [head for head in asked if not 0 <= head < heads]:
        raise ShapeError(f"return_weights asks for head {wrong[0]}, but q has heads 0 to {heads - 1}.")
    return tuple(asked)
