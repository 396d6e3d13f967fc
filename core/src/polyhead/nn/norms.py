"""The norms that a Transformer block takes by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from polyhead.errors import ConfigError

__all__ = ["Norm", "make_norm"]

Norm = str | Callable[[int], nn.Module]
"""``layer``, ``rms``, ``srms`` (without weight), ``none``, or a function of dim that makes a module."""


def make_norm(norm: Norm, dim: int, eps: float) -> nn.Module:
    """Return a norm over the last axis of width dim.

    Args:
        norm: ``layer`` (arXiv:1607.06450), ``rms`` (arXiv:1910.07467), ``srms``: rms without weight
            (arXiv:2307.14995), ``none``, or a function of dim.
        dim: width.
        eps: added to the variance or mean square; not given to a function.

    Raises:
        ConfigError: no such norm.
    """
    if callable(norm):
        return norm(dim)
    if norm == "layer":
        return nn.LayerNorm(dim, eps=eps)
    if norm in ("rms", "srms"):
        return nn.RMSNorm(dim, eps=eps, elementwise_affine=norm == "rms")
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f'norm is "{norm}", expected one of: layer, rms, srms, none; or a function of dim.')
