"""Additive scores tile by tile: what the torch kernels of both pointer operators share.

A tile of tanh(q + k) stays in the cache and is used for logits, its product with a gradient, and its derivative before
the next one overwrites it. Inside of a tile tanh(q + k) = 2 / (1 + e^{−2q} e^{−2k}) − 1, which is exact and needs an
exponential for each row and column instead of each pair, where no factor leaves the range of the dtype.
docs/operators/additive_attention_scores.md has the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.masks import Reach
from polyhead.ops.chunks import Workspace

__all__ = ["Gradients", "Strip", "Tile", "backward", "strips", "wide_dtype"]

ELEMENTS = {"cpu": 2**18}
"""Numbers in a tile by device type: as many as stay in the caches of two cores."""
ELEMENTS_ELSEWHERE = 2**22
"""Where launches cost more than memory traffic."""
PAYS = 3
"""Pairs for each exponential from which factors are faster than an exponential for each pair."""


class Range(NamedTuple):
    """Where factors are exact."""

    clamp: float
    """e^{±clamp} is a normal number."""
    safe: float
    """If one side is at most this, what is clamped off the other side changes tanh by 2 e^{safe − clamp}, less than a
    unit in the last place of 1."""


RANGES = {torch.float32: Range(86.0, 66.0), torch.float64: Range(700.0, 660.0)}


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Side:
    """Some queries or keys, doubled, in the wide dtype, zero where they take no part."""

    def __init__(self, x: Tensor, part: Tensor | None, name: str, workspace: Workspace) -> None:
        self.doubled = workspace.take(name, *x.shape)
        self.doubled.copy_(x).mul_(2)
        if part is not None:
            self.doubled.masked_fill_(~part.unsqueeze(-1), 0)
        self._name, self._workspace = name, workspace
        self._largest: float | None = None
        self._factor: Tensor | None = None

    def largest(self) -> float:
        """Return the largest absolute value; NaN if there is one."""
        if self._largest is None:
            low, high = self.doubled.aminmax()
            self._largest = float(torch.maximum(-low, high))
        return self._largest

    def factor(self) -> Tensor:
        """Return e^{−2x}."""
        if self._factor is None:
            clamp = RANGES[self.doubled.dtype].clamp
            factor = self._workspace.take(f"{self._name} factor", *self.doubled.shape)
            self._factor = torch.neg(self.doubled, out=factor).clamp_(-clamp, clamp).exp_()
        return self._factor


class Tile(NamedTuple):
    """Queries × keys of some rows of the batch and one head."""

    rows: slice | Tensor
    head: int
    queries: slice
    keys: slice
    hidden: Tensor
    """tanh(q + k), (rows, queries, keys, D)."""
    allowed: Tensor | None
    """Bool, (rows, queries, keys); None if all pairs are."""
    weight: Tensor
    """(D,), wide."""
    workspace: Workspace

    def logits(self) -> Tensor:
        """Return the sums over hidden units, (rows, queries, keys), neither clipped nor masked."""
        out = self.workspace.take("logits", *self.hidden.shape[:3])
        torch.mv(self.hidden.flatten(0, 2), self.weight, out=out.view(-1))
        return out

    def of(self, x: Tensor) -> Tensor:
        """Return the part of x (B, H, Sq, Sk) that belongs to this tile."""
        return x[self.rows, self.head, self.queries, self.keys]


class Strip(NamedTuple):
    """Some rows of the batch and one head, cut into blocks of keys and queries. A row alone is as long as it is."""

    rows: slice | Tensor
    height: int
    head: int
    queries: int
    keys: int
    """Of the longest row; what lies behind takes no part."""
    q: Tensor
    k: Tensor
    weight: Tensor
    reach: Reach | None
    workspace: Workspace

    @property
    def elements(self) -> int:
        """Numbers in a tile, at most, unless one pair has more."""
        return _elements(self.q)

    def blocks(self) -> Iterator[tuple[slice, Iterator[Tile]]]:
        """Yield blocks of keys, each with its tiles along the queries. Use up the tiles before the next block."""
        pairs = max(self.elements // self.q.shape[3], 1)
        wide = min(self.keys, max(pairs // min(self.queries, 8), 1))
        high = max(pairs // (wide * self.height), 1)
        for start in range(0, self.keys, wide):
            keys = slice(start, min(start + wide, self.keys))
            yield keys, self._tiles(keys, high)

    def _tiles(self, keys: slice, high: int) -> Iterator[Tile]:
        right = self._side("k", self.k, None if self.reach is None else self.reach.keys, keys)
        # All queries at once where they are few: what is done to each tile's own costs more calls than arithmetic.
        span = self.queries if self.height * self.queries * self.q.shape[3] <= self.elements else high
        for first in range(0, self.queries, span):
            several = slice(first, min(first + span, self.queries))
            left = self._side("q", self.q, None if self.reach is None else self.reach.queries, several)
            for start in range(first, several.stop, high):
                queries = slice(start, min(start + high, several.stop))
                hidden = self._hidden(left, slice(queries.start - first, queries.stop - first), right)
                yield self._tile(queries, keys, hidden)

    def _tile(self, queries: slice, keys: slice, hidden: Tensor) -> Tile:
        allowed = self._allowed(queries, keys)
        return Tile(self.rows, self.head, queries, keys, hidden, allowed, self.weight, self.workspace)

    def _side(self, name: str, x: Tensor, part: Tensor | None, where: slice) -> _Side:
        if part is not None:
            part = part[self.rows, self.head, where]
        return _Side(x[self.rows, self.head, where], part, name, self.workspace)

    def _hidden(self, q: _Side, which: slice, k: _Side) -> Tensor:
        doubled = q.doubled[:, which]
        height, queries, head_dim = doubled.shape
        keys = k.doubled.shape[1]
        out = self.workspace.take("hidden", height, queries, keys, head_dim)
        if out.device.type != "cpu":
            return torch.add(doubled.unsqueeze(2), k.doubled.unsqueeze(1), out=out).mul_(0.5).tanh_()
        minus_one = out.new_full((head_dim,), -1.0)
        # A comparison with NaN is false; below, NaN and Inf stay with the pairs that have them.
        if (
            queries * keys > PAYS * (queries + keys)
            and min(q.largest(), k.largest()) <= RANGES[out.dtype].safe
            and q.largest() + k.largest() < torch.inf
        ):
            torch.addcmul(out.new_ones(()), q.factor()[:, which].unsqueeze(2), k.factor().unsqueeze(1), out=out)
            return torch.addcdiv(minus_one, out.new_full((), 2.0), out, out=out)
        torch.add(doubled.unsqueeze(2), k.doubled.unsqueeze(1), out=out).sigmoid_()  # five times as fast as tanh_
        return torch.add(minus_one, out, alpha=2, out=out)

    def _allowed(self, queries: slice, keys: slice) -> Tensor | None:
        if self.reach is None:
            return None
        rows = self.reach.queries[self.rows, self.head, queries]
        allowed = rows.unsqueeze(2) & self.reach.keys[self.rows, self.head, keys].unsqueeze(1)
        return allowed if self.reach.mask is None else allowed & self.reach.mask[self.rows, self.head, queries, keys]


def strips(q: Tensor, k: Tensor, weight: Tensor, reach: Reach | None) -> Iterator[Strip]:
    """Yield everything that takes part: on a CPU, short rows together, those of like length beside one another."""
    workspace = Workspace(wide_dtype(q.dtype), q.device)
    weight = weight.to(workspace.dtype)
    for rows, height, queries, keys in _groups(q, k, reach):
        for head in range(q.shape[1]):
            yield Strip(rows, height, head, queries, keys, q, k, weight[head], reach, workspace)


def _groups(q: Tensor, k: Tensor, reach: Reach | None) -> Iterator[tuple[slice | Tensor, int, int, int]]:
    """Yield rows of the batch, how many they are, and the number of queries and of keys of the longest."""
    batch, _, queries, head_dim = q.shape
    keys = k.shape[2]
    if reach is None or q.device.type != "cpu":
        if queries and keys:
            height = max(_elements(q) // (queries * keys * head_dim), 1)
            for start in range(0, batch, height):
                stop = min(start + height, batch)
                yield slice(start, stop), stop - start, queries, keys
        return
    extents = zip(_extents(reach.keys), _extents(reach.queries), strict=True)
    longest_first = sorted(((n, m, row) for row, (n, m) in enumerate(extents) if n and m), reverse=True)
    group: list[int] = []
    size = (0, 0)
    for n, m, row in longest_first:
        grown = (max(size[0], n), max(size[1], m))
        if group and (len(group) + 1) * grown[0] * grown[1] * head_dim > _elements(q):
            yield torch.tensor(group), len(group), size[1], size[0]
            group, grown = [], (n, m)
        group.append(row)
        size = grown
    if group:
        yield torch.tensor(group), len(group), size[1], size[0]


def _extents(part: Tensor) -> list[int]:
    """Return for each row of the batch where the last one that takes part ends."""
    if not part.numel():
        return [0] * part.shape[0]
    places = torch.arange(1, part.shape[2] + 1, device=part.device)
    return (part.any(1) * places).amax(1).tolist()


def _elements(q: Tensor) -> int:
    return ELEMENTS.get(q.device.type, ELEMENTS_ELSEWHERE)


class Gradients(NamedTuple):
    """Of q, k and weight, in their shapes and dtypes."""

    q: Tensor
    k: Tensor
    weight: Tensor


def backward(
    q: Tensor, k: Tensor, weight: Tensor, reach: Reach | None, gradient: Callable[[Tile], Tensor]
) -> Gradients:
    """Return the gradients, tiles computed again and summed in a fixed order.

    Args:
        q: as for the forward pass, like the others.
        k: as well.
        weight: as well.
        reach: as well.
        gradient: of a tile's logits, (rows, queries, keys), zero where a query may not attend.
    """
    grad_q, grad_k = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    # Sums over all pairs of a head: float32 would lose digits.
    dweight = torch.zeros(weight.shape, dtype=torch.float64, device=q.device)
    for strip in strips(q, k, weight, reach):
        take = strip.workspace.take
        head_dim = q.shape[3]
        dq = take("dq", strip.height, strip.queries, head_dim).zero_()
        for keys, tiles in strip.blocks():
            dk = take("dk", strip.height, keys.stop - keys.start, head_dim).zero_()
            for tile in tiles:
                g, hidden = gradient(tile), tile.hidden
                dweight[strip.head] += torch.mv(hidden.flatten(0, 2).mT, g.reshape(-1), out=take("sum", head_dim))
                torch.ops.aten.tanh_backward.grad_input(g.unsqueeze(-1), hidden, grad_input=hidden)
                count = tile.queries.stop - tile.queries.start
                dq[:, tile.queries] += torch.sum(hidden, 2, out=take("over keys", strip.height, count, head_dim))
                dk += torch.sum(hidden, 1, out=take("over queries", *dk.shape))
            grad_k[strip.rows, strip.head, keys] = dk.mul_(strip.weight).to(k.dtype)
        grad_q[strip.rows, strip.head, : strip.queries] = dq.mul_(strip.weight).to(q.dtype)
    return Gradients(grad_q, grad_k, dweight.to(weight.dtype))
