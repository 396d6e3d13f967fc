"""The inputs on which every kernel of softmax attention is held against the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.softmax_attention.patterns import BlockMask, Neighbourhood, Pattern
from polyhead.ops.spec import Case, Inputs

__all__ = ["cases"]

_CUT = Neighbourhood((140,), (33,), cut=True)
_SMALL = Neighbourhood((5, 7), (3, 5))
_BLOCKS = BlockMask(((0, 2), (1, 2, 5), (), (0, 1, 2, 3, 4), (5,)), (16, 17))
"""Blocks that do not divide the lengths, one that sees nothing, and one that no query sees."""
Masking = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws a mask for logits of shape (B, H, Sq, Sk)."""


def cases() -> Iterable[Case]:
    """Yield lengths around block sizes, every combination of arguments, and the edges of the contract."""
    yield _case("one query, one key", (1, 1, 1, 1, 1))
    yield _case("odd lengths", (2, 3, 37, 53, 8), traced=True)
    for length in (31, 32, 33, 64, 65, 257):
        yield _case(f"length {length}", (1, 2, length, length, 8), causal=length % 2 == 1)
    yield _case("several blocks", (1, 1, 801, 1027, 4), mask=_random)
    yield _case("many short sequences", (32, 8, 12, 9, 8), value_dim=5)
    yield _case("many short sequences, causal", (32, 8, 12, 12, 4), causal=True, scale=-0.6, layout=_heads_inside)
    yield _case("many short sequences, large logits", (2, 128, 5, 16, 8), spread=80.0, return_weights=[3])
    yield _case("narrow heads, long", (1, 2, 130, 141, 5), value_dim=9)
    yield _case("causal", (2, 2, 19, 19, 8), causal=True)
    yield _case("causal, one query", (2, 2, 1, 19, 8), causal=True)
    yield _case("causal, few queries", (2, 2, 5, 19, 8), causal=True)
    yield _case("causal, more keys than queries", (2, 2, 14, 19, 8), causal=True, traced=True)
    yield _case("causal, more queries than keys", (2, 2, 19, 12, 8), causal=True)
    yield _case("grouped heads", (2, 6, 11, 13, 8), kv_heads=2, mask=_random)
    yield _case("one key head, causal", (2, 4, 11, 11, 8), kv_heads=1, causal=True)
    yield _case("values narrower than keys", (2, 2, 11, 13, 16), value_dim=5, mask=_padding)
    yield _case("values wider than keys", (2, 2, 11, 13, 3), value_dim=16)
    yield _case("padded keys", (3, 2, 7, 21, 8), mask=_padding)
    yield _case("padded keys, grouped heads, a mask for each head", (2, 4, 7, 9, 8), kv_heads=2, mask=_padding_of_heads)
    yield _case("rows without keys", (2, 3, 9, 11, 8), mask=_holes)
    yield _case("nothing allowed", (1, 2, 5, 6, 8), mask=lambda size, _: torch.zeros(size, dtype=torch.bool))
    yield _case("mask and causal", (2, 2, 13, 17, 8), mask=_padding, causal=True)
    yield _case("mask of a batch, of heads, of queries", (2, 3, 7, 9, 8), mask=_rows)
    yield _case("bias", (2, 3, 9, 11, 8), bias=(1, 3, 9, 11), traced=True)
    yield _case("bias without gradient, causal", (2, 3, 9, 11, 8), bias=(2, 1, 1, 11), learned=False, causal=True)
    yield _case("bias that forbids", (2, 3, 9, 11, 8), bias=(2, 3, 9, 11), forbids=True)
    yield _case("bias that forbids, no gradient", (2, 3, 9, 11, 8), bias=(1, 1, 9, 11), forbids=True, learned=False)
    yield _case("bias and mask", (2, 4, 9, 11, 8), bias=(2, 4, 9, 11), mask=_padding, kv_heads=2)
    yield _case("logits around 80", (1, 2, 17, 19, 8), spread=80.0)
    yield _case("logits around 10 000, masked", (1, 2, 17, 19, 8), spread=1e4, mask=_holes)
    yield _case("scale 1", (1, 2, 9, 11, 8), scale=1.0)
    yield _case("scale 0", (1, 2, 9, 11, 8), scale=0.0, mask=_padding)
    yield _case("negative scale", (1, 2, 9, 11, 8), scale=-0.7, mask=_random)
    yield _case("negative scale, causal", (1, 2, 9, 11, 8), scale=-0.7, causal=True)
    yield _case("scale 0, causal", (1, 2, 11, 11, 8), scale=0.0, causal=True)
    yield _case("heads last but one in memory", (2, 3, 9, 11, 8), layout=_heads_inside, mask=_holes)
    yield _case("last dimension not contiguous", (2, 3, 9, 11, 8), layout=_transposed)
    yield _case("one key for the whole batch", (3, 2, 9, 11, 8), layout=_shared_keys, mask=_padding)
    yield _case("weights of all heads", (2, 4, 9, 11, 8), kv_heads=2, mask=_holes, return_weights=True, traced=True)
    yield _case("weights of some heads", (2, 4, 9, 13, 8), causal=True, return_weights=[2, 0])
    yield _case("weights of one head, bias", (2, 4, 9, 11, 8), bias=(1, 4, 9, 11), return_weights=[3])
    window, patch = Neighbourhood((300,), (21,)), Neighbourhood((13, 17), (5, 3))
    yield _case("window", (1, 2, 300, 300, 8), pattern=window)
    yield _case("window, causal, cut at the border", (2, 2, 140, 140, 8), pattern=_CUT, causal=True)
    yield _case("window, padded keys", (3, 4, 300, 300, 8), pattern=window, mask=_padding, kv_heads=2, value_dim=5)
    yield _case("patches", (2, 2, 221, 221, 8), pattern=patch, traced=True)
    yield _case("patches, a mask for each head, causal", (2, 4, 221, 221, 4), pattern=patch, mask=_random, causal=True)
    yield _case("patches, large logits", (1, 2, 221, 221, 8), pattern=patch, spread=80.0, scale=-0.3)
    yield _case("neighbourhoods in three dimensions", (1, 2, 210, 210, 8), pattern=Neighbourhood((5, 6, 7), (3, 3, 5)))
    yield _case("neighbourhood, bias", (1, 2, 35, 35, 8), pattern=_SMALL, bias=(1, 2, 35, 35))
    yield _case("neighbourhood, weights", (1, 2, 35, 35, 8), pattern=_SMALL, return_weights=[1])
    yield _case("blocks", (2, 2, 70, 90, 8), pattern=_BLOCKS, layout=_heads_inside)
    yield _case("blocks, causal, grouped heads", (2, 4, 70, 90, 8), pattern=_BLOCKS, causal=True, kv_heads=2)
    yield _case("blocks, padded keys", (3, 2, 70, 90, 8), pattern=_BLOCKS, mask=_padding)
    yield _case("blocks, one key for the whole batch", (2, 2, 70, 90, 8), pattern=_BLOCKS, layout=_shared_keys)
    yield _case("batch of zero, blocks", (0, 2, 70, 90, 8), pattern=_BLOCKS)
    yield _case("batch of zero", (0, 2, 5, 7, 8), mask=_padding)
    yield _case("no queries", (2, 2, 0, 7, 8), causal=True)
    yield _case("no keys", (2, 2, 5, 0, 8), mask=_padding, return_weights=True)


