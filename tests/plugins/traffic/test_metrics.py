"""Masked metrics against independent statements and the published loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polyhead.protocols import Metric
from polyhead_traffic.metrics import ForecastMetric, figure_name, masked_absolute_error


def _published(prediction: np.ndarray, y: np.ndarray, power: str) -> float:
    """DCRNN's metrics as published: a mask divided by its mean, then a plain mean; non-finite terms are 0."""
    prediction, y = prediction.astype(np.float64), y.astype(np.float64)
    weight = (y != 0).astype(np.float64)
    weight /= weight.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(prediction - y)
        term = {"mae": error, "rmse": error**2, "mape": 100 * error / np.abs(y)}[power]
        mean = np.nan_to_num(weight * term, posinf=0).mean()
    return float(np.sqrt(mean) if power == "rmse" else mean)


def test_figures_of_every_step_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    y = rng.uniform(1, 70, (9, 12, 5)).astype(np.float32)
    y[rng.random(y.shape) < 0.2] = 0
    prediction = (y + rng.normal(0, 5, y.shape)).astype(np.float32)
    metric = ForecastMetric(12, 300)
    assert isinstance(metric, Metric)
    for rows in (slice(0, 4), slice(4, 9)):  # batches of different size
        batch = {"y": torch.from_numpy(y[rows]), "y_mask": torch.from_numpy(y[rows] != 0)}
        metric.update(torch.from_numpy(prediction[rows]), batch)
    figures = metric.compute()
    for name in ("mae", "rmse", "mape"):
        steps = [_published(prediction[:, step], y[:, step], name) for step in range(12)]
        for step, expected in enumerate(steps, start=1):
            assert figures[f"{name}_{5 * step}min"] == pytest.approx(expected, rel=1e-9)
        assert figures[name] == pytest.approx(np.mean(steps), rel=1e-9)
    assert list(figures)[:6] == ["mae", "rmse", "mape", "mae_15min", "rmse_15min", "mape_15min"]


def test_the_loss_is_the_published_one(shared: Path) -> None:
    case = load_file(shared / "golden" / "gman" / "case.safetensors")
    for kind, dtype, tolerance in (("outputs", torch.float32, 1e-6), ("outputs_f64", torch.float64, 1e-12)):
        label = case["inputs/label"].to(dtype)
        total, count = masked_absolute_error(case[f"{kind}/pred_eval"] * 9 + 50, label, label != 0)
        assert (total / count).item() == pytest.approx(case[f"{kind}/mae_loss"].item(), rel=tolerance)


def test_what_stands_for_a_missing_reading_reaches_neither_loss_nor_gradient() -> None:
    y = torch.tensor([[[1.0, float("nan")], [float("inf"), 4.0]]])
    mask = torch.tensor([[[True, False], [False, True]]])
    prediction = torch.zeros(1, 2, 2, requires_grad=True)
    total, count = masked_absolute_error(prediction, y, mask)
    total.backward()
    assert (total.item(), count.item()) == (5.0, 2)
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[[-1.0, 0.0], [0.0, -1.0]]]
    metric = ForecastMetric(2, 300)
    metric.update(prediction.detach(), {"y": y, "y_mask": mask})
    assert metric.compute()["mae_5min"] == 1


def test_a_batch_without_readings_has_no_loss() -> None:
    total, count = masked_absolute_error(
        torch.ones(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    )
    assert (total.item(), count.item()) == (0, 0)
    metric = ForecastMetric(3, 300)
    assert np.isnan(metric.compute()["mae"])


def test_an_observed_zero_counts_in_mae_but_has_no_percentage() -> None:
    y = torch.tensor([[[0.0, 10.0]]])
    metric = ForecastMetric(1, 3600)
    metric.update(torch.tensor([[[1.0, 8.0]]]), {"y": y, "y_mask": torch.ones_like(y, dtype=torch.bool)})
    figures = metric.compute()
    assert figures["mae_60min"] == 1.5
    assert figures["mape_60min"] == pytest.approx(20)


def test_merged_states_are_the_union() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"y": torch.rand(n, 4, 3, generator=generator), "y_mask": torch.rand(n, 4, 3, generator=generator) > 0.4}
        for n in (1, 3, 2)
    ]
    whole, parts = ForecastMetric(4, 900), [ForecastMetric(4, 900) for _ in batches]
    for batch, part in zip(batches, parts, strict=True):
        whole.update(torch.zeros(1), batch)
        part.update(torch.zeros(1), batch)
    merged = ForecastMetric(4, 900)
    merged.merge([part.state() for part in parts])
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)


@pytest.mark.parametrize(
    ("step", "step_s", "name"),
    [(3, 300, "mae_15min"), (12, 300, "mae_60min"), (2, 900, "mae_30min"), (1, 30, "mae_30s")],
)
def test_steps_are_named_by_their_time(step: int, step_s: int, name: str) -> None:
    assert figure_name("mae", step, step_s) == name
