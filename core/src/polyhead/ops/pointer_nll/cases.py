"""The inputs on which every kernel of a pointer's loss is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from polyhead.ops.additive_attention_scores.cases import Drawn, points
from polyhead.ops.additive_attention_scores.reference import allowed_pairs
from polyhead.ops.spec import Case, Inputs

__all__ = ["cases"]

PADDING = -100
"""Where nothing may be attended: no key, as losses elsewhere mark padding."""


def cases() -> Iterator[Case]:
    """Yield the points of ``additive_attention_scores``, with targets that can be reached."""
    for name, traced, draw in points():
        yield Case(name, partial(_make, draw, False), traced)
    for name, _, draw in points():
        if name in ("ragged", "several tiles of keys", "odd lengths"):
            yield Case(f"impossible targets, {name}", partial(_make, draw, True))


def _make(draw: Callable[..., Drawn], impossible: bool, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    drawn = draw(generator, dtype)
    q, k, *limits = (drawn.tensors.get(name) for name in ("q", "k", "mask", "lengths", "query_lengths"))
    assert q is not None
    assert k is not None
    allowed = allowed_pairs(q, k, *limits)
    chances = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1)
    targets = chances.argmax(3) if k.shape[2] else torch.zeros(q.shape[:3], dtype=torch.int64)
    if impossible:
        strange = torch.tensor([-7, k.shape[2], 2**40, int(chances[0, 0, 0].argmin())])
        targets[:, :, ::2] = strange.repeat(targets.numel())[: targets[:, :, ::2].numel()].view_as(targets[:, :, ::2])
    drawn.tensors["targets"] = targets.masked_fill(drawn.queries, PADDING)
    drawn = drawn._replace(batched=(*drawn.batched, "targets"))
    return drawn.inputs("nll", drawn.queries)
