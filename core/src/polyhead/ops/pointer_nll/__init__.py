"""Loss of a pointer: the public function and its contract."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.additive_attention_scores import validated
from polyhead.ops.call import Call, name_of
from polyhead.ops.selection import dispatch

__all__ = ["PointerNLL", "pointer_nll"]


class PointerNLL(NamedTuple):
    """What ``pointer_nll`` returns."""

    nll: Tensor
    """Shape (B, H, Sq), q's dtype."""


def pointer_nll(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    clip: float | None = None,
) -> PointerNLL:
    r"""Return how improbable the right key is to each query that points by additive scores.

    .. math:: \text{nll}_i = \log \sum_{j \in A_i} e^{l_{ij}} - l_{i, \text{target}_i}, \qquad
        l_{ij} = \sum_c w_c \tanh(q_{ic} + k_{jc})

    where :math:`A_i` holds the keys that mask and lengths allow, and the logits are those of
    ``additive_attention_scores``, clipped or not. Neither they nor their gradients are stored, (B, H, Sq, Sk) or more.

    - There is no reduction. The mean over the real steps is ``nll.sum() / query_lengths.sum()``.
    - A query that may attend nothing, padding among them, has a loss of exactly zero, whatever its target.
    - A target that the query may not attend, or that is no key, has probability zero: the loss is +∞ and its gradients
      are zero.
    - Masks, lengths, non-finite padding, heads, 16-bit inputs and autocast are as in ``additive_attention_scores``.

    Args:
        q: projected queries, shape (B, H, Sq, D).
        k: projected keys, shape (B, H, Sk, D).
        weight: of the hidden units, shape (H, D).
        targets: int64, shape (B, H, Sq): for each query, the index of the key it should point to.
        mask: bool, True = may attend, broadcastable to (B, H, Sq, Sk), such as the points not visited yet.
        lengths: int64, shape (B,): how many keys are real.
        query_lengths: int64, shape (B,): how many queries are real.
        clip: bound of the logits, above 0; unbounded if None.

    Returns:
        PointerNLL(nll): shape (B, H, Sq).

    Raises:
        ShapeError: shapes do not fit together.
        DtypeError: dtypes or devices differ, mask is not bool, or targets or lengths are not int64.
        ConfigError: clip is not above 0.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    Complexity: O(B·H·Sq·Sk·D) time, O(B·H·Sq) memory beyond inputs and outputs.
    Source: Vinyals et al. 2015, arXiv:1506.03134, eq. 3 and section 2.3; clip: Bello et al. 2016, arXiv:1611.09940.
    Differs: heads (two of them point to a span's start and end); impossible targets are defined as above.

    >>> import torch
    >>> points = torch.tensor([[0.0], [1.0], [9.0]])[None, None]
    >>> pointer_nll(0 * points, points, torch.ones(1, 1), torch.tensor([[[0, 1, 2]]]), lengths=torch.tensor([2])).nll
    tensor([[[1.1448, 0.3832,    inf]]])
    """
    tensors, options = validated(q, k, weight, mask, lengths, query_lengths, clip)
    if targets.dtype != torch.int64:
        raise DtypeError(f"targets is {name_of(targets.dtype)}, expected int64. Convert it with targets.long().")
    if targets.shape != q.shape[:3]:
        raise ShapeError(f"targets {tuple(targets.shape)} is not (batch, heads, Sq) = {tuple(q.shape[:3])}.")
    if targets.device != q.device:
        raise DtypeError(f"targets is on {targets.device} and q on {q.device}: move one of them.")
    return dispatch(Call("pointer_nll", {**tensors, "targets": targets}, options, k.shape[2]))
