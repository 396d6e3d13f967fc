"""The inputs on which every kernel that scores keys additively is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.reference import allowed_pairs
from polyhead.ops.spec import Case, Inputs

__all__ = ["Drawn", "cases", "points"]

Sizes = tuple[int, int, int, int, int]
"""(B, H, Sq, Sk, D)."""


class Drawn(NamedTuple):
    """A point of the input space."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    batched: tuple[str, ...]
    queries: Tensor
    """Bool, (B, H, Sq): which may attend nothing."""
    keys: Tensor
    """Bool, (B, H, Sk): which nobody may attend."""

    def inputs(self, output: str, empty: Tensor) -> Inputs:
        """Return the arguments of a test case whose output is exactly zero where it is ``empty``."""
        unreachable = {"q": self.queries.unsqueeze(3), "k": self.keys.unsqueeze(3)}
        return Inputs(self.tensors, self.options, ("q", "k", "weight"), self.batched, unreachable, {output: empty})


def cases() -> Iterator[Case]:
    """Yield the cases of ``additive_attention_scores``."""

    def make(draw: Callable[..., Drawn], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        drawn = draw(generator, dtype)
        return drawn.inputs("logits", drawn.queries.unsqueeze(3))

    for name, traced, draw in points():
        yield Case(name, partial(make, draw), traced)


def points() -> Iterator[tuple[str, bool, Callable[..., Drawn]]]:
    """Yield names, whether they are traced, and functions of a generator and a dtype: the edges of the contract."""
    yield _point("one query, one key", (1, 1, 1, 1, 1))
    yield _point("odd lengths", (2, 3, 7, 11, 5), traced=True)
    yield _point("ragged", (4, 1, 6, 9, 8), lengths=(9, 1, 4, 7), query_lengths=(6, 2, 5, 1), mask=_random, traced=True)
    for length in (15, 16, 17, 33):
        yield _point(f"length {length}", (1, 2, length, length, 16), clip=3.0 if length == 17 else None)
    yield _point("many short rows", (11, 1, 3, 5, 4), lengths=tuple(1 + at % 5 for at in range(11)))
    yield _point("one query, many keys", (3, 1, 1, 65, 8), lengths=(65, 64, 3))
    yield _point("one key, many queries", (2, 1, 33, 1, 8))
    yield _point("several tiles of queries", (1, 1, 150, 9, 300))
    yield _point("several tiles of keys", (1, 1, 20, 200, 300), mask=_random, clip=10.0)
    yield _point("hidden units 1", (2, 2, 5, 6, 1))
    yield _point("hidden units 33", (2, 2, 9, 8, 33), mask=_random)
    yield _point("rows without keys", (3, 2, 9, 11, 8), mask=_holes)
    yield _point(
        "rows of the batch without keys or queries", (4, 1, 5, 6, 8), lengths=(6, 0, 3, 2), query_lengths=(5, 4, 0, 1)
    )
    yield _point("nothing allowed", (2, 1, 5, 6, 4), lengths=(0, 0), clip=2.0)
    yield _point("lengths beyond the end", (2, 1, 5, 6, 4), lengths=(6, 99), query_lengths=(99, 4))
    yield _point("a mask for all rows and heads", (2, 2, 5, 6, 4), mask=lambda size, g: _random((1, 1, *size[2:]), g))
    yield _point("padded keys as a mask", (3, 2, 8, 9, 4), mask=_padding)
    yield _point("padded queries as a mask", (3, 2, 8, 9, 4), mask=_padded_queries, lengths=(9, 5, 7))
    yield _point("a mask for each head", (2, 3, 7, 6, 4), mask=lambda size, g: _padding((*size[:2], 1, size[3]), g))
    yield _point("clipped", (2, 2, 9, 7, 8), clip=2.5, lengths=(7, 4), traced=True)
    yield _point("arguments around 80 that cancel", (1, 2, 17, 13, 8), shift=80.0)
    yield _point("arguments up to 80", (2, 1, 17, 13, 8), spread=30.0, lengths=(13, 8))
    yield _point("queries up to 400, keys small", (1, 1, 17, 13, 8), query_spread=150.0)
    yield _point("keys up to 400, queries small", (1, 1, 17, 13, 8), key_spread=150.0, mask=_random)
    yield _point("arguments near 0", (2, 1, 17, 13, 64), spread=0.03)
    yield _point("heads last but one in memory", (2, 3, 7, 9, 8), layout=_heads_inside, lengths=(9, 5))
    yield _point("last dimension not contiguous", (2, 2, 7, 9, 8), layout=_transposed)
    yield _point("keys shared by the batch", (3, 1, 7, 9, 8), shared_keys=True)
    yield _point("batch of zero", (0, 2, 5, 7, 8), lengths=())
    yield _point("no queries", (2, 1, 0, 7, 8), lengths=(7, 3))
    yield _point("no keys", (2, 2, 5, 0, 8))


def _point(
    name: str, sizes: Sizes, *, traced: bool = False, **arguments: Any
) -> tuple[str, bool, Callable[..., Drawn]]:
    return name, traced, partial(_draw, sizes, **arguments)


def _draw(
    sizes: Sizes,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    mask: Callable[[tuple[int, ...], torch.Generator], Tensor] | None = None,
    lengths: tuple[int, ...] | None = None,
    query_lengths: tuple[int, ...] | None = None,
    clip: float | None = None,
    spread: float = 1.0,
    query_spread: float = 1.0,
    key_spread: float = 1.0,
    shift: float = 0.0,
    layout: Callable[[Tensor], Tensor] | None = None,
    shared_keys: bool = False,
) -> Drawn:
    batch, heads, queries, keys, head_dim = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = spread * query_spread * normal(batch, heads, queries, head_dim) + shift
    k = spread * key_spread * normal(batch, heads, keys, head_dim) - shift
    tensors = {"q": q.to(dtype), "k": k.to(dtype)}
    if layout is not None:
        tensors = {name: layout(x) for name, x in tensors.items()}
    if shared_keys:
        tensors["k"] = tensors["k"][:1].expand(batch, -1, -1, -1)
    tensors["weight"] = (normal(heads, head_dim) * head_dim**-0.5).to(dtype)
    batched = ["q", "k"]
    if mask is not None:
        tensors["mask"] = mask((batch, heads, queries, keys), generator)
        if tensors["mask"].shape[0] == batch:
            batched.append("mask")
    for name, given in (("lengths", lengths), ("query_lengths", query_lengths)):
        if given is not None:
            tensors[name] = torch.tensor(given, dtype=torch.int64)
            batched.append(name)
    allowed = allowed_pairs(
        tensors["q"], tensors["k"], tensors.get("mask"), tensors.get("lengths"), tensors.get("query_lengths")
    )
    return Drawn(tensors, {"clip": clip}, tuple(batched), ~allowed.any(3), ~allowed.any(2))


def _random(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator) < 0.6


def _holes(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Leave a fifth of the queries without keys."""
    return _random(size, generator) & (torch.rand(*size[:3], 1, generator=generator) < 0.8)


def _padding(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Leave (B, 1, 1, Sk), or one for each head, with one key at least."""
    heads = size[1] if size[2] == 1 else 1
    ends = torch.randint(1, size[3] + 1, (size[0], heads, 1, 1), generator=generator)
    return torch.arange(size[3]) < ends


def _padded_queries(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Leave (B, 1, Sq, 1), with one query at least."""
    return _padding((*size[:2], size[3], size[2]), generator).mT


def _heads_inside(x: Tensor) -> Tensor:
    """Lay out as (batch, seq, heads, head_dim), which is how a projection gives it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT
