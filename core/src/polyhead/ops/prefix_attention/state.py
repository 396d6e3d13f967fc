"""The state of attention over prefixes: what stands for all tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops.call import name_of

__all__ = ["PrefixState", "check_key_mask", "checked_state", "empty_state", "log_sums", "wide_dtype"]


class PrefixState(NamedTuple):
    r"""The running maximum, denominator and numerator of a softmax over the tokens so far.

    ``m`` is a scale: (m, u, w) and (m + c, u·e⁻ᶜ, w·e⁻ᶜ) mean the same. Gradients go through u and w for this m, and
    none through m, whose own gradient would cancel in every result that does not depend on the scale.
    """

    m: Tensor
    """Shape (B, H): the largest logit; −∞ before the first token."""
    u: Tensor
    """Shape (B, H): the sum of exp(logit − m)."""
    w: Tensor
    """Shape (B, H, Dv): the sum of exp(logit − m) · value."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that logits, sums and states have: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_state(
    batch: int, heads: int, value_dim: int, dtype: torch.dtype, device: torch.device | str | None
) -> PrefixState:
    """Return the state before the first token: (−∞, 0, 0)."""
    return PrefixState(
        torch.full((batch, heads), -torch.inf, dtype=dtype, device=device),
        torch.zeros(batch, heads, dtype=dtype, device=device),
        torch.zeros(batch, heads, value_dim, dtype=dtype, device=device),
    )


def log_sums(logits: Tensor, m: Tensor, u: Tensor) -> Tensor:
    """Return the log weight of a state's w, which is m, then the log denominator of every prefix.

    Args:
        logits: shape (..., S), −∞ where a key is masked.
        m: of the initial state, shape (...).
        u: of the initial state, shape (...).

    Returns:
        Shape (..., S + 1), float64.
    """
    start = m.double()
    sums = torch.cat([(start + u.double().log()).unsqueeze(-1), logits], -1).logcumsumexp(-1)
    sums[..., 0] = start
    return sums


def checked_state(state: PrefixState | Sequence[Tensor], like: Tensor) -> PrefixState:
    """Return a state that a caller gives, refused if it does not fit values ``like`` (B, H, ..., Dv)."""
    if len(state) != 3:
        raise ShapeError(f"The state has {len(state)} parts, expected 3: (m, u, w).")
    state = PrefixState(*state)
    batch, heads, value_dim = (*like.shape[:2], like.shape[-1])
    for name, x in state._asdict().items():
        expected: tuple[int, ...] = (batch, heads, value_dim) if name == "w" else (batch, heads)
        layout = "(batch, heads, value_dim)" if name == "w" else "(batch, heads)"
        if tuple(x.shape) != expected:
            raise ShapeError(f"{name} of the state {tuple(x.shape)} is not {layout} = {expected}.")
        if not x.dtype.is_floating_point:
            raise DtypeError(f"{name} of the state is {name_of(x.dtype)}, expected a float dtype.")
        if x.device != like.device:
            raise DtypeError(f"{name} of the state is on {x.device} and v on {like.device}: move one of them.")
    return state


def check_key_mask(key_mask: Tensor | None, expected: tuple[int, ...], layout: str, like: Tensor) -> None:
    """Refuse a mask that is not bool, or not of the expected shape on v's device."""
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        kind = name_of(key_mask.dtype)
        raise DtypeError(f"key_mask is {kind}, expected bool, True = real token. Convert it with key_mask.bool().")
    if tuple(key_mask.shape) != expected:
        raise ShapeError(f"key_mask {tuple(key_mask.shape)} is not {layout} = {expected}.")
    if key_mask.device != like.device:
        raise DtypeError(f"key_mask is on {key_mask.device} and v on {like.device}: move one of them.")
