"""The token mixer `recent-aaren`: Aaren whose heads forget at rates of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.nn.mixing import Context, Mixed
from polyhead.ops import prefix_attention
from polyhead.ops.prefix_attention import PrefixState, init_state, step

__all__ = ["RecentAaren", "default_slopes"]


def default_slopes(heads: int) -> tuple[float, ...]:
    """Return 0, which never forgets, for the first head; 1, 1/4, 1/16, … for the others.

    >>> default_slopes(4)
    (0.0, 1.0, 0.25, 0.0625)
    """
    return (0.0, *(4.0**-head for head in range(heads - 1)))


class RecentAaren(nn.Module):
    r"""Attend from one learned token over every prefix, newer tokens more by a slope a head.

    .. math:: y_t = W_o \, \text{concat}_h \, \sum_{i \le t} \frac{e^{s_{hi} - \lambda_h (t - i)}}
        {\sum_{j \le t} e^{s_{hj} - \lambda_h (t - j)}} W_{v,h} x_i

    A head with slope 0 is one of `polyhead.nn.Aaren`: what it has seen weighs the same for ever. An agent also has to
    see how the last observations differ, for which such a head, an average over a long episode, is blind. Only the
    running maximum of the state moves by the slope at every token, so that it is as small as Aaren's.

    Complexity and parameters: those of `polyhead.nn.Aaren`.

    Source: Feng et al. 2024, arXiv:2405.13956, sec. 3.3, which has no slopes; they are those of Press et al. 2022,
    arXiv:2108.12409, with a query that stays.
    """

    slopes: Tensor

    def __init__(self, dim: int, heads: int, *, slopes: tuple[float, ...] | None = None) -> None:
        """Make a module.

        Args:
            dim: width of a token.
            heads: H.
            slopes: what each head's logits lose with every further token, 0 or more; `default_slopes` if None.

        Raises:
            ConfigError: dim is no multiple of heads, or slopes are not one a head and 0 or more.
        """
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"dim is {dim} and heads is {heads}: dim must be a multiple of heads.")
        slopes = default_slopes(heads) if slopes is None else slopes
        if len(slopes) != heads or min(slopes) < 0:
            raise ConfigError(f"slopes is {slopes}, expected {heads} numbers, one a head, 0 or more.")
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.token = nn.Parameter(0.02 * torch.randn(dim))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.register_buffer("slopes", torch.tensor(slopes))

    def forward(self, x: Tensor, *, ctx: Context | None = None, state: PrefixState | None = None) -> Mixed:
        """Mix tokens, shape (B, S, dim); masked ones leave the state and the age of the others as they were.

        Raises:
            ConfigError: the context is not causal.
        """
        if ctx is not None and not ctx.causal:
            raise ConfigError("RecentAaren is causal. Make the stack with causal=True, or take another mixer.")
        key_mask = None if ctx is None else ctx.key_mask
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if key_mask is None else key_mask
        age = real.cumsum(1).to(x.dtype)
        k, v = self._heads(self.k_proj(x)).transpose(1, 2), self._heads(self.v_proj(x)).transpose(1, 2)
        # A constant on all logits changes nothing: later tokens may gain what earlier ones should lose.
        gain = age.unsqueeze(1) * self.slopes.to(x.dtype)[:, None]
        mixed, after = prefix_attention(
            self._query(), torch.cat([k, gain.unsqueeze(-1)], -1), v, key_mask=key_mask, initial_state=state, scale=1.0
        )
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if state is None:
            return Mixed(y)
        return Mixed(y, after._replace(m=after.m - (age[:, -1:] * self.slopes).to(after.m.dtype)))

    def init_state(
        self,
        batch: int,
        *,
        capacity: int | None = None,  # noqa: ARG002  # of mixers that grow; a stack gives all of them the same
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PrefixState:
        """Return the state before the first token."""
        like = self.token
        if dtype is None:
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return init_state(batch, self.heads, self.head_dim, dtype=dtype, device=device or like.device)

    def step(self, x: Tensor, *, ctx: Context | None = None, state: PrefixState) -> Mixed:
        """Take one token of every row, shape (B, dim)."""
        key_mask = None if ctx is None or ctx.key_mask is None else ctx.key_mask[:, 0]
        lost = self.slopes.to(state.m.dtype)
        state = state._replace(m=state.m - (lost if key_mask is None else lost * key_mask[:, None]))
        k, v = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        k = torch.cat([k, torch.zeros_like(k[..., :1])], -1)
        mixed, after = step(state, self._query(), k, v, key_mask=key_mask, scale=1.0)
        return Mixed(self.out_proj(mixed.flatten(1)), after)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.dim}, heads={self.heads}, slopes={tuple(self.slopes.tolist())}"

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def _query(self) -> Tensor:
        """Return the query with a 1 behind it, which takes the slope's part of a key; shape (H, D + 1)."""
        q = self._heads(self.q_proj(self.token)) * self.head_dim**-0.5
        return torch.cat([q, torch.ones_like(q[:, :1])], -1)
