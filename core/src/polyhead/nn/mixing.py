"""The token-mixer protocol: how any attention variant slots into a `Stack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from polyhead.protocols import Ratio

__all__ = ["Context", "Mixed", "TokenMixer", "after_step", "keep"]

_NONE: Mapping[str, Ratio] = {}  # a plain dictionary, because torch.compile cannot follow a MappingProxyType


@dataclass(frozen=True)
class Context:
    """What a mixer may know beside its input. Every tensor is about the tokens of this call, those of a stream too."""

    key_mask: Tensor | None = None
    """Bool, shape (B, S), in ``step`` (B, 1), True = real token; None if all are."""
    positions: Tensor | None = None
    """Shape (S,) or (B, S); None if the mixer is to count real tokens, those in its state included."""
    lengths: Tensor | None = None
    """int64, shape (B,): real tokens of each row, where rows are padded on the right; None if not given."""
    layer: int = 0
    """Which layer this is, from 0 to depth − 1."""
    depth: int = 1
    """How many layers there are."""
    causal: bool = False
    """Whether no token may see a later one."""
    embeddings: Tensor | None = None
    """What went into the first layer, shape (B, S, dim); None if there is no such thing."""


class Mixed(NamedTuple):
    """What a mixer, a block or a stack returns."""

    x: Tensor
    """Shape (B, S, dim), of ``step`` (B, dim); fewer tokens where some are dropped."""
    state: Any = None
    """What the next call takes as ``state``; None if none was given."""
    aux: Mapping[str, Ratio] = _NONE
    """Further losses by name, such as the balance of a router, to be added to a task's."""
    kept: Tensor | None = None
    """int64, shape (B, tokens of x): which tokens of the input go on, rising; None if all do."""


@runtime_checkable
class TokenMixer(Protocol):
    """An ``nn.Module`` made as ``Mixer(dim, heads, **settings)``; no base class to inherit.

    Without ``state``, ``forward`` is the parallel form. With one, it continues a stream: it returns what the parallel
    form would for the last S tokens of the whole. Optional: ``after_step()``, called once after every optimiser step,
    for what is learned without gradients. ``polyhead.testing.check_mixer`` checks all of this.
    """

    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        """Mix the tokens of x, shape (B, S, dim). A token that ``ctx.key_mask`` does not count changes no other."""
        ...

    def init_state(self, batch: int) -> Any:
        """Return the state of ``batch`` rows before the first token; see ``polyhead.nn.states``.

        It may take further settings by name, such as ``capacity`` where the state would grow.
        """
        ...

    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        """Take one token of every row, shape (B, dim); a masked one leaves what its row will see as it was."""
        ...


def keep(x: Tensor, kept: Tensor | None) -> Tensor:
    """Return the tokens of x that go on: shape (B, S, …) to (B, kept S, …)."""
    if kept is None:
        return x
    index = kept.view(*kept.shape, *(1,) * (x.ndim - 2)).expand(*kept.shape, *x.shape[2:])
    return x.gather(1, index)


def after_step(model: nn.Module) -> None:
    """Call ``after_step()`` of every module of a model that has one; a recipe does after each optimiser step."""
    for module in model.modules():
        if callable(hook := getattr(module, "after_step", None)):
            hook()
