"""Honest baselines: what a model has to beat, fitted on the training windows and tuned on the validation windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch, Predictor
from polyhead_traffic.data import SensorData

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyhead_traffic.windows import WindowSource

__all__ = ["LastValue", "Profile", "Ridge", "ShrunkResidual", "VectorAutoregression", "fit_baselines"]

WEEKEND = 5
"""Days of the week from this one on (Monday = 0) are the weekend."""
FIT_SAMPLES = 20_000_000
"""Most windows times sensors that a shared regression is fitted on; evenly spaced windows beyond that."""
CHUNK = 1 << 20
"""Numbers in one chunk of a regression's input: 8 MB in float64."""
SHRINKAGE = tuple(i / 10 for i in range(11))


def fit_baselines(data: SensorData, names: Sequence[str] = ()) -> Mapping[str, Predictor]:
    """Return the baselines ``names`` (none given: all of them), fitted on ``data``.

    The ridges' penalties are those of the published reference table (1 and 100). What the others leave open is chosen
    on the validation windows, for each step of the horizon, by the metric that is reported (MAE). The vector
    autoregression is left out where the cross products of all sensors would not fit into memory.
    """
    mean, median = cache(lambda: Profile.fit(data, "mean")), cache(lambda: Profile.fit(data, "median"))
    makers: Mapping[str, Callable[[], Predictor]] = {
        "last value": lambda: LastValue(data),
        "slot mean": mean,
        "slot median": median,
        "ridge": lambda: Ridge(data, penalty=1.0),
        "ridge + weekday mean": lambda: Ridge(data, penalty=100.0, profile=mean().of_weekdays()),
        "ridge + slot mean": lambda: Ridge(data, penalty=100.0, profile=mean()),
        "slot median + residual": lambda: ShrunkResidual(data, median()),
        "vector autoregression": lambda: VectorAutoregression(data, median()),
    }
    fitted = names or [name for name in makers if name != "vector autoregression" or VectorAutoregression.fits(data)]
    return {name: makers[name]() for name in fitted}


class LastValue:
    """Repeat each sensor's last observed reading of the window; its training mean if it has none there."""

    def __init__(self, data: SensorData) -> None:
        """Take the training means from ``data``."""
        self.horizon = data.horizon
        self.means = data.sensor_means

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, Q, N)."""
        return self.last(batch)[:, None].expand(-1, self.horizon, -1)

    def last(self, batch: Batch) -> Tensor:
        """Return the last observed readings, shape (B, N)."""
        import torch

        x, mask = batch["x"], batch["x_mask"]
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None] * mask
        latest = steps.amax(dim=1)
        value = x.gather(1, (latest - 1).clamp(min=0)[:, None])[:, 0]
        return value.where(latest > 0, torch.from_numpy(self.means).to(x))


@dataclass(frozen=True, eq=False)
class Profile:
    """Each sensor's figure for every slot of the day, weekdays and weekend apart."""

    history: int
    table: NDArray[np.float32]
    """(2, slots, N): weekdays, weekend."""

    @classmethod
    def fit(cls, data: SensorData, statistic: Literal["mean", "median"]) -> Profile:
        """Return the statistics of ``data``'s training rows.

        A kind of day that the training rows lack is given the other one's profile; a slot without any observed reading
        is given the sensor's mean.
        """
        table = np.stack([_slot_table(data, statistic, weekend) for weekend in (False, True)])
        lost = np.isnan(table).all(axis=(1, 2))
        if lost.any() and not lost.all():
            table[lost] = table[~lost]
        return cls(data.history, np.where(np.isnan(table), data.sensor_means, table).astype(np.float32))

    @classmethod
    def constant(cls, data: SensorData) -> Profile:
        """Return each sensor's training mean at all times."""
        return cls(data.history, np.tile(data.sensor_means, (2, data.slots_per_day, 1)))

    def of_weekdays(self) -> Profile:
        """Return a profile that gives weekends the values of weekdays too."""
        return Profile(self.history, self.table[[0, 0]])

    def __call__(self, batch: Batch) -> Tensor:
        """Return the profile of the future steps, (B, Q, N)."""
        return self.at(batch, slice(self.history, None))

    def at(self, batch: Batch, steps: slice) -> Tensor:
        """Return the profile of some of the window's P+Q steps, (B, steps, N)."""
        import torch

        te = batch["te"][:, steps]
        table = torch.from_numpy(self.table).to(batch["x"])
        return table[(te[..., 0] >= WEEKEND).long(), te[..., 1]]


