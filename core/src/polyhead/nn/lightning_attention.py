"""Lightning attention: linear attention with decay, activation, norm and gate as published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.nn.mixing import Context, Mixed
from polyhead.nn.norms import Norm, make_norm
from polyhead.ops import decay_attention
from polyhead.ops.decay_attention import init_state, lightning_slopes, step

__all__ = ["LightningAttention"]

ACTIVATIONS = {"silu": F.silu, "elu1": lambda x: F.elu(x) + 1, "none": lambda x: x}
GATES = ("low_rank", "full", "linear", "none")
DECAYS = ("released", "paper", "none")


class LightningAttention(nn.Module):
    r"""Attend causally in linear time; older tokens weigh less by a fixed factor for each head.

    .. math:: o_t = q_t \sum_{s \le t} \lambda^{t-s} k_s^\top v_s, \qquad
        y = W_o \left( \text{norm}(o) \odot \sigma(g(x)) \right), \qquad
        q, k, v = f(W_q x), f(W_k x), f(W_v x)

    The norm runs over all heads together. The factors are ``lightning_slopes`` of the layer, which the context tells;
    the deeper, the less is forgotten. The mixer ``lightning``: causal only, with a state of (B, H, D, D) numbers.
    Masked tokens neither enter the state nor let it decay.

    Complexity: O(B·S·dim·(dim + chunk)) time. Parameters: 4·dim², a gate of 2·dim·D (``low_rank``), and the norm.

    Source: Qin et al. 2024, arXiv:2405.17381 and arXiv:2401.04658; norm and gate as in the layer released with
    OpenNLPLab/lightning-attention. ``norm="rms", gate="full"`` is MiniMax-01, arXiv:2501.08313; ``norm="srms",
    gate="linear", activate_values=False`` is TransNormerLLM, arXiv:2307.14995, without its rotations.
    Differs: a model of one layer has no factor of the layer, which is published for two or more.
    """

    slopes: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        activation: str = "silu",
        activate_values: bool = True,
        norm: Norm = "layer",
        gate: str = "low_rank",
        decay: str = "released",
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        """Make a module.

        Args:
            dim: width of a token.
            heads: H.
            head_dim: D; dim / heads if None.
            bias: whether the linear maps have biases.
            activation: of q and k: ``silu``, ``elu1`` (elu + 1) or ``none``.
            activate_values: whether v gets it too.
            norm: over all heads together: ``layer``, ``rms``, ``srms``, ``none``, or what makes one.
            gate: the sigmoid of two maps with D numbers between (``low_rank``) or of one (``full``); one map without
                a sigmoid (``linear``); ``none``.
            decay: the version of ``lightning_slopes``, ``released`` or ``paper``; ``none`` forgets nothing.
            dropout: probability, on the output.
            eps: of the norm.

        Raises:
            ConfigError: a setting is unknown, or dim is no multiple of heads.
        """
        super().__init__()
        if head_dim is None and (heads < 1 or dim % heads):
            raise ConfigError(f"dim is {dim} and heads is {heads}: dim must be a multiple of heads. Or set head_dim.")
        for name, value, known in (
            ("activation", activation, tuple(ACTIVATIONS)),
            ("gate", gate, GATES),
            ("decay", decay, DECAYS),
        ):
            if value not in known:
                raise ConfigError(f'{name} is "{value}", expected one of: {", ".join(known)}.')
        self.dim, self.heads = dim, heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.activation, self.activate_values, self.decay = activation, activate_values, decay
        width = heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.norm = make_norm(norm, width, eps)
        self.sigmoid = gate in ("low_rank", "full")
        self.gate: nn.Module | None = None
        if gate == "low_rank":
            self.gate = nn.Sequential(
                nn.Linear(dim, self.head_dim, bias=bias), nn.Linear(self.head_dim, width, bias=bias)
            )
        elif gate != "none":
            self.gate = nn.Linear(dim, width, bias=bias)
        self.out_proj = nn.Linear(width, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("slopes", self._slopes(), persistent=False)

    def forward(self, x: Tensor, *, ctx: Context, state: Tensor | None = None) -> Mixed:
        """Mix the tokens of x, shape (B, S, dim); the state is that of ``decay_attention``, shape (B, H, D, D).

        Raises:
            ConfigError: the context is not causal.
        """
        if not ctx.causal:
            raise ConfigError("Lightning attention is causal. Make the stack with causal=True, or take another mixer.")
        q, k, v = self._heads(x)
        log_decay = self._log_decay(ctx)
        if ctx.key_mask is not None:
            mask = ctx.key_mask[:, None, :, None]
            k, v = k.masked_fill(~mask, 0), v.masked_fill(~mask, 0)
            log_decay = torch.where(ctx.key_mask[:, None], log_decay[:, None], 0)
        mixed, after = decay_attention(q, k, v, log_decay, initial_state=state)
        return Mixed(self._out(x, mixed.transpose(1, 2).flatten(2)), None if state is None else after)

    def init_state(
        self,
        batch: int,
        *,
        capacity: int | None = None,  # noqa: ARG002  # of mixers that grow; a stack gives all of them the same
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return the state before the first token: zeros, shape (B, H, D, D).

        Args:
            batch: B.
            capacity: without effect, since the state has one shape anyway.
            device: that of the parameters if None.
            dtype: float32, or float64 if the parameters are, if None.
        """
        like = self.q_proj.weight
        if dtype is None:
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return init_state(batch, self.heads, self.head_dim, dtype=dtype, device=device or like.device)

    def step(self, x: Tensor, *, ctx: Context, state: Tensor) -> Mixed:
        """Take one token of every row, shape (B, dim), at a cost that does not depend on how many came before."""
        q, k, v = (each.squeeze(2) for each in self._heads(x.unsqueeze(1)))
        log_decay = self._log_decay(ctx)
        if ctx.key_mask is not None:
            k, v = (each.masked_fill(~ctx.key_mask[:, :, None], 0) for each in (k, v))
            log_decay = torch.where(ctx.key_mask, log_decay, 0)
        mixed, after = step(state, q, k, v, log_decay)
        return Mixed(self._out(x, mixed.flatten(1)), after)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.dim}, heads={self.heads}, head_dim={self.head_dim}, decay={self.decay!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Slopes are computed, not learned: precise in a model of 16 bits too, and there after to_empty().
        super()._apply(fn, recurse)
        self.slopes = self._slopes().to(self.slopes.device)
        return self

    def _slopes(self) -> Tensor:
        return torch.zeros(self.heads) if self.decay == "none" else lightning_slopes(self.heads, version=self.decay)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        activate = ACTIVATIONS[self.activation]
        return activate(q), activate(k), activate(v) if self.activate_values else v

    def _log_decay(self, ctx: Context) -> Tensor:
        if self.decay == "paper":
            factor = 1 - ctx.layer / ctx.depth
        else:
            factor = 1.0 if ctx.depth == 1 else 1 - ctx.layer / (ctx.depth - 1) + 1e-5
        return -self.slopes * factor

    def _out(self, x: Tensor, mixed: Tensor) -> Tensor:
        y = self.norm(mixed)
        if self.gate is not None:
            gate = self.gate(x)
            y = y * (gate.sigmoid() if self.sigmoid else gate)
        return cast(Tensor, self.dropout(self.out_proj(y)))
