"""The usual day: profiles of sensors, and the forecast that a network starts from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Start", "UsualDay"]

WEEKEND = 5
"""Days from this one on (Monday = 0) have the profile of the weekend."""


class Start(NamedTuple):
    """Where a forecast starts from, in normalised units."""

    past: Tensor
    """(B, P, N, 3): reading, its deviation from the profile, and whether it was observed."""
    future: Tensor
    """(B, Q, N, 2): the profile and the forecast below."""
    forecast: Tensor
    """(B, Q, N): the profile plus a share of the last deviation."""


class UsualDay(nn.Module):
    """Profiles of weekdays and weekends, and a forecast from them: profile plus a learned share of the last deviation.

    The share is a parameter for each step of the horizon.

    Differs from the publication, which has no such thing: without it a network has to learn the daily course of every
    sensor from as many examples as there are days.
    """

    table: Tensor

    def __init__(self, nodes: int, slots_per_day: int, history: int, horizon: int) -> None:
        """Make an empty profile; ``GMAN.set_data`` fills it."""
        super().__init__()
        self.history = history
        self.register_buffer("table", torch.zeros(2, slots_per_day, nodes))
        # Shares from 0.9 to 0.3, about what last deviations are worth after 5 and 60 minutes.
        self.share = nn.Parameter(torch.linspace(2, -1, horizon))

    def at(self, te: Tensor) -> Tensor:
        """Return the profile at the steps ``te`` (B, S, 2): (B, S, N) in the data's unit."""
        return self.table[(te[..., 0] >= WEEKEND).long(), te[..., 1]]

    def start(self, x: Tensor, seen: Tensor, usual: Tensor) -> Start:
        """Return features and forecast of past readings (B, P, N) and what is usual, (B, P + Q, N), both normalised."""
        past, future = usual[:, : self.history], usual[:, self.history :]
        x = torch.where(seen, x, past)
        deviation = x - past
        steps = torch.arange(1, self.history + 1, device=x.device)[:, None] * seen
        # Of a sensor without any reading in the window, the deviation is 0 at every step.
        last = deviation.gather(1, (steps.amax(1, keepdim=True) - 1).clamp(min=0))
        forecast = future + self.share.sigmoid()[:, None] * last
        return Start(torch.stack([x, deviation, seen.to(x.dtype)], -1), torch.stack([future, forecast], -1), forecast)