def _slot_table(data: SensorData, statistic: str, weekend: bool) -> NDArray[np.float64]:
    """Return (slots, N), NaN where nothing was observed."""
    rows = np.arange(data.train_rows)
    rows = rows[(data.calendar[rows, 0] >= WEEKEND) == weekend]
    table = np.full((data.slots_per_day, len(data.ids)), np.nan)
    slots = data.calendar[rows, 1]
    for slot in np.unique(slots):
        group = rows[slots == slot]
        readings = data.values[group].astype(np.float64)
        observed = data.mask[group]
        seen = observed.any(axis=0)
        masked = np.ma.masked_array(readings[:, seen], ~observed[:, seen])
        figure = np.ma.median(masked, axis=0) if statistic == "median" else masked.mean(axis=0)
        table[slot, seen] = np.ma.getdata(figure)
    return table


class Ridge:
    r"""One linear map from the window to the horizon, shared by all sensors.

    The input of a sensor is its P past readings and 1; with a profile also the profile's values at the P past and Q
    future steps. The map of each step solves

    .. math:: (X^\top X + \lambda I)\, w = X^\top y

    over the observed targets (the intercept is penalised as well). The sums run over chunks of windows.

    Complexity: O(S·N·F²) time, O(Q·F²) memory for S windows and F inputs; Q times less of both without missing targets.
    """

    def __init__(self, data: SensorData, *, penalty: float, profile: Profile | None = None) -> None:
        """Fit on the training windows of ``data``."""
        import torch

        self.history, self.horizon, self.profile = data.history, data.horizon, profile
        source = data.source("train")
        features = 1 + data.history + (data.history + data.horizon if profile else 0)
        gram = torch.zeros(data.horizon, features, features, dtype=torch.float64)
        moment = torch.zeros(data.horizon, features, dtype=torch.float64)
        for batch in _chunks(source, features):
            inputs = self._inputs(batch).double().flatten(0, 1)
            y, mask = (batch[name].transpose(1, 2).flatten(0, 1) for name in ("y", "y_mask"))
            y = y.double()
            if mask.all():
                gram += inputs.T @ inputs
                moment += (inputs.T @ y).T
                continue
            for step in range(data.horizon):
                rows = mask[:, step]
                gram[step] += inputs[rows].T @ inputs[rows]
                moment[step] += inputs[rows].T @ y[rows, step]
        gram += penalty * torch.eye(features, dtype=torch.float64)
        self.weights: torch.Tensor = torch.linalg.solve(gram, moment).float()

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, Q, N)."""
        return (self._inputs(batch) @ self.weights.T.to(batch["x"])).transpose(1, 2)

    def _inputs(self, batch: Batch) -> Tensor:
        """Return (B, N, F)."""
        import torch

        x = batch["x"].transpose(1, 2)
        parts = [x, torch.ones_like(x[..., :1])]
        if self.profile is not None:
            parts.insert(1, self.profile.at(batch, slice(None)).transpose(1, 2))
        return torch.cat(parts, dim=-1)


class ShrunkResidual:
    """A profile plus a share of the last residual; the share of each step is chosen on the validation windows."""

    def __init__(self, data: SensorData, profile: Profile) -> None:
        """Choose the shares by the MAE over the validation windows of ``data``."""
        import torch

        self.profile, self.last, self.horizon = profile, LastValue(data), data.horizon
        errors = torch.zeros(len(SHRINKAGE), data.horizon, dtype=torch.float64)
        for batch in _chunks(data.source("validation"), data.horizon):
            for number, share in enumerate(SHRINKAGE):
                prediction = self._predict(batch, torch.full((data.horizon,), share))
                error = (prediction - batch["y"]).abs().where(batch["y_mask"], 0.0)
                errors[number] += error.double().sum(dim=(0, 2))
        self.shares = torch.tensor(SHRINKAGE)[errors.argmin(dim=0)]

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, Q, N)."""
        return self._predict(batch, self.shares)

    def _predict(self, batch: Batch, shares: Tensor) -> Tensor:
        history = self.profile.history
        past = self.profile.at(batch, slice(history - 1, history))[:, 0]
        residual = self.last.last(batch) - past
        return self.profile(batch) + shares.to(residual)[None, :, None] * residual[:, None]


