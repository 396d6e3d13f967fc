"""The inputs on which every kernel of linear attention with decay is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.spec import Case, Inputs

__all__ = ["cases"]

Decaying = Callable[[tuple[int, int, int], torch.Generator], Tensor]
"""Draws log decays for (B, H, S), as (H,) or (B, H, S)."""


def cases() -> Iterable[Case]:
    """Yield lengths around chunk sizes, every combination of arguments, and the edges of the contract."""
    yield _case("one token", (1, 1, 1, 1, 1))
    yield _case("one token from a state", (2, 2, 1, 4, 3), state=True)
    yield _case("constant decay", (2, 3, 5, 8, 5), state=True, traced=True)
    yield _case("decay of each token", (2, 3, 5, 5, 8), decay=_varying, state=True, traced=True)
    for length in (15, 16, 17, 32, 63, 64, 65, 128, 150):
        yield _case(f"length {length}", (1, 2, length, 4, 6), decay=_varying if length % 2 else _constant, state=True)
    yield _case("several groups of chunks", (1, 1, 1300, 3, 4))
    yield _case("several groups of chunks, decay of each token", (1, 1, 1101, 4, 3), decay=_varying, state=True)
    yield _case("no decay", (1, 2, 70, 4, 4), decay=lambda size, _: torch.zeros(size[1]), state=True)
    yield _case("no decay, by token", (1, 2, 70, 4, 4), decay=lambda size, _: torch.zeros(size))
    yield _case("little decay", (1, 2, 90, 4, 4), decay=lambda *_: torch.tensor([-1e-6, -4e-3]))
    yield _case("strong decay", (1, 3, 90, 4, 4), decay=lambda *_: torch.tensor([-2.0, -30.0, -200.0]), state=True)
    yield _case("a head that forgets everything", (1, 2, 70, 4, 4), decay=lambda *_: torch.tensor([-torch.inf, -0.1]))
    yield _case("tokens that forget everything", (2, 2, 70, 4, 4), decay=_resets, state=True)
    yield _case("decay from 0 to -300", (1, 2, 140, 4, 4), decay=_spread, state=True)
    yield _case("decay shared by the heads", (2, 3, 21, 4, 4), decay=_shared)
    yield _case("decay in float32", (1, 2, 40, 4, 4), decay_dtype=torch.float32, state=True)
    yield _case("head_dim 1, value_dim 17", (1, 2, 20, 1, 17), state=True)
    yield _case("head_dim 33", (1, 1, 70, 33, 20), decay=_varying, state=True)
    yield _case("head_dim 16, value_dim 32", (2, 2, 70, 16, 32), state=True)
    yield _case("scale", (1, 2, 70, 4, 4), scale=-0.3, state=True, decay=_varying)
    yield _case("scale 0", (1, 1, 9, 4, 4), scale=0.0, state=True)
    yield _case("many short rows", (4, 5, 6, 4, 3), state=True)
    yield _case("heads last but one in memory", (2, 3, 70, 4, 5), layout=_heads_inside, state=True)
    yield _case("heads last but one in memory, several groups", (2, 1, 1030, 3, 2), layout=_heads_inside)
    yield _case("last dimension not contiguous", (2, 2, 70, 4, 5), layout=_transposed, decay=_varying)
    yield _case("packed", (1, 2, 150, 4, 5), ends=(0, 1, 70, 134, 150), state=True)
    yield _case("packed, decay of each token", (1, 3, 150, 5, 4), ends=(0, 64, 65, 65, 140, 150), decay=_varying)
    yield _case("packed, many short ones", (1, 2, 60, 4, 3), ends=tuple(range(0, 61, 4)), state=True, decay=_varying)
    yield _case("packed, empty ones", (1, 2, 9, 4, 3), ends=(0, 0, 5, 5, 9, 9), state=True)
    yield _case("packed, tokens left over", (1, 2, 80, 4, 3), ends=(0, 7, 70), state=True, decay=_varying)
    yield _case("packed, one sequence", (1, 2, 66, 4, 3), ends=(0, 66), state=True)
    yield _case("packed, no sequence", (1, 2, 5, 4, 3), ends=(0,))
    yield _case("batch of zero", (0, 2, 5, 4, 3), state=True)
    yield _case("no tokens", (2, 2, 0, 4, 3), state=True)
    yield _case("no tokens, no state", (2, 2, 0, 4, 3), decay=_varying)


def _case(name: str, sizes: tuple[int, int, int, int, int], *, traced: bool = False, **arguments: Any) -> Case:
    return Case(name, partial(_draw, sizes, **arguments), traced)


def _constant(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return -torch.rand(size[1], generator=generator, dtype=torch.float64)


def _varying(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return -torch.rand(size, generator=generator, dtype=torch.float64)


def _spread(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return -300 * torch.rand(size, generator=generator, dtype=torch.float64) ** 6


def _shared(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return _varying((size[0], 1, size[2]), generator)


def _resets(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Forget everything at a fifth of the tokens."""
    decays = _varying(size, generator)
    return decays.masked_fill_(torch.rand(size, generator=generator) < 0.2, -torch.inf)


def _draw(
    sizes: tuple[int, int, int, int, int],
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    decay: Decaying = _constant,
    decay_dtype: torch.dtype | None = None,
    state: bool = False,
    ends: Sequence[int] | None = None,
    scale: float = 1.0,
    layout: Callable[[Tensor], Tensor] | None = None,
) -> Inputs:
    batch, heads, length, head_dim, value_dim = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "q": normal(batch, heads, length, head_dim),
        "k": normal(batch, heads, length, head_dim) * head_dim**-0.5,
        "v": normal(batch, heads, length, value_dim),
    }
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    if layout is not None:
        tensors = {name: layout(x) for name, x in tensors.items()}
    tensors["log_decay"] = decay((batch, heads, length), generator).to(decay_dtype or dtype)
    sequences = batch if ends is None else len(ends) - 1
    if state:
        tensors["initial_state"] = normal(sequences, heads, head_dim, value_dim).to(dtype)
    differentiable = tuple(tensors)
    by_token = tensors["log_decay"].ndim == 3
    unreachable: dict[str, Tensor] = {}
    empty: dict[str, Tensor] = {}
    batched: tuple[str, ...] = ()
    if ends is None:
        batched = tuple(name for name in tensors if name != "log_decay" or by_token)
    else:
        tensors["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
        left_over = (torch.arange(length) >= ends[-1])[None, None, :, None]
        unreachable = dict.fromkeys("qkv", left_over)
        if by_token:
            unreachable["log_decay"] = left_over.squeeze(-1)
        empty = {"output": left_over}
    return Inputs(tensors, {"scale": scale}, differentiable, batched, unreachable, empty)


def _heads_inside(x: Tensor) -> Tensor:
    """Lay out as (batch, seq, heads, head_dim), which is how a projection gives it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT
