"""What agents are measured by: errors of recorded actions, and returns of played episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch

__all__ = ["AgentMetric", "half_width"]

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom; beyond, the normal distribution's 1.960 is 4 % short.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def half_width(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return half of the 95 % confidence interval of the mean; 0 for a single value, of which nothing can be said.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    count = len(values)
    if count < 2:
        return 0.0
    t = T_95[count - 2] if count - 1 <= len(T_95) else 1.96 * (1 + 1.2 / (count - 1))
    return float(t * np.std(values, ddof=1) / math.sqrt(count))


class AgentMetric:
    """Collects what was predicted for windows, or the returns of played episodes.

    Windows give ``action_error``, the share of wrong choices or the mean squared error over real steps and numbers of
    an action. Played episodes give ``return``, ``return_ci95`` (half of the interval of its mean), ``length``, and
    where there are reference returns ``normalised``; the same with ``_episode`` for an agent that acted on a state
    carried through the whole episode.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.error, self.count = 0.0, 0
        self.played: dict[str, list[float]] = {}

    def update(self, prediction: Mapping[str, Any], batch: Batch) -> None:
        """Add a batch."""
        if "play" in batch:
            for name, values in prediction.items():
                self.played.setdefault(name, []).extend(np.asarray(values, dtype=np.float64).tolist())
            return
        action, true, mask = prediction["action"], batch["actions"], batch["mask"]
        if true.ndim == 2:
            wrong = (action.argmax(-1) != true)[mask]
        else:
            wrong = (action.double() - true.double()).square()[mask]
        self.error += float(wrong.double().sum())
        self.count += wrong.numel()

    def state(self) -> Any:
        """Return sums and returns."""
        return self.error, self.count, self.played

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of all."""
        self.error = sum(error for error, _, _ in states)
        self.count = sum(count for _, count, _ in states)
        self.played = {
            name: [value for _, _, played in states for value in played.get(name, [])]
            for name in dict.fromkeys(name for _, _, played in states for name in played)
        }

    def compute(self) -> Mapping[str, float]:
        """Return the figures."""
        figures = {name: float(np.mean(values)) for name, values in self.played.items()}
        for name in ("return", "return_episode"):
            if name in self.played:
                figures[f"{name}_ci95"] = half_width(self.played[name])
        if self.count:
            figures["action_error"] = self.error / self.count
        return figures
