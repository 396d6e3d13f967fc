"""Additive attention scores: the public function and its contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.ops.call import Call, name_of
from polyhead.ops.selection import dispatch
from polyhead.ops.validation import autocasted, check_broadcast, check_floating, check_ndim, shapes

__all__ = ["AdditiveAttentionScores", "additive_attention_scores"]


class AdditiveAttentionScores(NamedTuple):
    """What ``additive_attention_scores`` returns."""

    logits: Tensor
    """Shape (B, H, Sq, Sk), q's dtype."""


def additive_attention_scores(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    clip: float | None = None,
) -> AdditiveAttentionScores:
    r"""Score each key for each query by a small network with one hidden layer.

    .. math:: l_{ij} = \sum_c w_c \tanh(q_{ic} + k_{jc}), \qquad l_{ij} \leftarrow C \tanh l_{ij} \text{ with } clip = C

    q and k are the projected ones, so that the keys of one input are projected once for every decoding step. The
    (B, H, Sq, Sk, D) hidden layer is never stored, forward or backward.

    - A key that a query may not attend has a logit of −∞. A query that may attend nothing has zeros, so that a softmax
      over them is finite; give ``pointer_nll`` or your own loss the same lengths and masks.
    - A key that no query may attend (padding) never reaches a logit or a gradient, even if it is NaN or Inf; nor does a
      query that may attend nothing. Its own gradient is exactly zero.
    - The layout is that of every operator, heads included. Pointer Networks have one head: ``q[:, None]``.
    - 16-bit inputs are computed in float32. In a ``torch.autocast`` region q, k and weight are cast as for any matrix
      product.
    - Nothing is written into an input; B, Sq and Sk may be 0.

    Args:
        q: projected queries, shape (B, H, Sq, D).
        k: projected keys, shape (B, H, Sk, D).
        weight: of the hidden units, shape (H, D).
        mask: bool, True = may attend, broadcastable to (B, H, Sq, Sk). A key_mask (B, Sk) is given as
            ``key_mask[:, None, None]``.
        lengths: int64, shape (B,): how many keys are real.
        query_lengths: int64, shape (B,): how many queries are real.
        clip: bound of the logits, above 0; unbounded if None.

    Returns:
        AdditiveAttentionScores(logits): shape (B, H, Sq, Sk).

    Raises:
        ShapeError: shapes do not fit together.
        DtypeError: dtypes or devices differ, mask is not bool, or lengths are not int64.
        ConfigError: clip is not above 0.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    Complexity: O(B·H·Sq·Sk·D) time, O(1) memory beyond inputs and outputs; padding at the end is skipped on the CPU.
    Source: Bahdanau et al. 2015, arXiv:1409.0473, appendix A.1.2; Vinyals et al. 2015, arXiv:1506.03134, eq. 3; clip:
    Bello et al. 2016, arXiv:1611.09940, appendix A.1.
    Differs: heads, and queries without keys, which are defined as above.

    >>> import torch
    >>> points = torch.tensor([[0.0], [1.0], [9.0]])[None, None]
    >>> additive_attention_scores(-points[:, :, :2], points, torch.ones(1, 1), lengths=torch.tensor([2])).logits[0, 0]
    tensor([[ 0.0000,  0.7616,    -inf],
            [-0.7616,  0.0000,    -inf]])
    """
    tensors, options = validated(q, k, weight, mask, lengths, query_lengths, clip)
    return dispatch(Call("additive_attention_scores", tensors, options, k.shape[2]))


def validated(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tensors and options of a call that scores keys additively; raises as the public function says."""
    q, k, weight = autocasted(q, k, weight)
    check_ndim(4, "(batch, heads, seq, head_dim)", q=q, k=k)
    check_floating(q=q, k=k, weight=weight)
    batch, heads, queries, head_dim = q.shape
    if k.shape[:2] != q.shape[:2] or k.shape[3] != head_dim or head_dim == 0:
        raise ShapeError(f"q and k must share batch, heads and a head_dim of 1 or more. {shapes(q=q, k=k)}.")
    if tuple(weight.shape) != (heads, head_dim):
        raise ShapeError(f"weight {tuple(weight.shape)} is not (heads, head_dim) = {(heads, head_dim)}.")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise DtypeError(f"mask is {name_of(mask.dtype)}, expected bool, True = may attend.")
        mask = check_broadcast("mask", mask, (batch, heads, queries, k.shape[2]), "(batch, heads, Sq, Sk)")
    tensors: dict[str, Any] = {
        "q": q,
        "k": k,
        "weight": weight,
        "mask": mask,
        "lengths": lengths,
        "query_lengths": query_lengths,
    }
    for name in ("lengths", "query_lengths"):
        x = tensors[name]
        if x is not None and x.dtype != torch.int64:
            raise DtypeError(f"{name} is {name_of(x.dtype)}, expected int64. Convert it with {name}.long().")
        if x is not None and tuple(x.shape) != (batch,):
            raise ShapeError(f"{name} {tuple(x.shape)} is not (batch,) = {(batch,)}.")
    for name in ("mask", "lengths", "query_lengths"):
        x = tensors[name]
        if x is not None and x.device != q.device:
            raise DtypeError(f"{name} is on {x.device} and q on {q.device}: move one of them.")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip is {clip}, expected a bound above 0, or None for no bound.")
    return tensors, {"clip": None if clip is None else float(clip)}