class VectorAutoregression:
    r"""Every sensor's next steps from the last ``lags`` readings of all sensors, one linear map a step of the horizon.

    .. math:: y_{t+h} - b_{t+h} = W_h \, (x_{t - \text{lags} + 1 .. t} - b_{t - \text{lags} + 1 .. t})

    with a ridge penalty. The lags (1 or 3), the penalty and the base b (the sensor's mean, or its slot median) are
    chosen for each step on the validation windows. A missing reading counts as its base.

    Complexity: O(S·F² + F³ + S·Q·F·N) time, O(F² + Q·F·N) memory for S windows, N sensors and F = N · lags inputs.
    """

    LAGS = (1, 3)
    PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
    """In units of the mean squared input."""
    MEMORY = 1 << 29
    """Most bytes of cross products."""

    def __init__(self, data: SensorData, median: Profile) -> None:
        """Fit on the training windows and choose on the validation windows of ``data``."""
        import torch

        self.history, self.horizon = data.history, data.horizon
        self.bases = [Profile.constant(data), median]
        best = torch.full((data.horizon,), torch.inf, dtype=torch.float64)
        self.maps: list[tuple[int, int, Tensor]] = [(0, 1, torch.empty(0))] * data.horizon
        """For each step: number of the base, lags, and weights (F, N)."""
        for lags in self.lags_of(data):
            for base in range(len(self.bases)):
                values, vectors, rotated = self._decompose(data, base, lags)
                for penalty in self.PENALTIES:
                    shrunk = rotated / (values + penalty * values.mean().clamp(min=1e-12))[:, None]
                    weights = (vectors @ shrunk).unflatten(1, (data.horizon, -1)).transpose(0, 1)
                    errors = self._errors(data, base, lags, weights)
                    for step in torch.nonzero(errors < best)[:, 0].tolist():
                        self.maps[step] = (base, lags, weights[step].float())
                    best = torch.minimum(best, errors)

    @classmethod
    def lags_of(cls, data: SensorData) -> list[int]:
        """Return the lags whose cross products fit into memory."""
        nodes = len(data.ids)
        within = [lags for lags in cls.LAGS if lags <= data.history]
        return [lags for lags in within if 8 * nodes * lags * nodes * (lags + data.horizon) <= cls.MEMORY]

    @classmethod
    def fits(cls, data: SensorData) -> bool:
        """Tell whether any lags fit."""
        return bool(cls.lags_of(data))

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, Q, N)."""
        import torch

        steps = []
        for step, (base, lags, weights) in enumerate(self.maps):
            level = self.bases[base].at(batch, slice(self.history + step, self.history + step + 1))[:, 0]
            steps.append(level + self._inputs(batch, base, lags) @ weights.to(level))
        return torch.stack(steps, dim=1)

    def _inputs(self, batch: Batch, base: int, lags: int) -> Tensor:
        """Return (B, F)."""
        last = slice(self.history - lags, self.history)
        deviation = batch["x"][:, last] - self.bases[base].at(batch, last)
        return deviation.where(batch["x_mask"][:, last], 0.0).flatten(1)

    def _targets(self, batch: Batch, base: int) -> Tensor:
        """Return (B, Q, N)."""
        deviation = batch["y"] - self.bases[base].at(batch, slice(self.history, None))
        return deviation.where(batch["y_mask"], 0.0)

    def _decompose(self, data: SensorData, base: int, lags: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return eigenvalues (F,) and -vectors (F, F) of the inputs' cross products, and theirs with the targets."""
        import torch

        nodes = len(data.ids)
        gram = torch.zeros(nodes * lags, nodes * lags, dtype=torch.float64)
        moment = torch.zeros(nodes * lags, data.horizon * nodes, dtype=torch.float64)
        for batch in _chunks(data.source("train"), lags + data.horizon):
            inputs = self._inputs(batch, base, lags).double()
            gram += inputs.T @ inputs
            moment += inputs.T @ self._targets(batch, base).double().flatten(1)
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp(min=0), vectors, vectors.T @ moment

    def _errors(self, data: SensorData, base: int, lags: int, weights: Tensor) -> Tensor:
        """Return the summed absolute errors over the validation windows, (Q,), of weights (Q, F, N)."""
        import torch

        errors = torch.zeros(data.horizon, dtype=torch.float64)
        for batch in _chunks(data.source("validation"), lags + data.horizon):
            forecast = torch.einsum("bf,qfn->bqn", self._inputs(batch, base, lags).double(), weights)
            error = (forecast - self._targets(batch, base)).abs()
            errors += error.where(batch["y_mask"], 0.0).sum(dim=(0, 2))
        return errors


def _chunks(source: WindowSource, features: int) -> Iterator[Batch]:
    """Yield the windows of a source in chunks of bounded size; evenly spaced ones where there are very many."""
    sensors = len(source.data.ids)
    every = max(1, -(-len(source) * sensors // FIT_SAMPLES))
    size = max(1, CHUNK // (sensors * features))
    picked = range(0, len(source), every)
    for first in range(0, len(picked), size):
        yield source.fetch(picked[first : first + size])
