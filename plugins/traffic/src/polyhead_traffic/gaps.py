"""Values for missing readings: from what surrounds a gap, or from a model's forecast of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead_traffic.baselines import WEEKEND, Profile
from polyhead_traffic.data import SensorData, blocks
from polyhead_traffic.windows import WindowSource

if TYPE_CHECKING:
    from torch import nn

    from polyhead_traffic.task import ForecastTask

__all__ = ["by_forecast", "by_interpolation", "by_usual_day", "hide"]

BATCH = 32
HIDDEN_SHARE = 0.05
STEADIEST = 0.999


def by_interpolation(data: SensorData) -> NDArray[np.float32]:
    """Return (T, N): observed readings as they are, missing ones on the line between both ends of their gap.

    A gap at the end of the series or at a jump in time repeats the reading at its other end; a sensor without any
    reading between two jumps is given its mean.
    """
    filled = np.where(data.mask, data.values, data.sensor_means)
    for first, last in _segments(data):
        rows = np.arange(first, last)
        for sensor in np.flatnonzero(~data.mask[first:last].all(axis=0)):
            seen = data.mask[first:last, sensor]
            if seen.any():
                filled[rows[~seen], sensor] = np.interp(rows[~seen], rows[seen], data.values[rows[seen], sensor])
    return _bounded(data, filled)


def by_usual_day(data: SensorData) -> NDArray[np.float32]:
    r"""Return (T, N): observed readings as they are, missing ones from the usual day and both ends of their gap.

    What differs from the median of the slot of the day is taken for a first-order autoregression, of which the
    conditional mean k steps into a gap of L - 1 rows between the differences a and b is

    .. math:: \frac{\phi^k (1 - \phi^{2(L-k)})\, a + \phi^{L-k} (1 - \phi^{2k})\, b}{1 - \phi^{2L}}

    and :math:`\phi^k a` at the end of the series or before a jump in time. The medians and :math:`\phi`, one for all
    sensors, are those of the training rows. No value is below zero where no reading is.

    Complexity: O(T·N) time; besides the result, some sensors' series at a time in memory.
    """
    table = Profile.fit(data, "median").table
    weekend, slot = (data.calendar[:, 0] >= WEEKEND).astype(np.int64), data.calendar[:, 1]

    def usual(sensors: slice) -> NDArray[np.float32]:
        return table[:, :, sensors][weekend, slot]

    groups = list(blocks(len(data.ids), len(data.timestamps)))
    phi = _persistence(data, groups, usual)
    filled = np.empty_like(data.values)
    for sensors in groups:
        mask, expected = data.mask[:, sensors], usual(sensors)
        residual = np.where(mask, data.values[:, sensors] - expected, 0)
        for first, last in _segments(data):
            rows = slice(first, last)
            filled[rows, sensors] = expected[rows] + _bridge(residual[rows], mask[rows], phi)
    return _bounded(data, filled)


def by_forecast(task: ForecastTask, model: nn.Module, data: SensorData) -> NDArray[np.float32]:
    """Return (T, N): the forecasts of missing readings from the rows before their gap; NaN where there is none.

    A gap has forecasts for its first ``horizon`` rows, if ``history`` rows without a jump in time come before it.

    Complexity: one forecast of the whole network for every row at which some gap begins.
    """
    import torch

    made = np.full(data.values.shape, np.nan, np.float32)
    device = next(model.parameters()).device
    begins = _begins(data)
    starts = np.flatnonzero(begins.any(axis=1)) - data.history
    model.eval()
    for part in range(0, len(starts), BATCH):
        source = WindowSource(data, starts[part : part + BATCH])
        with torch.inference_mode():
            batch = {name: tensor.to(device) for name, tensor in source.latest().items()}
            forecast = task.predict(model, batch).float().cpu().numpy()
        for row, values in zip(source.starts + data.history, forecast, strict=True):
            sensors = begins[row]
            # From the row on, as long as the gap lasts.
            missing = np.logical_and.accumulate(~data.mask[row : row + data.horizon, sensors], axis=0)
            block = made[row : row + len(missing), sensors]
            made[row : row + len(missing), sensors] = np.where(missing, values[: len(missing), sensors], block)
    return _bounded(data, made)


def hide(data: SensorData, seed: int = 0) -> tuple[SensorData, NDArray[np.bool_]]:
    """Take some observed readings away from the rows after training, in gaps as long as those that the data have.

    Returns:
        The data without them, and where they are, (T, N).
    """
    rng = np.random.default_rng(seed)
    lengths = _lengths(data)
    if not len(lengths):
        lengths = np.arange(1, data.horizon + 1)
    first = data.train_rows if data.train_rows < len(data.timestamps) else 0
    hidden = np.zeros_like(data.mask)
    observed = data.mask[first:]
    wanted = int(HIDDEN_SHARE * observed.sum())
    # Gaps overlap at times and meet rows that are missing anyway: draw until enough readings are hidden, or give up.
    for _ in range(20):
        count = max(wanted // max(int(lengths.mean()), 1) // 2, 1)
        rows = rng.integers(first, len(data.timestamps), count)
        sensors = rng.integers(0, len(data.ids), count)
        for row, sensor, length in zip(rows, sensors, rng.choice(lengths, count), strict=True):
            hidden[row : row + length, sensor] = True
        if (hidden & data.mask).sum() >= wanted:
            break
    hidden &= data.mask
    mask = data.mask & ~hidden
    return replace(data, mask=mask, values=np.where(mask, data.values, 0)), hidden


def _persistence(data: SensorData, groups: Sequence[slice], usual: Callable[[slice], NDArray[np.floating]]) -> float:
    """Return the correlation of successive differences from the usual day in training rows, 0 to just below 1."""
    product = power = 0.0
    rows = data.train_rows
    for sensors in groups:
        mask = data.mask[:rows, sensors]
        residual = (data.values[:rows, sensors] - usual(sensors)[:rows]).astype(np.float64)
        both = mask[1:] & mask[:-1]
        product += float((residual[1:][both] * residual[:-1][both]).sum())
        power += float(np.square(residual[:-1][both]).sum())
    return float(np.clip(product / power, 0, STEADIEST)) if power > 0 else 0.0


def _bridge(residual: NDArray[np.floating], mask: NDArray[np.bool_], phi: float) -> NDArray[np.float64]:
    """Return (rows, N): the conditional mean at missing rows; anything at observed ones."""
    rows = len(mask)
    index = np.arange(rows)[:, None]
    before = np.maximum.accumulate(np.where(mask, index, -1), axis=0)
    after = np.minimum.accumulate(np.where(mask, index, rows)[::-1], axis=0)[::-1]
    has_before, has_after = before >= 0, after < rows
    a = np.where(has_before, np.take_along_axis(residual, np.maximum(before, 0), axis=0), 0)
    b = np.where(has_after, np.take_along_axis(residual, np.minimum(after, rows - 1), axis=0), 0)
    k, left = (index - before).astype(np.float64), (after - index).astype(np.float64)
    both = has_before & has_after
    weight_a = np.where(both, 1 - phi ** (2 * left), 1) * phi**k
    weight_b = np.where(both, 1 - phi ** (2 * k), 1) * phi**left
    whole = np.where(both, np.maximum(1 - phi ** (2 * (k + left)), 1e-12), 1)
    bridged: NDArray[np.float64] = (weight_a * a + weight_b * b) / whole
    return bridged


def _segments(data: SensorData) -> Sequence[tuple[int, int]]:
    return list(pairwise([0, *data.breaks, len(data.timestamps)]))


def _begins(data: SensorData) -> NDArray[np.bool_]:
    """Return (T, N): where a gap begins that has enough rows before it."""
    begins = ~data.mask
    begins[1:] &= data.mask[:-1]
    for first, last in _segments(data):
        begins[first : min(first + data.history, last)] = False
    return begins


def _lengths(data: SensorData) -> NDArray[np.int64]:
    """Return the lengths of all gaps."""
    missing = np.zeros((len(data.timestamps) + 2, len(data.ids)), np.int8)
    missing[1:-1] = ~data.mask
    change = np.diff(missing.T, axis=1)
    return np.argwhere(change == -1)[:, 1] - np.argwhere(change == 1)[:, 1]


def _bounded(data: SensorData, filled: NDArray[Any]) -> NDArray[np.float32]:
    low = 0.0 if not (data.values < 0).any() else -np.inf
    result = np.empty_like(data.values)
    for rows in blocks(*data.values.shape):
        result[rows] = np.where(data.mask[rows], data.values[rows], np.maximum(filled[rows], low))
    return result
