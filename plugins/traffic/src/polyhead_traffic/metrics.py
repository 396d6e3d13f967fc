"""Masked MAE, RMSE and MAPE in the literature's convention, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from polyhead.protocols import Batch, Ratio

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ForecastMetric", "Sums", "figure_name", "headline_steps", "masked_absolute_error"]

HEADLINE_STEPS = (3, 6, 12)
"""The steps that papers report: 15, 30 and 60 minutes at 5-minute data."""
LEAST = 5e-5
"""Readings nearer to zero have no percentage error; the bound is BasicTS's."""


def masked_absolute_error(prediction: Tensor, y: Tensor, mask: Tensor) -> Ratio:
    r"""Return the masked MAE as its two halves.

    .. math:: \mathrm{MAE} = \frac{\sum_i m_i |\hat y_i - y_i|}{\sum_i m_i}

    which equals the published ``mean(m / mean(m) * |e|)``. A batch without any observed reading has the loss 0.

    Args:
        prediction: any shape, in the unit of ``y``.
        y: the readings, same shape.
        mask: bool, same shape, True = observed.

    Source: Li et al. 2018 (DCRNN), ``lib/metrics.py``; GMAN's ``mae_loss``.
    """
    # Selecting, not multiplying: what stands in for a missing reading must not reach the sum, be it NaN.
    error = (prediction - y).abs().where(mask, 0.0)
    return Ratio(error.sum(), mask.sum())


class Sums(NamedTuple):
    """Sums over the observed readings of each step, shape (Q,) float64 each."""

    absolute: Tensor
    square: Tensor
    relative: Tensor
    """|error| / |reading|, over readings that are not zero."""
    observed: Tensor
    relative_observed: Tensor


class ForecastMetric:
    r"""Accumulate MAE, RMSE and MAPE of every step of the horizon, over all windows and sensors.

    ``compute`` names a step by its minutes, such as ``mae_15min``; ``mae``, ``rmse`` and ``mape`` are the means of the
    per-step figures (so ``rmse`` is no pooled RMSE), as GMAN and STSGCN print them. MAPE is in percent, over observed
    readings that are not zero.

    Source: Li et al. 2018 (DCRNN), ``lib/metrics.py``; BasicTS, ``masked_mape``.
    """

    def __init__(self, horizon: int, step_s: int) -> None:
        """Take the number of steps and their length in seconds."""
        import torch

        self.horizon, self.step_s = horizon, step_s
        self._sums = Sums(*(torch.zeros(horizon, dtype=torch.float64) for _ in Sums._fields))

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add a batch: ``prediction`` (B, Q, N) against the batch's ``y`` and ``y_mask``."""
        y, mask = batch["y"].double(), batch["y_mask"]
        error = (prediction.double() - y).where(mask, 0.0)
        with_size = mask & (y.abs() > LEAST)
        relative = (error.abs() / y.abs()).where(with_size, 0.0)
        terms = (error.abs(), error.square(), relative, mask.double(), with_size.double())
        self._sums = Sums(*(total + term.sum(dim=(0, 2)).cpu() for total, term in zip(self._sums, terms, strict=True)))

    def state(self) -> Sums:
        """Return the sums."""
        return self._sums

    def merge(self, states: Sequence[Sums]) -> None:
        """Replace the own sums by those of all ``states``."""
        self._sums = Sums(*(sum(parts[1:], start=parts[0]) for parts in zip(*states, strict=True)))

    def compute(self) -> Mapping[str, float]:
        """Return the figures: means over the steps, then the steps that papers report, then every step.

        A figure without any observed reading is NaN.
        """
        sums = self._sums
        steps = {
            "mae": sums.absolute / sums.observed,
            "rmse": (sums.square / sums.observed).sqrt(),
            "mape": 100 * sums.relative / sums.relative_observed,
        }
        figures = {name: float(values.nanmean()) for name, values in steps.items()}
        for step in dict.fromkeys([*headline_steps(self.horizon), *range(1, self.horizon + 1)]):
            for name, values in steps.items():
                figures[figure_name(name, step, self.step_s)] = float(values[step - 1])
        return figures


def headline_steps(horizon: int) -> list[int]:
    """Return the steps that papers report, as far as the horizon reaches; the last one if it is shorter.

    >>> headline_steps(12), headline_steps(6), headline_steps(2)
    ([3, 6, 12], [3, 6], [2])
    """
    return [step for step in HEADLINE_STEPS if step <= horizon] or [horizon]


def figure_name(metric: str, step: int, step_s: int) -> str:
    """Name the figure of a step (from 1) by its minutes, or seconds where a step is no whole minute.

    >>> figure_name("mae", 3, 300), figure_name("mae", 1, 30)
    ('mae_15min', 'mae_30s')
    """
    seconds = step * step_s
    return f"{metric}_{seconds // 60}min" if step_s % 60 == 0 else f"{metric}_{seconds}s"
