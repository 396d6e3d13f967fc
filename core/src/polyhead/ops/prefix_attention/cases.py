"""The inputs on which every kernel of attention over prefixes is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.spec import Case, Inputs

__all__ = ["cases"]

Masking = Callable[[tuple[int, int], torch.Generator], Tensor]
"""Draws a key_mask (B, S)."""


def cases() -> Iterable[Case]:
    """Yield lengths around chunk sizes, every combination of arguments, and the edges of the contract."""
    yield _case("one token", (1, 1, 1, 1, 1))
    yield _case("one token from a state", (2, 2, 1, 4, 3), state=True)
    yield _case("a query for all rows", (2, 3, 5, 8, 5), traced=True)
    yield _case("a query for each row", (2, 3, 5, 5, 8), by_row=True, state=True, mask=_random, traced=True)
    for length in (15, 16, 17, 31, 32, 33, 64, 65, 130):
        yield _case(f"length {length}", (1, 2, length, 4, 6), state=length % 2 == 1)
    yield _case("several groups of chunks, masked", (1, 1, 2211, 4, 3), mask=_random, state=True)
    yield _case("padded behind", (3, 2, 70, 4, 5), mask=_behind, by_row=True)
    yield _case("padded before", (3, 2, 70, 4, 5), mask=_before, state=False)
    yield _case("padded before, from a state", (3, 2, 70, 4, 5), mask=_before, state=True)
    yield _case("keys masked at random", (2, 2, 70, 4, 5), mask=_random, state=True, layout=_heads_inside)
    yield _case("nothing allowed", (2, 2, 40, 4, 3), mask=_nothing)
    yield _case("nothing allowed, from a state", (1, 2, 40, 4, 3), mask=_nothing, state=True)
    yield _case("from an empty state", (2, 2, 35, 4, 3), state=True, empty=True, mask=_before)
    yield _case("logits around 80", (1, 2, 140, 8, 4), spread=80.0, state=True)
    yield _case("logits around 10 000, masked", (1, 2, 70, 8, 4), spread=1e4, mask=_random)
    yield _case("logits that rise", (1, 2, 140, 1, 4), drift=3.0, scale=1.0)
    yield _case("logits that fall, from a state", (1, 2, 140, 1, 4), drift=-3.0, scale=1.0, state=True)
    yield _case("logits around -190", (1, 2, 70, 1, 4), drift=0.0, offset=-190.0, scale=1.0)
    yield _case("equal logits", (1, 2, 70, 4, 4), scale=0.0, state=True)
    yield _case("negative scale", (1, 2, 70, 4, 4), scale=-0.7, mask=_random)
    yield _case("head_dim 1, value_dim 17", (1, 2, 40, 1, 17), state=True)
    yield _case("head_dim 33, value_dim 1", (1, 2, 70, 33, 1), state=True)
    yield _case("head_dim 40, value_dim 70", (1, 1, 70, 40, 70))
    yield _case("many short rows", (9, 5, 6, 4, 3), state=True, mask=_behind)
    yield _case("heads last but one in memory, several groups", (2, 2, 2070, 3, 2), layout=_heads_inside)
    yield _case("last dimension not contiguous", (2, 2, 70, 4, 5), layout=_transposed)
    yield _case("batch of zero", (0, 2, 5, 4, 3), state=True, mask=_random)
    yield _case("no tokens", (2, 2, 0, 4, 3), state=True)
    yield _case("no tokens, no state", (2, 2, 0, 4, 3), mask=_random)


def _case(name: str, sizes: tuple[int, int, int, int, int], *, traced: bool = False, **arguments: Any) -> Case:
    return Case(name, partial(_draw, sizes, **arguments), traced)


def _random(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator) < 0.6


def _nothing(size: tuple[int, int], _: torch.Generator) -> Tensor:
    return torch.zeros(size, dtype=torch.bool)


def _behind(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Keep the first keys of each row, at least one."""
    lengths = torch.randint(1, max(size[1], 2), (size[0], 1), generator=generator)
    return torch.arange(size[1]) < lengths


def _before(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Keep the last keys of each row; the first prefixes are empty, in the second row more than a chunk."""
    lengths = torch.randint(1, max(size[1], 2), (size[0], 1), generator=generator)
    lengths[1] = size[1] - 33
    return torch.arange(size[1]) >= size[1] - lengths


def _draw(
    sizes: tuple[int, int, int, int, int],
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    by_row: bool = False,
    state: bool = False,
    empty: bool = False,
    mask: Masking | None = None,
    scale: float | None = None,
    spread: float = 1.0,
    drift: float | None = None,
    offset: float = 0.0,
    layout: Callable[[Tensor], Tensor] | None = None,
) -> Inputs:
    batch, heads, length, head_dim, value_dim = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "q": normal(*(batch, heads) if by_row else (heads,), head_dim) * spread,
        "k": normal(batch, heads, length, head_dim),
        "v": normal(batch, heads, length, value_dim),
    }
    largest = spread
    if drift is not None:  # the key is the logit
        tensors["q"] = torch.ones_like(tensors["q"])
        tensors["k"] += offset + drift * torch.arange(length)[:, None]
        largest = abs(offset) + abs(drift) * length
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    if layout is not None:
        tensors = {name: x if name == "q" else layout(x) for name, x in tensors.items()}
    if state:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        given = {"m": normal(batch, heads), "u": 1 + normal(batch, heads).abs(), "w": normal(batch, heads, value_dim)}
        if empty:
            given = {name: torch.full_like(x, -torch.inf if name == "m" else 0) for name, x in given.items()}
        tensors |= {f"initial_state.{name}": x.to(wide) for name, x in given.items()}
    differentiable = tuple(tensors)
    unreachable, zeros = {}, {}
    if mask is not None:
        tensors["key_mask"] = mask((batch, length), generator)
        hidden = ~tensors["key_mask"][:, None, :, None]
        unreachable = {"k": hidden, "v": hidden}
        if not state or empty:
            zeros = {"output": ~tensors["key_mask"].cumsum(1).bool()[:, None, :, None]}
    batched = tuple(name for name in tensors if name != "q" or by_row)
    # Rounding a logit l by one unit changes its weight by the factor 1 ± l·eps.
    return Inputs(tensors, {"scale": scale}, differentiable, batched, unreachable, zeros, max(largest, 1.0))


def _heads_inside(x: Tensor) -> Tensor:
    """Lay out as (batch, seq, heads, head_dim), which is how a projection gives it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT
