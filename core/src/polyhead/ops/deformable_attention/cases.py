"""The inputs on which every kernel of multi-scale deformable attention is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.spec import Case, Inputs

__all__ = ["cases"]

Shapes = tuple[tuple[int, int], ...]
SEVERAL: Shapes = ((9, 14), (5, 7), (4, 3), (2, 1))


def cases() -> Iterable[Case]:
    """Yield maps and samples of every kind, layouts, and the edges of the contract."""
    yield _case("one sample of one pixel", (1, 1, 1, 1, 1), ((1, 1),))
    yield _case("one map", (2, 2, 5, 4, 3), ((6, 6),))
    yield _case("two maps", (2, 3, 5, 4, 2), ((5, 7), (3, 2)), traced=True)
    yield _case("four maps", (2, 3, 7, 8, 4), SEVERAL)
    yield _case("four maps, deterministic", (2, 3, 7, 8, 4), SEVERAL, deterministic=True)
    yield _case("one query", (1, 2, 1, 4, 4), SEVERAL)
    for queries in (16, 17, 33, 150):
        yield _case(f"{queries} queries", (1, 2, queries, 4, 2), ((5, 4), (3, 2)))
    yield _case("many queries", (1, 2, 2100, 2, 4), SEVERAL)
    yield _case("many samples of a query", (1, 1, 3, 4, 70), ((7, 5), (3, 3)))
    yield _case("many samples of one pixel", (1, 1, 90, 3, 5), ((1, 1),), deterministic=True)
    yield _case("many rows of the batch", (19, 1, 2, 3, 2), ((3, 2),))
    yield _case("one row, one column", (2, 2, 9, 3, 3), ((1, 7), (5, 1)), margin=1.2)
    yield _case("maps of one pixel", (1, 2, 9, 3, 3), ((1, 1), (1, 1)), margin=1.2)
    yield _case("empty maps between others", (2, 2, 6, 4, 2), ((0, 0), (3, 4), (0, 5), (2, 2), (2, 0)))
    yield _case("empty maps only", (2, 2, 6, 4, 2), ((0, 3), (0, 0)))
    yield _case("mostly outside", (2, 2, 20, 4, 3), SEVERAL, margin=6.0)
    yield _case("all outside", (2, 2, 5, 4, 3), SEVERAL, shift=40.0)
    yield _case("half of the batch outside", (2, 2, 5, 4, 3), SEVERAL, shift=40.0, shifted=1)
    yield _case("on the centres of pixels", (1, 2, 24, 4, 3), ((8, 4), (2, 2)), centred=True)
    yield _case("at infinity", (1, 2, 12, 4, 2), ((5, 4), (1, 3)), infinite=True)
    yield _case("weights of both signs", (1, 2, 9, 4, 3), SEVERAL, softmax=False)
    yield _case("locations in float32", (1, 2, 20, 4, 3), ((30, 40), (15, 20)), sample_dtype=torch.float32)
    yield _case("head_dim 1", (2, 2, 9, 1, 3), SEVERAL)
    yield _case("head_dim 33", (1, 2, 9, 33, 2), SEVERAL)
    yield _case("head_dim 80", (1, 1, 20, 80, 2), SEVERAL)
    yield _case("heads last but one in memory", (2, 3, 20, 4, 2), SEVERAL, layout=_heads_inside)
    yield _case("last dimension not contiguous", (2, 2, 9, 4, 3), SEVERAL, layout=_transposed)
    yield _case("cut out of wider rows", (2, 2, 9, 4, 3), SEVERAL, layout=_cut)
    yield _case("cut out at odd places", (2, 2, 9, 4, 3), SEVERAL, layout=partial(_cut, wider=1))
    yield _case("the same map for every head", (2, 3, 9, 4, 3), SEVERAL, layout=_shared)
    yield _case("batch of zero", (0, 2, 5, 4, 3), SEVERAL)
    yield _case("no queries", (2, 2, 0, 4, 3), SEVERAL)
    yield _case("no points", (2, 2, 5, 4, 0), SEVERAL)
    yield _case("no levels", (2, 2, 5, 4, 3), ())


def _case(
    name: str, sizes: tuple[int, int, int, int, int], shapes: Shapes, *, traced: bool = False, **arguments: Any
) -> Case:
    return Case(name, partial(_draw, sizes, shapes, **arguments), traced)


def _draw(
    sizes: tuple[int, int, int, int, int],
    shapes: Shapes,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    margin: float = 0.2,
    shift: float = 0.0,
    shifted: int = 0,
    centred: bool = False,
    infinite: bool = False,
    softmax: bool = True,
    deterministic: bool = False,
    sample_dtype: torch.dtype | None = None,
    layout: Callable[[Tensor], Tensor] | None = None,
) -> Inputs:
    """Draw locations away from whole pixels, where the gradient jumps, unless ``centred`` puts them there.

    Args:
        sizes: B, H, Q, D, P.
        shapes: height and width of each level.
        generator: of random numbers.
        dtype: of value, and of the others unless ``sample_dtype``.
        margin: how far outside of the map locations may be, as a share of its size.
        shift: added to locations, in maps, from row ``shifted`` of the batch on.
        shifted: see ``shift``.
        centred: whether locations are centres of pixels.
        infinite: whether some locations are infinite.
        softmax: whether a query's weights add up to 1.
        deterministic: whether the gradients are to be.
        sample_dtype: of locations and weights.
        layout: of value, with the same values.
    """
    batch, heads, queries, dim, points = sizes
    samples = (batch, heads, queries, len(shapes), points)
    pixels = sum(height * width for height, width in shapes)
    value = torch.randn(batch, heads, pixels, dim, generator=generator, dtype=torch.float64)
    extents = torch.tensor([[width, height] for height, width in shapes], dtype=torch.float64).reshape(-1, 1, 2)
    spread = torch.rand(*samples, 2, generator=generator, dtype=torch.float64) * (1 + 2 * margin) - margin
    whole = (spread * extents - 0.5).floor()
    part = 0.1 + 0.8 * torch.rand(*samples, 2, generator=generator, dtype=torch.float64)
    locations = (whole + (0.0 if centred else part) + 0.5) / extents.clamp(min=1)
    locations[shifted:] += shift
    if infinite:
        locations.flatten()[::7] = torch.inf
        locations.flatten()[3::11] = -torch.inf
    weights = torch.randn(samples, generator=generator, dtype=torch.float64)
    if softmax and len(shapes) and points:
        weights = weights.flatten(3).softmax(-1).view(samples)
    kind = dtype if sample_dtype is None or dtype == torch.float64 else sample_dtype
    value = value.to(dtype)
    if layout is not None:
        value = layout(value)
    locations, weights = locations.to(kind), weights.to(kind)
    read, seen = _read(value, shapes, locations)
    tensors = {"value": value, "locations": locations, "weights": weights}
    unread = ~read
    return Inputs(
        tensors,
        {"shapes": shapes, "deterministic": deterministic},
        tuple(tensors),
        tuple(tensors),
        {"value": ~seen, "locations": unread.unsqueeze(-1), "weights": unread},
        {"output": unread.flatten(3).all(-1, keepdim=True)},
    )


def _read(value: Tensor, shapes: Shapes, locations: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples read a pixel, (B, H, Q, L, P), and which pixels are read, (B, H, S, 1)."""
    read = torch.zeros(locations.shape[:-1], dtype=torch.bool)
    maps = [torch.zeros(*value.shape[:2], 0, dtype=torch.int64)]
    for level, (height, width) in enumerate(shapes):
        corner = [locations[:, :, :, level, :, axis].double() * size - 0.5 for axis, size in ((0, width), (1, height))]
        x, y = (each.nan_to_num(posinf=1e9, neginf=-1e9).clamp(-1e9, 1e9).floor().long() for each in corner)
        counts = torch.zeros(*value.shape[:2], height * width, dtype=torch.int64)
        for right, below in product((0, 1), repeat=2):
            column, row = x + right, y + below
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            read[:, :, :, level] |= inside
            at = torch.where(inside, row * width + column, 0).flatten(2)
            if height * width:
                counts.scatter_add_(2, at, inside.flatten(2).long())
        maps.append(counts)
    return read, torch.cat(maps, 2).unsqueeze(-1) > 0


def _heads_inside(x: Tensor) -> Tensor:
    """Lay out as (B, S, H, D), which is how a projection gives it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _cut(x: Tensor, wider: int | None = None) -> Tensor:
    """Cut out of rows that hold as much again, or ``wider`` numbers more, as one projection for several layers has."""
    more = x.shape[-1] if wider is None else wider
    return torch.cat([x, torch.full_like(x[..., :1], torch.nan).expand(*x.shape[:3], more)], -1)[..., : x.shape[-1]]


def _shared(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)
