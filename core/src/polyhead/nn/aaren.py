"""Aaren: softmax attention whose query is learned, and so a recurrent network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.nn.mixing import Context, Mixed
from polyhead.ops import prefix_attention
from polyhead.ops.prefix_attention import PrefixState, init_state, step

__all__ = ["Aaren"]


class Aaren(nn.Module):
    r"""Attend from one learned token over every prefix of the input.

    .. math:: y_t = W_o \, \text{concat}_h \, \sum_{i \le t} \frac{e^{s_{hi}}}{\sum_{j \le t} e^{s_{hj}}} W_{v,h} x_i,
        \qquad s_{hi} = \text{scale} \cdot \langle W_{q,h} \tau, W_{k,h} x_i \rangle

    where the token :math:`\tau` is the same at every position and for every input. It replaces causal self-attention:
    output t depends on no later input, training is parallel over the tokens, and a stream takes constant time and
    memory for each token. The mixer ``aaren``: causal only, with a state of H·(Dv + 2) numbers. A masked token leaves
    the state as it was; where no token came yet the output is the bias of the last map.

    A token weighs what it weighs in every later average of the layer; what is looked for depends on the input only
    from the second layer of a stack on.

    Complexity: O(B·S·dim²) time; one step O(B·dim²). Parameters: 4·dim² + 4·dim, and dim for the token, which is all
    that it has more than self-attention.

    Source: Feng et al. 2024, Attention as an RNN, arXiv:2405.13956, sec. 3.3. Differs: logits are scaled, as in the
    models that it is compared with; the token begins as N(0, 0.02²), which the paper does not state; dropout is on the
    output only, since a stream has none on weights.

    >>> aaren, x = Aaren(8, 2), torch.randn(1, 4, 8)
    >>> whole, state = aaren(x).x, aaren.init_state(1)
    >>> for t in range(4):
    ...     y, state, *_ = aaren.step(x[:, t], state=state)
    >>> torch.allclose(y, whole[:, 3], atol=1e-6)
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        std: float = 0.02,
    ) -> None:
        """Make a module.

        Args:
            dim: width of a token.
            heads: H.
            head_dim: D; dim / heads if None.
            bias: whether the linear maps have biases.
            scale: multiplies q·k; D**-0.5 if None, 1 as the paper writes it.
            dropout: probability, on the output.
            std: standard deviation of the initial token.

        Raises:
            ConfigError: dim is no multiple of heads.
        """
        super().__init__()
        if head_dim is None and (heads < 1 or dim % heads):
            raise ConfigError(f"dim is {dim} and heads is {heads}: dim must be a multiple of heads. Or set head_dim.")
        self.dim, self.heads, self.scale = dim, heads, scale
        self.head_dim = dim // heads if head_dim is None else head_dim
        width = heads * self.head_dim
        self.token = nn.Parameter(torch.randn(dim) * std)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(width, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, ctx: Context | None = None, state: PrefixState | None = None) -> Mixed:
        """Mix tokens.

        Args:
            x: shape (B, S, dim).
            ctx: its ``key_mask`` is used; nothing is masked if None.
            state: what ``init_state`` or the last call gave.

        Returns:
            Mixed(x, state, aux, kept): shape (B, S, dim); the state is None if none was given.

        Raises:
            ConfigError: the context is not causal.
        """
        if ctx is not None and not ctx.causal:
            raise ConfigError("Aaren is causal. Make the stack with causal=True, or take another mixer.")
        k, v = (
            linear(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for linear in (self.k_proj, self.v_proj)
        )
        key_mask = None if ctx is None else ctx.key_mask
        mixed, after = prefix_attention(self._query(), k, v, key_mask=key_mask, initial_state=state, scale=self.scale)
        y = self.dropout(self.out_proj(mixed.transpose(1, 2).flatten(2)))
        return Mixed(y, None if state is None else after)

    def init_state(
        self,
        batch: int,
        *,
        capacity: int | None = None,  # noqa: ARG002  # of mixers that grow; a stack gives all of them the same
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PrefixState:
        """Return the state before the first token.

        Args:
            batch: B.
            capacity: without effect, since the state has one shape anyway.
            device: that of the parameters if None.
            dtype: float32, or float64 if the parameters are, if None.
        """
        like = self.token
        if dtype is None:
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return init_state(batch, self.heads, self.head_dim, dtype=dtype, device=device or like.device)

    def step(self, x: Tensor, *, ctx: Context | None = None, state: PrefixState) -> Mixed:
        """Take one token of every row, shape (B, dim), at a cost that does not depend on how many came before."""
        k, v = (linear(x).unflatten(-1, (self.heads, self.head_dim)) for linear in (self.k_proj, self.v_proj))
        key_mask = None if ctx is None or ctx.key_mask is None else ctx.key_mask[:, 0]
        mixed, after = step(state, self._query(), k, v, key_mask=key_mask, scale=self.scale)
        return Mixed(self.dropout(self.out_proj(mixed.flatten(1))), after)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.dim}, heads={self.heads}, head_dim={self.head_dim}"

    def _query(self) -> Tensor:
        return self.q_proj(self.token).unflatten(-1, (self.heads, self.head_dim))
