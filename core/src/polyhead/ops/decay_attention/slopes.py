"""The decays that models with Lightning Attention were published with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polyhead.errors import ConfigError

__all__ = ["lightning_slopes"]

VERSIONS = ("released", "paper")


def lightning_slopes(
    heads: int, *, layer: int | None = None, layers: int | None = None, version: str = "released"
) -> Tensor:
    r"""Return the slope of each head; ``log_decay`` of ``decay_attention`` is its negative.

    Two schedules are in circulation, and they are not alike:

    - ``released``, in all published code and weights: ALiBi's :math:`2^{-8(h+1)/H}`, times
      :math:`1 - l/(L-1) + 10^{-5}` in layer :math:`l`. For H not a power of two these are the slopes of the next lower
      power, and after them every other one of the next higher.
    - ``paper``: :math:`\frac{8h}{H} (1 - l/L)`; the first head forgets nothing.

    Args:
        heads: H.
        layer: l, from 0 to layers − 1; the slopes are those before the factor of the layer if None.
        layers: L, at least 2 for ``released``.
        version: ``released`` or ``paper``.

    Returns:
        float32, shape (H,), at least 0.

    Raises:
        ConfigError: an argument is out of range, or only one of layer and layers is given.

    Source: Qin et al. 2024, arXiv:2405.17381, sec. 3; OpenNLPLab/lightning-attention; ALiBi: Press et al. 2022,
    arXiv:2108.12409.

    >>> lightning_slopes(4)
    tensor([0.2500, 0.0625, 0.0156, 0.0039])
    >>> lightning_slopes(4, layer=1, layers=4, version="paper")
    tensor([0.0000, 1.5000, 3.0000, 4.5000])
    """
    if version not in VERSIONS:
        raise ConfigError(f'version is "{version}", expected one of: {", ".join(VERSIONS)}.')
    if heads < 1:
        raise ConfigError(f"heads is {heads}, expected 1 or more.")
    slopes = _alibi(heads) if version == "released" else [8 * head / heads for head in range(heads)]
    return torch.tensor([slope * _of_layer(layer, layers, version) for slope in slopes], dtype=torch.float32)


def _of_layer(layer: int | None, layers: int | None, version: str) -> float:
    """Return the factor by which deeper layers forget less."""
    if layer is None and layers is None:
        return 1.0
    if layer is None or layers is None:
        raise ConfigError(f"layer is {layer} and layers is {layers}: give both, or neither.")
    least = 2 if version == "released" else 1
    if layers < least or not 0 <= layer < layers:
        raise ConfigError(f"layer is {layer} of {layers}, expected 0 to layers - 1, and layers {least} or more.")
    return 1 - layer / (layers - 1) + 1e-5 if version == "released" else 1 - layer / layers


def _alibi(heads: int) -> list[float]:
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + (_alibi(2 * power)[0::2][: heads - power] if power < heads else [])
