"""One layer of a Transformer, encoder or decoder, around any token mixer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from polyhead import recording
from polyhead.errors import ConfigError
from polyhead.nn.feed_forward import FeedForward
from polyhead.nn.kv_state import KVMemory
from polyhead.nn.mixers import make_mixer
from polyhead.nn.mixing import Context, Mixed, keep
from polyhead.nn.multi_head_attention import MultiHeadAttention
from polyhead.nn.norms import Norm, make_norm

__all__ = ["BlockState", "TransformerBlock"]


class BlockState(NamedTuple):
    """What a block carries from token to token."""

    mixer: Any
    """The state of its token mixer."""
    memory: KVMemory | None
    """Keys and values of the memory of its cross-attention, if it has one."""


class TransformerBlock(nn.Module):
    r"""Mix tokens, look at a memory if there is one, map each token; a residual and a norm around each.

    .. math:: x \leftarrow x + f(\text{norm}(x)) \quad \text{(pre-norm)}, \qquad
        x \leftarrow \text{norm}(x + f(x)) \quad \text{(post-norm)}

    Dropout stands before each sum, and inside the feed-forward part.

    With ``record(model, kept=…)`` it records the tokens that go on, where the mixer drops some.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.1; pre-norm: Xiong et al. 2020, arXiv:2002.04745.

    >>> import torch
    >>> block = TransformerBlock(16, 4, norm="rms", activation="swiglu")
    >>> block(torch.ones(2, 5, 16)).x.shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mixer: str | Callable[..., Any] = "softmax",
        mixer_settings: Mapping[str, Any] | None = None,
        cross: bool = False,
        cross_settings: Mapping[str, Any] | None = None,
        feed_forward: Callable[[int], nn.Module] | None = None,
        ff_dim: int | None = None,
        ff_bias: bool = True,
        activation: str = "gelu",
        norm: Norm = "layer",
        pre_norm: bool = True,
        dropout: float = 0.0,
        ff_dropout: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        """Make a block.

        Args:
            dim: width of a token.
            heads: number of heads, of the mixer and of cross-attention.
            mixer: the name of a token mixer, or what makes one from dim, heads and settings.
            mixer_settings: further settings of the mixer.
            cross: whether there is cross-attention to a memory.
            cross_settings: of its `MultiHeadAttention`, such as ``memory_dim``.
            feed_forward: makes another feed-forward part from dim; the settings below are then unused.
            ff_dim: width inside of the feed-forward part; see `FeedForward`.
            ff_bias: whether it has biases.
            activation: its activation.
            norm: ``layer``, ``rms``, ``srms``, ``none``, or what makes one from dim.
            pre_norm: norms before the parts, as against behind the sums.
            dropout: probability, on the output of each part.
            ff_dropout: probability, inside of the feed-forward part; ``dropout`` if None.
            eps: of the norms.

        Raises:
            ConfigError: a setting is unknown or out of range.
            UnknownNameError: no such mixer.
        """
        super().__init__()
        self.pre_norm = pre_norm
        self.mixer_norm = make_norm(norm, dim, eps)
        self.mixer: Any = make_mixer(mixer, dim, heads, mixer_settings)
        self.cross_norm = make_norm(norm, dim, eps) if cross else None
        self.cross = MultiHeadAttention(dim, heads, **(cross_settings or {})) if cross else None
        self.ff_norm = make_norm(norm, dim, eps)
        inside = dropout if ff_dropout is None else ff_dropout
        self.ff = (
            FeedForward(dim, ff_dim, activation=activation, dropout=inside, bias=ff_bias)
            if feed_forward is None
            else feed_forward(dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        ctx: Context | None = None,
        state: BlockState | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Mixed:
        """Run the block.

        Args:
            x: tokens, shape (B, S, dim).
            ctx: what the mixer may know; nothing if None.
            state: what ``init_state`` or the last call gave.
            memory: what cross-attention looks at, shape (B, Sk, width), unless a state holds it.
            memory_mask: bool, shape (B, Sk), True = real token.

        Returns:
            Mixed(x, state, aux, kept): shape (B, S, dim), or fewer tokens.

        Raises:
            ShapeError, DtypeError: shapes or dtypes do not fit.
            ConfigError: cross-attention without a memory, or a memory without cross-attention.
        """
        ctx = Context() if ctx is None else ctx
        cached = None if state is None else state.memory
        self._check(memory, memory_mask, cached)
        mixed = self.mixer(self._before(self.mixer_norm, x), ctx=ctx, state=None if state is None else state.mixer)
        recording.note(self, "kept", mixed.kept)
        x = self._after(self.mixer_norm, keep(x, mixed.kept), mixed.x)
        if self.cross is not None:
            queries = self._before(self.cross_norm, x)
            if cached is None:
                attended = self.cross(queries, memory, key_mask=memory_mask)
            else:
                attended = self.cross(queries, state=cached)
            x = self._after(self.cross_norm, x, attended.output)
        x = self._after(self.ff_norm, x, self.ff(self._before(self.ff_norm, x)))
        return Mixed(x, None if state is None else BlockState(mixed.state, cached), mixed.aux, mixed.kept)

    def init_state(
        self, batch: int, *, memory: Tensor | None = None, memory_mask: Tensor | None = None, **settings: Any
    ) -> BlockState:
        """Return the state before the first token.

        Args:
            batch: B.
            memory: what cross-attention looks at, shape (B, Sk, width); its keys and values are computed here, once.
            memory_mask: bool, shape (B, Sk), True = real token.
            settings: of the mixer's own ``init_state``, such as ``capacity``.

        Raises:
            ConfigError: cross-attention without a memory, or a memory without cross-attention.
        """
        self._check(memory, memory_mask, None)
        cached = None
        if self.cross is not None and memory is not None:
            cached = self.cross.project(memory, key_mask=memory_mask)
        return BlockState(self.mixer.init_state(batch, **settings), cached)

    def step(self, x: Tensor, *, ctx: Context | None = None, state: BlockState) -> Mixed:
        """Take one token of every row, shape (B, dim); the memory is that of the state."""
        ctx = Context(causal=True) if ctx is None else ctx
        self._check(None, None, state.memory)
        mixed = self.mixer.step(self._before(self.mixer_norm, x), ctx=ctx, state=state.mixer)
        x = self._after(self.mixer_norm, x, mixed.x)
        if self.cross is not None:
            queries = self._before(self.cross_norm, x).unsqueeze(1)
            x = self._after(self.cross_norm, x, self.cross(queries, state=state.memory).output.squeeze(1))
        x = self._after(self.ff_norm, x, self.ff(self._before(self.ff_norm, x)))
        return Mixed(x, BlockState(mixed.state, state.memory), mixed.aux)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"pre_norm={self.pre_norm}"

    def _before(self, norm: nn.Module | None, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm and norm is not None else x

    def _after(self, norm: nn.Module | None, x: Tensor, part: Tensor) -> Tensor:
        x = x + self.dropout(part)
        return x if self.pre_norm or norm is None else norm(x)

    def _check(self, memory: Tensor | None, memory_mask: Tensor | None, cached: KVMemory | None) -> None:
        if self.cross is None and (memory is not None or memory_mask is not None):
            raise ConfigError("This block has no cross-attention to look at a memory. Make it with cross=True.")
        if self.cross is not None and (memory is None) == (cached is None):
            raise ConfigError(
                "Cross-attention needs a memory, either as an argument or in the state: init_state(batch, memory=…)."
            )
        if memory is None and memory_mask is not None:
            raise ConfigError("memory_mask belongs to a memory: give both to the same call.")
