"""Baselines against hand-made statements and the published reference table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.protocols import Batch
from polyhead_traffic import baselines
from polyhead_traffic.baselines import LastValue, Profile, Ridge, ShrunkResidual, VectorAutoregression, fit_baselines
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder
from polyhead_traffic.metrics import ForecastMetric
from polyhead_traffic.settings import SensorSettings

Make = Callable[..., SensorData]


def _all(data: SensorData, split: str = "test") -> Batch:
    source = data.source(split)  # type: ignore[arg-type]
    return source.fetch(range(len(source)))


README = "plugins/traffic/README.md"

# MAE at 15, 30 and 60 minutes on the METR-LA week, 207 sensors, split 70/10/20 by rows.
REFERENCE = {
    "last value": (3.577, 4.383, 5.797),
    "slot mean": (4.645, 4.611, 4.547),
    "ridge": (3.500, 4.406, 5.873),
    "ridge + weekday mean": (3.486, 3.999, 4.645),
    "slot median": (None, None, 4.348),
    "slot median + residual": (None, None, 4.298),
}


def test_the_published_reference_table_is_reproduced(shared: Path, root: Path) -> None:
    settings = SensorSettings(start="2012-03-01", step="5min")
    data = open_folder(shared / "data" / "traffic" / "metr-la-week", settings)
    batch = _all(data)
    computed: dict[str, Mapping[str, float]] = {}
    for name, predictor in fit_baselines(data).items():
        metric = ForecastMetric(data.horizon, data.step_s)
        metric.update(predictor(batch), batch)
        figures = computed[name] = metric.compute()
        for minutes, expected in zip((15, 30, 60), REFERENCE.get(name, ()), strict=False):
            if expected is not None:
                # Within one in the third decimal: 4.6445 and 5.7975 round either way.
                assert figures[f"mae_{minutes}min"] == pytest.approx(expected, abs=6e-4), (name, minutes)
    rows = [line.split("|")[1:-1] for line in (root / README).read_text().splitlines() if line.startswith("| ")]
    shown = {row[0].strip(): row[1:] for row in rows if row[0].strip() in computed}
    assert list(shown) == list(computed), "the README shows every baseline"
    for name, cells in shown.items():
        for minutes, cell in zip((15, 30, 60), cells, strict=True):
            assert float(cell) == pytest.approx(computed[name][f"mae_{minutes}min"], abs=6e-4), (name, minutes)
    root_mean_square = ForecastMetric(data.horizon, data.step_s)
    root_mean_square.update(LastValue(data)(batch), batch)
    figures = root_mean_square.compute()
    assert [round(figures[f"rmse_{m}min"], 2) for m in (15, 30, 60)] == [6.47, 8.24, 10.90]


def test_the_last_value_skips_missing_readings(network: Make) -> None:
    data = network()
    batch = dict(_all(data))
    batch["x_mask"] = torch.ones_like(batch["x_mask"])
    batch["x_mask"][:, -1, 0] = False
    batch["x_mask"][:, :, 1] = False
    forecast = LastValue(data)(batch)
    assert forecast.shape == batch["y"].shape
    assert torch.equal(forecast[:, 0, 0], batch["x"][:, -2, 0])
    assert torch.equal(forecast[:, 2, 2], batch["x"][:, -1, 2])
    assert (forecast[:, :, 1] == float(data.sensor_means[1])).all()


def test_profiles_are_the_statistics_of_slot_and_kind_of_day(network: Make) -> None:
    data = network(days=20, missing=0.3)
    rows = data.train_rows
    batch = _all(data)
    for statistic, function in (("mean", np.nanmean), ("median", np.nanmedian)):
        forecast = Profile.fit(data, statistic)(batch)  # type: ignore[arg-type]
        readings = np.where(data.mask, data.values.astype(np.float64), np.nan)[:rows]
        calendar = data.calendar[:rows]
        for window, step, sensor in ((0, 0, 0), (7, 2, 3), (30, 1, 2), (60, 0, 1)):
            day, slot = batch["te"][window, 4 + step].tolist()
            same = (calendar[:, 1] == slot) & ((calendar[:, 0] >= 5) == (day >= 5))
            assert forecast[window, step, sensor].item() == pytest.approx(function(readings[same, sensor]), rel=1e-6)


def test_a_kind_of_day_that_training_lacks_takes_the_other_ones_profile(network: Make) -> None:
    data = network(days=6)  # Monday to Friday in the training part
    table = Profile.fit(data, "mean").table
    assert np.array_equal(table[0], table[1])
    assert np.isfinite(table).all()


def test_a_slot_without_readings_takes_the_mean_of_the_sensor(network: Make) -> None:
    data = network(days=6)
    mask = data.mask.copy()
    mask[data.calendar[:, 1] == 7, 2] = False
    data = replace(data, mask=mask, values=np.where(mask, data.values, 0))
    assert Profile.fit(data, "median").table[0, 7, 2] == data.sensor_means[2]


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("with_profile", [False, True])
def test_ridge_is_the_closed_form_over_all_windows(network: Make, missing: float, with_profile: bool) -> None:
    data = network(days=8, missing=missing)
    profile = Profile.fit(data, "mean") if with_profile else None
    ridge = Ridge(data, penalty=3.0, profile=profile)
    batch = _all(data, "train")
    x = batch["x"].double().transpose(1, 2).reshape(-1, data.history)
    columns = [x, torch.ones(len(x), 1, dtype=torch.float64)]
    if profile is not None:
        columns.append(profile.at(batch, slice(None)).double().transpose(1, 2).reshape(len(x), -1))
    inputs = torch.cat(columns, dim=1).numpy()
    y, mask = (batch[name].transpose(1, 2).reshape(-1, data.horizon).numpy() for name in ("y", "y_mask"))
    forecast = ridge(batch).transpose(1, 2).reshape(-1, data.horizon).numpy()
    for step in range(data.horizon):
        rows = mask[:, step]
        # The penalty as further rows of an ordinary least-squares problem.
        width = inputs.shape[1]
        system = np.concatenate([inputs[rows], np.sqrt(3.0) * np.eye(width)])
        weights = np.linalg.lstsq(system, np.concatenate([y[rows, step], np.zeros(width)]), rcond=None)[0]
        np.testing.assert_allclose(forecast[:, step], inputs @ weights, rtol=2e-5)


def test_ridge_does_not_depend_on_the_size_of_its_chunks(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = network(days=8, missing=0.2)
    whole = Ridge(data, penalty=1.0).weights
    monkeypatch.setattr(baselines, "CHUNK", 60)
    torch.testing.assert_close(Ridge(data, penalty=1.0).weights, whole, rtol=1e-5, atol=1e-6)


def test_very_many_windows_are_thinned_evenly(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(days=8).source("train")
    monkeypatch.setattr(baselines, "FIT_SAMPLES", 100)
    starts = np.concatenate([batch["start"] for batch in baselines._chunks(source, 5)])
    assert 20 <= len(starts) <= 25
    assert len(set(np.diff(starts))) == 1


def test_the_share_of_the_residual_is_the_best_of_its_grid_on_validation(network: Make) -> None:
    data = network(days=12, missing=0.1)
    profile = Profile.fit(data, "median")
    fitted = ShrunkResidual(data, profile)
    batch = _all(data, "validation")
    residual = LastValue(data).last(batch) - profile.at(batch, slice(3, 4))[:, 0]
    for step in range(data.horizon):
        errors = []
        for share in baselines.SHRINKAGE:
            forecast = profile(batch)[:, step] + share * residual
            errors.append((forecast - batch["y"][:, step]).abs()[batch["y_mask"][:, step]].mean().item())
        assert fitted.shares[step].item() == pytest.approx(baselines.SHRINKAGE[int(np.argmin(errors))])


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_vector_autoregression_is_the_best_of_its_grid_on_validation(network: Make, missing: float) -> None:
    data = network(days=12, missing=missing)
    train, validation, test = (_all(data, split) for split in ("train", "validation", "test"))
    best = [(np.inf, np.zeros(0))] * data.horizon
    for base in (Profile.constant(data), Profile.fit(data, "median")):
        for lags in (1, 3):

            def inputs(batch: Batch, base: Profile = base, lags: int = lags) -> np.ndarray:
                deviation = torch.where(batch["x_mask"], batch["x"] - base.at(batch, slice(0, 4)), 0)
                return deviation[:, 4 - lags :].flatten(1).double().numpy()

            x = inputs(train)
            for penalty in VectorAutoregression.PENALTIES:
                root = np.sqrt(penalty * np.square(x).sum(axis=0).mean())
                system = np.concatenate([x, root * np.eye(x.shape[1])])
                for step in range(data.horizon):
                    y = torch.where(train["y_mask"], train["y"] - base(train), 0)[:, step].double().numpy()
                    target = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
                    weights = np.linalg.lstsq(system, target, rcond=None)[0]
                    forecasts = [base(b)[:, step].double().numpy() + inputs(b) @ weights for b in (validation, test)]
                    wrong = np.abs(forecasts[0] - validation["y"][:, step].numpy())
                    error = wrong[validation["y_mask"][:, step].numpy()].sum()
                    if error < best[step][0]:
                        best[step] = (error, forecasts[1])
    forecast = fit_baselines(data, ["vector autoregression"])["vector autoregression"](test).numpy()
    np.testing.assert_allclose(forecast, np.stack([each for _, each in best], axis=1), rtol=1e-4)


def test_a_network_too_large_for_cross_products_is_forecast_without_them(
    network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = network(days=8)
    assert "vector autoregression" in fit_baselines(data)
    monkeypatch.setattr(VectorAutoregression, "MEMORY", 8 * 4 * 4 * 4)
    assert VectorAutoregression.lags_of(data) == [1]
    monkeypatch.setattr(VectorAutoregression, "MEMORY", 100)
    assert "vector autoregression" not in fit_baselines(data)


def test_every_baseline_gives_finite_forecasts_of_the_right_shape(network: Make) -> None:
    data = network(days=10, missing=0.5)
    for split in ("train", "test"):
        batch = _all(data, split)
        for name, predictor in fit_baselines(data).items():
            forecast = predictor(batch)
            assert forecast.shape == batch["y"].shape, name
            assert torch.isfinite(forecast).all(), name


def test_a_baseline_sees_no_future_reading(network: Make) -> None:
    data = network(days=10)
    fitted = fit_baselines(data)
    batch = _all(data)
    blind = {**batch, "y": torch.full_like(batch["y"], float("nan"))}
    for name, predictor in fitted.items():
        assert torch.equal(predictor(batch), predictor(blind)), name
    # Nothing after the training and validation rows is fitted on.
    rows = int(data.starts["test"][0])
    values = data.values.copy()
    values[rows:] = -1
    for name, predictor in fit_baselines(replace(data, values=values)).items():
        assert torch.equal(predictor(batch), fitted[name](batch)), name
