"""Multi-scale deformable attention: the public function and its contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.call import Call, name_of
from polyhead.ops.selection import dispatch
from polyhead.ops.validation import autocasted, check_ndim
from polyhead.ops.validation import shapes as sizes

__all__ = ["DeformableAttention", "deformable_attention"]


class DeformableAttention(NamedTuple):
    """What ``deformable_attention`` returns."""

    output: Tensor
    """Shape (B, H, Q, D), value's dtype; heads last but one in memory, so that joining them copies nothing."""


def deformable_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    deterministic: bool = False,
) -> DeformableAttention:
    r"""Attend to a few sampled points of feature maps at several scales.

    .. math:: o_q = \sum_{l, p} a_{qlp} \cdot V_l\big(x_{qlp} W_l - \tfrac12,\; y_{qlp} H_l - \tfrac12\big)

    where :math:`V_l(x, y)` interpolates the map of level l bilinearly between the centres of its pixels, which lie at
    whole numbers; a pixel outside of the map contributes nothing. This is ``grid_sample(2 · locations − 1)`` with
    bilinear interpolation, zeros outside and ``align_corners=False``, for every level, point and head.

    - A location is (x, y), x to the right and y down, in units of the map: (0, 0) is its upper left corner, (1, 1) its
      lower right one. It may lie outside.
    - A sample none of whose four pixels is in the map, or whose location is not finite, contributes nothing and gets
      gradients of exactly zero, whatever its weight. NaN and Inf in a pixel that no sample reads reach nothing.
    - Weights are taken as they are: the softmax belongs to the layer.
    - The gradient of a location is that of the interpolation to the right and below, where it has a kink.
    - Positions, weights and sums have float32 at least, so that 16-bit values go with locations in float32. In a
      ``torch.autocast`` region value is cast as for any matrix product; locations and weights stay.
    - Any strides are taken as they are if each head's features of a pixel are contiguous and begin at a multiple of D,
      such as (B, S, H, D) transposed; others are copied.
    - Nothing is written into an input; B, Q, levels, points and single maps may be empty.

    Args:
        value: pixels of all levels behind one another, row by row, shape (B, H, S, D).
        shapes: (height, width) of each level, L pairs of Python ints; the products add up to S.
        locations: x and y of the samples, any float dtype, shape (B, H, Q, L, P, 2).
        weights: any float dtype, shape (B, H, Q, L, P).
        deterministic: whether the gradients are the same bit by bit each time, also where that is slower; so are they
            under ``torch.use_deterministic_algorithms(True)``.

    Returns:
        DeformableAttention(output): shape (B, H, Q, D).

    Raises:
        ShapeError: shapes do not fit together, or are no pairs of ints of 0 or more.
        DtypeError: a tensor is not float, or devices differ.
        KernelError: the forced kernel cannot serve the call, or gradients of gradients are asked of one that has none.

    Complexity: O(B·H·Q·L·P·D) time; the reference takes as much memory, others O(B·H·D·(S + Q)).
    Source: Zhu et al. 2021, Deformable DETR, arXiv:2010.04159, eq. 3.
    Differs: any locations, empty maps; the layout has heads before pixels and queries, as in all operators here.

    >>> import torch
    >>> value = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 4, 1)
    >>> locations = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.0, 0.25]]).reshape(1, 1, 3, 1, 1, 2)
    >>> deformable_attention(value, [(2, 2)], locations, torch.ones(1, 1, 3, 1, 1)).output.flatten()
    tensor([1.0000, 2.5000, 0.5000])
    """
    (value,) = autocasted(value)
    check_ndim(4, "(batch, heads, pixels, head_dim)", value=value)
    check_ndim(6, "(batch, heads, queries, levels, points, 2)", locations=locations)
    check_ndim(5, "(batch, heads, queries, levels, points)", weights=weights)
    tensors = {"value": value, "locations": locations, "weights": weights}
    for name, x in tensors.items():
        if not x.dtype.is_floating_point:
            raise DtypeError(f"{name} is {name_of(x.dtype)}, expected a float dtype. Convert it with {name}.float().")
        if x.device != value.device:
            raise DtypeError(f"{name} is on {x.device} and value on {value.device}: move one of them.")
    pairs = _pairs(shapes)
    if locations.shape != (*weights.shape, 2) or locations.shape[:2] != value.shape[:2]:
        raise ShapeError(
            f"locations must be (batch, heads, queries, levels, points, 2), weights the same without the 2, and value "
            f"have their batch and heads. {sizes(**tensors)}."
        )
    if locations.shape[3] != len(pairs):
        raise ShapeError(f"shapes has {len(pairs)} levels and locations {locations.shape[3]}. {sizes(**tensors)}.")
    if sum(height * width for height, width in pairs) != value.shape[2] or value.shape[3] == 0:
        raise ShapeError(
            f"The pixels of the levels {list(pairs)} must add up to those of value, and its head_dim be 1 or more. "
            f"{sizes(**tensors)}."
        )
    options = {"shapes": pairs, "deterministic": deterministic or torch.are_deterministic_algorithms_enabled()}
    return dispatch(Call("deformable_attention", tensors, options, locations.shape[2]))


def _pairs(shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the levels' heights and widths; torch.compile and torch.export may know them as symbols."""
    if isinstance(shapes, Tensor):
        raise ShapeError(
            "shapes is a tensor, whose values no tracer knows. Give Python ints: shapes.tolist(), or the maps' sizes."
        )
    for pair in shapes:
        if len(pair) != 2 or not all(isinstance(size, int | torch.SymInt) and size >= 0 for size in pair):
            raise ShapeError(f"shapes must be pairs (height, width) of ints of 0 or more, not {list(shapes)}.")
    return tuple((height, width) for height, width in shapes)