def _case(name: str, sizes: tuple[int, int, int, int, int], *, traced: bool = False, **arguments: Any) -> Case:
    return Case(name, partial(_draw, sizes, **arguments), traced)


def _draw(
    sizes: tuple[int, int, int, int, int],
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    mask: Masking | None = None,
    bias: tuple[int, ...] | None = None,
    forbids: bool = False,
    learned: bool = True,
    causal: bool = False,
    scale: float | None = None,
    spread: float = 1.0,
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    return_weights: bool | list[int] = False,
    pattern: Pattern | None = None,
) -> Inputs:
    batch, heads, queries, keys, head_dim = sizes
    groups = kv_heads or heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "q": normal(batch, heads, queries, head_dim) * spread,
        "k": normal(batch, groups, keys, head_dim),
        "v": normal(batch, groups, keys, value_dim or head_dim),
    }
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    if layout is not None:
        tensors = layout(tensors)
    logits = (batch, heads, queries, keys)
    seen = torch.ones(logits, dtype=torch.bool)
    if causal:
        seen = seen.tril(keys - queries)
    if pattern is not None:
        seen = seen & pattern.materialise(queries, keys)
    if mask is not None:
        tensors["mask"] = mask(logits, generator)
        seen = seen & tensors["mask"]
    if bias is not None:
        tensors["bias"] = normal(*bias).to(dtype)
        if forbids:
            forbidden = torch.rand(bias, generator=generator) < 0.2
            forbidden[..., 3, :] = True
            forbidden[..., 5] = True
            tensors["bias"].masked_fill_(forbidden, -torch.inf)
        seen = seen & (tensors["bias"] > -torch.inf)

    nothing, unseen = ~seen.any(-1, keepdim=True), ~seen.any(-2).unsqueeze(-1)
    unseen = unseen.unflatten(1, (groups, heads // groups)).all(2)
    empty = {"output": nothing}
    if return_weights:
        empty["weights"] = ~seen if isinstance(return_weights, bool) else ~seen[:, return_weights]
    if layout is _shared_keys:
        unseen = unseen.all(0, keepdim=True)  # one key in memory is seen if any row of the batch sees it
    per_row = ["q", "k", "v"] + [name for name in ("mask", "bias") if name in tensors and tensors[name].shape[0] > 1]
    return Inputs(
        tensors,
        {"causal": causal, "scale": scale, "return_weights": return_weights, "pattern": pattern},
        ("q", "k", "v", *(["bias"] if bias is not None and learned else [])),
        tuple(per_row),
        {"q": nothing, "k": unseen, "v": unseen},
        empty,
        # Rounding a logit l by one unit changes its weight by the factor 1 ± l·eps; fused kernels, which compute the
        # logits again in the backward pass, are off by so much.
        condition=spread,
    )


def _random(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Keep about two of three pairs, and the first key of each row."""
    mask = torch.rand(size, generator=generator) < 0.7
    mask[..., :1] = True
    return mask


def _padding(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Keep the first keys of each row of the batch, at least one."""
    batch, _, _, keys = size
    lengths = torch.randint(1, max(keys, 2), (batch, 1, 1, 1), generator=generator)
    return torch.arange(keys) < lengths


def _padding_of_heads(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Keep the first keys, as many as each head pleases."""
    batch, heads, _, keys = size
    return torch.arange(keys) < torch.randint(1, keys - 1, (batch, heads, 1, 1), generator=generator)


def _holes(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Take single pairs, whole queries and whole keys away."""
    mask = torch.rand((size[0], 1, *size[2:]), generator=generator) < 0.7
    mask[:, :, 2] = False
    mask[:, :, :, 4] = False
    return mask


def _rows(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Take whole queries away, all heads and keys alike."""
    mask = torch.rand((size[0], 1, size[2], 1), generator=generator) < 0.6
    mask[:, :, 1] = False
    return mask


def _heads_inside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay out as (batch, seq, heads, head_dim), which is how a projection gives it."""
    return {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in tensors.items()}


def _transposed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.mT.contiguous().mT for name, x in tensors.items()}


def _shared_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let all rows of the batch share one key and value tensor in memory, stride zero."""
    return {name: x if name == "q" else x[:1].expand(x.shape) for name, x in tensors.items()}
