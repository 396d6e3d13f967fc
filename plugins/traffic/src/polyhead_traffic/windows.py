"""Windows over the rows of a sensor network, split as the literature does, never materialised all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Split

if TYPE_CHECKING:
    from polyhead_traffic.data import SensorData

__all__ = ["PROTOCOLS", "WindowSource", "split_starts"]

PROTOCOLS: Mapping[str, str] = {
    "gman": "time axis cut 70/10/20, windows inside each part; mean and deviation of the training windows (GMAN)",
    "dcrnn": "windows cut 70/10/20, so parts share rows; mean and deviation of the training windows (DCRNN)",
    "pems-6-2-2": "time axis cut 60/20/20, windows inside each part; mean and deviation of the training rows (STSGCN)",
    "tgcn": "time axis cut 80/20, readings divided by the largest training one (T-GCN); the last eighth of the 80 % is "
    "the validation part, since T-GCN picks its epoch on the test part",
}


def split_starts(
    rows: int, breaks: Sequence[int], history: int, horizon: int, protocol: str
) -> Mapping[Split, NDArray[np.int64]]:
    """Return the first rows of the windows of each split.

    >>> {split: len(s) for split, s in split_starts(2016, (), 12, 12, "gman").items()}
    {'train': 1388, 'validation': 179, 'test': 380}
    """
    length = history + horizon
    segment = np.zeros(rows, dtype=np.int64)
    segment[list(breaks)] = 1
    segment = np.cumsum(segment)
    starts = np.arange(max(rows - length + 1, 0), dtype=np.int64)
    starts = starts[segment[starts] == segment[starts + length - 1]]
    if protocol == "dcrnn":
        train, test = round(0.7 * len(starts)), round(0.2 * len(starts))
        return {
            "train": starts[:train],
            "validation": starts[train : len(starts) - test],
            "test": starts[len(starts) - test :],
        }
    if protocol == "pems-6-2-2":
        first_cut, second_cut = int(0.6 * rows), int(0.8 * rows)
    elif protocol == "tgcn":
        second_cut = int(0.8 * rows)
        first_cut = second_cut - second_cut // 8
    else:
        first_cut, second_cut = round(0.7 * rows), rows - round(0.2 * rows)
    last = starts + length
    return {
        "train": starts[last <= first_cut],
        "validation": starts[(starts >= first_cut) & (last <= second_cut)],
        "test": starts[starts >= second_cut],
    }


class WindowSource:
    """Windows of a network by index.

    A batch holds ``x`` (B, P, N) float32 in the data's unit with 0 where missing, ``x_mask`` (B, P, N) bool, True =
    observed, ``te`` (B, P+Q, 2) int64 = day of week (Monday = 0) and slot of day, ``y`` (B, Q, N) and ``y_mask`` like
    ``x``, and ``start`` (B,) int64, the row of the first input step.
    """

    def __init__(self, data: SensorData, starts: NDArray[np.int64]) -> None:
        """Take the first rows of the windows, shape (S,)."""
        self.data, self.starts = data, starts

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Mapping[str, Any]:  # noqa: ARG002 - nothing is random
        """Return the windows ``indices`` as a batch of CPU tensors."""
        import torch

        start = self.starts[np.asarray(indices, dtype=np.int64)]
        past = start[:, None] + np.arange(self.data.history)
        future = start[:, None] + np.arange(self.data.history, self.data.history + self.data.horizon)
        arrays = {
            **self._inputs(past),
            "te": self.data.calendar[np.concatenate([past, future], axis=1)],
            "y": self.data.values[future],
            "y_mask": self.data.mask[future],
            "start": start,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def latest(self) -> Mapping[str, Any]:
        """Return the windows with the future's calendar but no future readings; only their past need exist."""
        import torch

        from polyhead_traffic.data import calendar

        past = self.starts[:, None] + np.arange(self.data.history)
        ahead = np.arange(1, self.data.horizon + 1) * np.timedelta64(self.data.step_s, "s")
        future = self.data.timestamps[past[:, -1]][:, None] + ahead
        arrays = {
            **self._inputs(past),
            "te": np.concatenate(
                [self.data.calendar[past], calendar(future, self.data.step_s, self.data.holidays)], axis=1
            ),
            "start": self.starts,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _inputs(self, past: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        x, mask = self.data.values[past], self.data.mask[past]
        if self.data.fill == "last" and not mask.all():
            # Position of the last observed step so far; -1 before the first one.
            steps = np.where(mask, np.arange(mask.shape[1])[None, :, None], -1)
            last = np.maximum.accumulate(steps, axis=1)
            x = np.where(last >= 0, np.take_along_axis(x, np.maximum(last, 0), axis=1), self.data.sensor_means)
        return {"x": x, "x_mask": mask}
