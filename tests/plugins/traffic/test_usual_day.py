"""The usual day: medians without the own day, and a GMAN that starts from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.plugins.traffic.test_gman import SMALL, inputs, small
from torch import Tensor

from polyhead.errors import ConfigError, ShapeError
from polyhead.testing import check_model
from polyhead_traffic.baselines import Profile
from polyhead_traffic.data import SensorData
from polyhead_traffic.gman import GMAN, fold_batch_norm
from polyhead_traffic.held_out import HeldOutMedian
from polyhead_traffic.settings import ForecastTaskSettings
from polyhead_traffic.task import ForecastTask

Make = Callable[..., SensorData]
USUAL: dict[str, Any] = {"profile": True, "input_mask": True}


def usual(**changes: Any) -> tuple[GMAN, Tensor, Tensor]:
    """Return a model with a profile, and inputs."""
    model = small(**(USUAL | changes))
    x, te = inputs(model)
    table = torch.randn(2, 24, model.config.nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model.set_data(mean=5, std=2, profile=table), x, te


# Medians without the own day.


@pytest.mark.parametrize("days", [9, 20, 21, 30])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_median_of_the_other_days(network: Make, days: int, missing: float) -> None:
    data = network(days=days, missing=missing)
    medians = HeldOutMedian.fit(data)
    source = data.source("train")
    batch = source.fetch(range(0, len(source), 5))
    without = medians.without(batch).numpy()
    rows, weekend = np.arange(data.train_rows), data.calendar[: data.train_rows, 0] >= 5
    readings = np.where(data.mask, data.values, np.nan)[: data.train_rows].astype(np.float64)
    plain = medians.profile.at(batch, slice(None)).numpy()
    compared = 0
    for window, start in enumerate(batch["start"].tolist()):
        for step in range(7):
            own = start + step
            others = rows[(rows % 24 == own % 24) & (weekend == weekend[own]) & (rows != own)]
            for sensor in range(4):
                if not data.mask[own, sensor]:
                    assert without[window, step, sensor] == plain[window, step, sensor]
                elif np.isfinite(readings[others, sensor]).any():
                    expected = np.float32(np.nanmedian(readings[others, sensor]))
                    assert without[window, step, sensor] == pytest.approx(expected, rel=1e-6)
                    compared += 1
    assert compared > 100


def test_what_stands_in_for_a_day_without_another_of_its_kind(network: Make) -> None:
    data = network(days=9)  # training is Monday to Sunday morning: two weekend days at 3 h, one at 12 h
    assert data.train_rows == 151
    medians = HeldOutMedian.fit(data)
    assert np.array_equal(medians.others[:, 1, 12], np.tile(medians.profile.table[0, 12], (3, 1)))
    assert not np.isin(medians.others[:, 1, 3], medians.profile.table[0, 3]).any()
    alone = network(days=1, history=2, horizon=2)
    assert np.array_equal(HeldOutMedian.fit(alone).others[0, 0, 3], alone.sensor_means)


# The model.


def test_it_is_a_model_as_polyhead_defines_it() -> None:
    def make(model: Any, generator: torch.Generator) -> dict[str, Tensor]:
        x, te = inputs(model)
        return {"x": x.float(), "te": te}

    check_model("gman", make, config=SMALL | USUAL)
    check_model("gman", make, config=SMALL | USUAL | {"group_size": 2})


def test_training_begins_at_the_profile_and_a_share_of_the_last_deviation() -> None:
    model, x, te = usual()
    assert (model(x, te) - (start := _start(model)(x, te))).abs().max() < 0.1 * start.std()
    model = _start(model)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[0, 3, 1] = mask[1, :, 2] = False
    table = model.usual.table[(te[..., 0] >= 5).long(), te[..., 1]]  # type: ignore[union-attr]
    last = x[:, 3] - table[:, 3]
    last[0, 1] = x[0, 2, 1] - table[0, 2, 1]  # the last reading is missing: the one before
    last[1, 2] = 0  # none at all: the profile alone
    share = model.usual.share.sigmoid()[:, None]  # type: ignore[union-attr]
    torch.testing.assert_close(model(x, te, mask), table[:, 4:] + share * last[:, None])
    assert share.flatten().tolist() == sorted(share.flatten().tolist(), reverse=True)


def _start(model: GMAN) -> GMAN:
    """Return the model without what its network adds."""
    start = copy.deepcopy(model)
    start.output[-1].weight.data.zero_()  # type: ignore[operator]
    return start


def test_the_network_adds_to_it_and_learns_from_it() -> None:
    model, x, te = usual()
    assert not torch.allclose(model(x, te), _start(model)(x, te))
    model.train()(x, te).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for layer in (model.future[0].weight, model.usual.share):  # type: ignore[union-attr]
        assert layer.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_missing_readings_are_not_read() -> None:
    model, x, te = usual()
    model.output[-1].weight.data.normal_()  # type: ignore[operator]
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.testing.assert_close(model(torch.where(mask, x, 99), te, mask), model(x, te, mask), rtol=0, atol=0)
    torch.testing.assert_close(model(x, te), model(x, te, torch.ones_like(mask)), rtol=0, atol=0)


def test_another_profile_can_be_shown() -> None:
    model, x, te = usual()
    shown = torch.randn(3, 7, 6, dtype=torch.float64)
    assert not torch.allclose(model(x, te, None, shown), model(x, te))
    own = model.usual.at(te)  # type: ignore[union-attr]
    torch.testing.assert_close(model(x, te, None, own), model(x, te), rtol=0, atol=0)


def test_permuting_sensors_permutes_forecasts() -> None:
    model, x, te = usual(group_size=2)
    model.output[-1].weight.data.normal_()  # type: ignore[operator]
    labels, order = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([3, 1, 4, 0, 5, 2])
    expected = model.set_data(partition=labels)(x, te)
    model.set_data(
        spatial_embedding=model.spatial_embedding[order],
        partition=labels[order],
        profile=model.usual.table[..., order],  # type: ignore[union-attr]
    )
    torch.testing.assert_close(model(x[:, :, order], te), expected[:, :, order])


def test_folding_keeps_forecasts() -> None:
    model, x, te = usual()
    model.output[-1].weight.data.normal_()  # type: ignore[operator]
    torch.testing.assert_close(fold_batch_norm(model)(x, te), model(x, te))


def test_input_dropout_hides_readings_in_training_only() -> None:
    model, x, te = usual(input_dropout=1.0)
    assert torch.equal(model(x, te), model(x, te))
    model.train()
    torch.manual_seed(0)
    first = model(x, te)
    torch.manual_seed(0)
    torch.testing.assert_close(first, model(x, te))
    assert not torch.allclose(first, model(x, te))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"profile": True}, "profile is on and input_mask off: missing readings are no deviations, set both"),
        ({"input_dropout": 1.5}, "input_dropout is 1.5: give a share between 0 and 1"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GMAN.Config(**(SMALL | changes))


def test_wrong_profiles_are_named() -> None:
    model, x, te = usual()
    with pytest.raises(ShapeError, match=r"profile has shape \(3, 3, 6\), expected \(3, 7, 6\): batch, history \+ hor"):
        model(x, te, None, x[:, :3])
    with pytest.raises(ShapeError, match=r"profile has shape \(2, 24, 5\), expected \(2, 24, 6\): 2, slots_per_day, n"):
        model.set_data(profile=torch.zeros(2, 24, 5))
    with pytest.raises(ConfigError, match="profile is given, but profile is off: set profile=True or leave it out"):
        small()(x, te, None, torch.zeros(3, 7, 6))
    with pytest.raises(ConfigError, match="The model has no profile: set profile=True to let it start from the usual"):
        small().set_data(profile=torch.zeros(2, 24, 6))


# The task.


def test_the_task_fills_the_profile_and_trains_without_the_own_day(network: Make) -> None:
    data = replace(network(days=20, missing=0.1), embedding=np.ones((4, 2), np.float32))
    task = ForecastTask.prepare(data, ForecastTaskSettings(), seed=0)
    config = {"depth": 1, "heads": 2, "head_dim": 2, "dropout": 0.0, **USUAL}
    model: Any = task.build_model("gman", config).eval()
    assert np.array_equal(model.usual.table.numpy(), Profile.fit(data, "median").table)
    batch = data.source("train").fetch([0, 9])
    total, count = task.loss(model, batch)["mae"]
    forecast = model(batch["x"], batch["te"], batch["x_mask"], HeldOutMedian.fit(data).without(batch))
    expected = (forecast - batch["y"])[batch["y_mask"]].abs().sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count.item() == batch["y_mask"].sum().item()
    assert not torch.allclose(forecast, task.predict(model, batch))
    restored = ForecastTask.restore(task.state())
    torch.testing.assert_close(restored.predict(model, batch), task.predict(model, batch), rtol=0, atol=0)
