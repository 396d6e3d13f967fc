"""The median of the other days: what is usual at a time of day, without the readings that are to be forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch
from polyhead_traffic.baselines import WEEKEND, Profile
from polyhead_traffic.data import SensorData

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HeldOutMedian"]


@dataclass(frozen=True, eq=False)
class HeldOutMedian:
    """Each sensor's median for every slot of the day, weekdays and weekend apart, and what it is without one reading.

    A model that is trained with medians in which its targets take part learns to trust them too much: with three
    weekdays one target in three *is* its median. So training windows are shown the median of the other days. It
    follows from the order statistics around the median and from the reading itself, so that no day is looked up.
    """

    profile: Profile
    """The medians of all days."""
    others: NDArray[np.float32]
    """(3, 2, slots, N): the median of the other days where the own reading is below, at or above the median."""

    @classmethod
    def fit(cls, data: SensorData) -> HeldOutMedian:
        """Return the medians of ``data``'s training rows.

        Where a day has no other of its kind the other kind of day stands in, and the sensor's mean where there is none.

        Complexity: O(T·N·log T) time, O(slots·N) memory.
        """
        profile = Profile.fit(data, "median")
        others = np.full((3, *profile.table.shape), np.nan)
        rows = np.arange(data.train_rows)
        weekend = data.calendar[rows, 0] >= WEEKEND
        for kind in range(2):
            for slot in range(data.slots_per_day):
                group = rows[(weekend == kind) & (data.calendar[rows, 1] == slot)]
                if len(group):
                    readings = np.where(data.mask[group], data.values[group], np.nan)
                    others[:, kind, slot] = _medians_without_one(readings)
        if len(np.unique(weekend)) == 2:  # else the table of the other kind is a copy of this one's
            others = np.where(np.isnan(others), profile.table[::-1], others)
        return cls(profile, np.where(np.isnan(others), data.sensor_means, others).astype(np.float32))

    def without(self, batch: Batch) -> Tensor:
        """Return the median of the other days at each step of training windows, (B, P+Q, N)."""
        import torch

        te = batch["te"]
        kind, slot = (te[..., 0] >= WEEKEND).long(), te[..., 1]
        own, seen = torch.cat([batch["x"], batch["y"]], 1), torch.cat([batch["x_mask"], batch["y_mask"]], 1)
        median = self.profile.at(batch, slice(None))
        below, at, above = (torch.from_numpy(table).to(own)[kind, slot] for table in self.others)
        without = torch.where(own < median, below, torch.where(own > median, above, at))
        return torch.where(seen, without, median)


def _medians_without_one(readings: NDArray[Any]) -> NDArray[np.float64]:
    """Return the medians of all readings (n, N) but one that is below, at or above the median: (3, N).

    NaN is a missing reading; a sensor with fewer than two has NaN.
    """
    ordered = np.sort(readings.astype(np.float64), axis=0)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=0)

    def order_statistic(rank: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.take_along_axis(ordered, np.clip(rank, 0, len(ordered) - 1)[None], axis=0)[0]

    half = count // 2
    low, middle, high = (order_statistic(half + shift) for shift in (-1, 0, 1))
    odd = [(middle + high) / 2, (low + high) / 2, (low + middle) / 2]
    even = [middle, (low + middle) / 2, low]  # of an even number, low and middle are the two in the middle
    return np.where(count < 2, np.nan, np.where(count % 2 == 1, odd, even))
