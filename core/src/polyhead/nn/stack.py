"""Layers of a Transformer around any token mixer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn.mixing import Context, Mixed, keep
from polyhead.nn.norms import Norm, make_norm
from polyhead.nn.transformer_block import BlockState, TransformerBlock
from polyhead.protocols import Ratio

__all__ = ["Stack"]

Mixer = str | Callable[..., Any]


class Stack(nn.Module):
    """Run `TransformerBlock` after `TransformerBlock`: an encoder, a decoder, or a causal model to be streamed.

    It embeds nothing and adds no positions; modules of ``polyhead.nn.positions`` do, before it or as ``rotary`` of the
    mixer. Masked tokens are set to zero where they enter, so that even NaN in padding reaches nothing.

    Losses that mixers add (``aux``) are merged over the layers by name: the ratio of the sums.

    >>> stack = Stack(16, depth=2, heads=4, mixer="softmax", causal=True)
    >>> x = torch.randn(1, 5, 16)
    >>> whole, state = stack(x).x, stack.init_state(1)
    >>> prompt = stack(x[:, :4], state=state)
    >>> last = stack.step(x[:, 4], state=prompt.state)
    >>> torch.allclose(last.x, whole[:, 4], atol=1e-5)
    True
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        mixer: Mixer | Sequence[Mixer] = "softmax",
        mixer_settings: Mapping[str, Any] | None = None,
        causal: bool = False,
        norm: Norm = "layer",
        pre_norm: bool = True,
        final_norm: bool | None = None,
        eps: float = 1e-5,
        **block: Any,
    ) -> None:
        """Make a stack.

        Args:
            dim: width of a token.
            depth: number of layers.
            heads: number of heads.
            mixer: the name of a token mixer, or what makes one; or one of them for each layer.
            mixer_settings: further settings of the mixer, the same for each layer. Layers that differ are made by
                ``functools.partial(polyhead.nn.SoftmaxMixer, window=64)`` and the like.
            causal: whether no token may see a later one.
            norm: of the blocks, and of the last one.
            pre_norm: norms before the parts of a block, as against behind the sums.
            final_norm: whether a norm follows the last block; as ``pre_norm`` if None.
            eps: of the norms.
            block: further settings of each `TransformerBlock`: ``activation``, ``cross``, ``dropout``, …

        Raises:
            ConfigError: a setting is unknown or out of range, or there is not one mixer for each layer.
            UnknownNameError: no such mixer.
        """
        super().__init__()
        each = [mixer] * depth if isinstance(mixer, str) or callable(mixer) else list(mixer)
        if depth < 1 or len(each) != depth:
            raise ConfigError(
                f"depth is {depth}, expected 1 or more; there are {len(each)} mixers, expected one a layer."
            )
        self.dim, self.causal = dim, causal
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, heads, mixer=one, mixer_settings=mixer_settings, norm=norm, pre_norm=pre_norm, eps=eps, **block
            )
            for one in each
        )
        last = pre_norm if final_norm is None else final_norm
        self.norm = make_norm(norm, dim, eps) if last else None

    def forward(
        self,
        x: Tensor,
        *,
        key_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        state: Sequence[BlockState] | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Mixed:
        """Run all layers.

        Args:
            x: tokens, shape (B, S, dim).
            key_mask: bool, shape (B, S), True = real token.
            lengths: int64, shape (B,), of rows padded on the right; instead of key_mask, or beside it.
            positions: shape (S,) or (B, S), for mixers that use them; counted if None.
            state: what ``init_state`` or the last call gave; x are then the next tokens of a stream.
            memory: what cross-attention looks at, shape (B, Sk, width), unless a state holds it.
            memory_mask: bool, shape (B, Sk), True = real token.

        Returns:
            Mixed(x, state, aux, kept): shape (B, S, dim), a state for each block, losses, and, where a mixer drops
            tokens, which of x are left.

        Raises:
            ShapeError, DtypeError: shapes or dtypes do not fit.
            ConfigError: cross-attention without a memory or the reverse, or a state of another depth.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ShapeError(f"x {tuple(x.shape)} is not (batch, seq, dim) with dim {self.dim}.")
        key_mask = self._mask(x, key_mask, lengths)
        if key_mask is not None:
            x = x.masked_fill(~key_mask.unsqueeze(-1), 0)
        states = self._states(state)
        aux: dict[str, Ratio] = {}
        kept, embeddings, after = None, x, []
        for layer, (block, own) in enumerate(zip(self.blocks, states, strict=True)):
            ctx = Context(key_mask, positions, lengths, layer, len(self.blocks), self.causal, embeddings)
            mixed = block(x, ctx=ctx, state=own, memory=memory, memory_mask=memory_mask)
            x = mixed.x
            after.append(mixed.state)
            _merge(aux, mixed.aux)
            if mixed.kept is not None:
                kept = mixed.kept if kept is None else kept.gather(1, mixed.kept)
                embeddings = keep(embeddings, mixed.kept)
                positions = _kept_positions(positions, key_mask, mixed.kept, streaming=state is not None)
                key_mask = None if key_mask is None else key_mask.gather(1, mixed.kept)
        x = x if self.norm is None else self.norm(x)
        return Mixed(x, None if state is None else tuple(after), aux, kept)

    def init_state(
        self, batch: int, *, memory: Tensor | None = None, memory_mask: Tensor | None = None, **settings: Any
    ) -> tuple[BlockState, ...]:
        """Return the state before the first token, one for each block; see `TransformerBlock.init_state`.

        Raises:
            ConfigError: the stack is not causal, or cross-attention has no memory.
        """
        if not self.causal:
            raise ConfigError("A stack that is not causal cannot be streamed. Make it with causal=True.")
        return tuple(
            block.init_state(batch, memory=memory, memory_mask=memory_mask, **settings)  # type: ignore[operator]
            for block in self.blocks
        )

    def step(
        self,
        x: Tensor,
        *,
        state: Sequence[BlockState],
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Mixed:
        """Take one token of every row.

        Args:
            x: shape (B, dim).
            state: what ``init_state`` or the last call gave.
            key_mask: bool, shape (B,), True = real token; other rows go on later as if there had been none.
            positions: shape (1,) or (B, 1), for mixers that use them; counted if None.

        Returns:
            Mixed(x, state, aux, kept): x of shape (B, dim), and the state after this token.

        Raises:
            ShapeError, DtypeError: x or key_mask does not fit.
            ConfigError: the state is of another depth.
        """
        if x.ndim != 2 or x.shape[-1] != self.dim:
            raise ShapeError(f"x {tuple(x.shape)} is not (batch, dim) with dim {self.dim}.")
        key_mask = self._mask(x.unsqueeze(1), None if key_mask is None else key_mask.unsqueeze(-1), None)
        aux: dict[str, Ratio] = {}
        embeddings, after = x.unsqueeze(1), []
        for layer, (block, own) in enumerate(zip(self.blocks, self._states(state), strict=True)):
            ctx = Context(key_mask, positions, None, layer, len(self.blocks), self.causal, embeddings)
            mixed = block.step(x, ctx=ctx, state=own)  # type: ignore[operator]
            x = mixed.x
            after.append(mixed.state)
            _merge(aux, mixed.aux)
        return Mixed(x if self.norm is None else self.norm(x), tuple(after), aux)

    def _mask(self, x: Tensor, key_mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        if key_mask is not None and key_mask.dtype != torch.bool:
            raise DtypeError(f"key_mask is {key_mask.dtype}, expected torch.bool, True = real token.")
        if key_mask is not None and key_mask.shape != x.shape[:2]:
            raise ShapeError(f"key_mask {tuple(key_mask.shape)} is not (batch, seq) of x {tuple(x.shape)}.")
        if lengths is None:
            return key_mask
        if lengths.shape != x.shape[:1]:
            raise ShapeError(f"lengths {tuple(lengths.shape)} is not (batch,) of x {tuple(x.shape)}.")
        within = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return within if key_mask is None else key_mask & within

    def _states(self, state: Sequence[BlockState] | None) -> Sequence[BlockState | None]:
        if state is None:
            return [None] * len(self.blocks)
        if not self.causal:
            raise ConfigError("A stack that is not causal cannot be streamed. Make it with causal=True.")
        if len(state) != len(self.blocks):
            raise ConfigError(f"The state is of {len(state)} layers, the stack has {len(self.blocks)}.")
        return state


def _merge(aux: dict[str, Ratio], more: Mapping[str, Ratio]) -> None:
    for name, ratio in more.items():
        sofar = aux.get(name)
        aux[name] = ratio if sofar is None else Ratio(sofar.total + ratio.total, sofar.count + ratio.count)


def _kept_positions(positions: Tensor | None, key_mask: Tensor | None, kept: Tensor, *, streaming: bool) -> Tensor:
    """Return the positions of the tokens that are left: those that they had in the input."""
    if positions is None:
        if streaming:
            raise ConfigError("A mixer drops tokens of a stream, so that they cannot be counted. Give positions.")
        if key_mask is None:
            return kept
        positions = (key_mask.cumsum(1) - 1).clamp(min=0)
    return positions[kept] if positions.ndim == 1 else positions.expand(kept.shape[0], -1).gather(1, kept)
