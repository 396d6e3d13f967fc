"""Sizes at which a pointer's loss is measured, and what people write without it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.additive_attention_scores import measures
from polyhead.ops.spec import Inputs, Measure

__all__ = ["MEASURES", "draw", "written_out"]


def written_out(q: Tensor, k: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Write logits and cross entropy in PyTorch, hidden layer and all."""
    logits = measures.written_out(q, k, weight)
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)


def draw(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Draw q, k, weight and targets."""
    inputs = measures.draw(shape, generator, dtype)
    targets = torch.randint(shape[2], shape[:3], generator=generator)
    return replace(inputs, tensors={**inputs.tensors, "targets": targets})


def _measure(name: str, shape: tuple[int, ...]) -> Measure:
    make: Any = partial(draw, shape)
    return Measure(name, shape, make, {}, "polyhead.ops.pointer_nll.measures:written_out", "written out")


MEASURES = tuple(_measure(name, shape) for name, shape in measures.SIZES.items())
