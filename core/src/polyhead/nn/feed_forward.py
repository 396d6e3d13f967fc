"""The feed-forward part of a Transformer block, plain and gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, nearest

__all__ = ["FeedForward"]


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
}
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": F.sigmoid,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
    "bilinear": _identity,
}


class FeedForward(nn.Module):
    r"""Two linear maps with an activation between, applied to every token.

    .. math:: y = W_{down} \, f(W_{up} x), \qquad \text{gated:} \quad
        y = W_{down} \, (f(W_{gate} x) \odot W_{up} x)

    Complexity: O(B·S·dim·hidden). Parameters: 2·dim·hidden, gated 3·dim·hidden, and biases.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 2; gated: Shazeer 2020, arXiv:2002.05202, eq. 5 and 6;
    ``bilinear`` is the gated linear unit without activation of Qin et al. 2024, arXiv:2307.14995.

    >>> sum(p.numel() for p in FeedForward(512, activation="swiglu", bias=False).parameters())
    2101248
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        out_dim: int | None = None,
    ) -> None:
        """Make a module.

        Args:
            dim: width of a token.
            hidden: width between; 4·dim if None, gated 8·dim/3 rounded up to a multiple of 8, for equal cost.
            activation: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``; gated: ``glu``, ``reglu``, ``geglu``, ``swiglu``,
                ``bilinear``.
            dropout: probability, on what goes into the last map.
            bias: whether the maps have biases.
            out_dim: width of the output; dim if None.

        Raises:
            ConfigError: no such activation.
        """
        super().__init__()
        known = {**PLAIN, **GATED}
        if activation not in known:
            guess = nearest(activation, known)
            raise ConfigError(
                f'activation is "{activation}".'
                + (f' Did you mean "{guess}"?' if guess else "")
                + f"  All: {', '.join(known)}"
            )
        gated = activation in GATED
        if hidden is None:
            hidden = -(-8 * dim // 24) * 8 if gated else 4 * dim
        self.activation = activation
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.gate = nn.Linear(dim, hidden, bias=bias) if gated else None
        self.down = nn.Linear(hidden, dim if out_dim is None else out_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token: shape (..., dim) to (..., out_dim)."""
        if self.gate is None:
            hidden = PLAIN[self.activation](self.up(x))
        else:
            hidden = GATED[self.activation](self.gate(x)) * self.up(x)
        y: Tensor = self.down(self.dropout(hidden))
        return y

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"activation={self.activation!r}"
