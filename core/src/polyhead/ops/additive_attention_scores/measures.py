"""Sizes at which additive attention scores are measured, and what people write without them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "SIZES", "draw", "written_out"]

SIZES = {"B64 Sq100 Sk100 D256": (64, 1, 100, 256), "B128 Sq20 Sk20 D128": (128, 1, 20, 128)}
"""A batch of planar problems with 100 points, and one with few, by name: the shape of q and of k."""


def written_out(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    """Write the formula in PyTorch, hidden layer and all."""
    return (torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)) @ weight[:, None, :, None]).squeeze(-1)


def draw(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Draw q, k and weight."""
    q, k = (torch.randn(shape, generator=generator).to(dtype) for _ in "qk")
    weight = (torch.randn(shape[1], shape[3], generator=generator) * shape[3] ** -0.5).to(dtype)
    return Inputs({"q": q, "k": k, "weight": weight}, {}, ("q", "k", "weight"))


def _measure(name: str, shape: tuple[int, ...]) -> Measure:
    make: Any = partial(draw, shape)
    here = "polyhead.ops.additive_attention_scores.measures"
    return Measure(name, shape, make, {}, f"{here}:written_out", "written out")


MEASURES = tuple(_measure(name, shape) for name, shape in SIZES.items())
