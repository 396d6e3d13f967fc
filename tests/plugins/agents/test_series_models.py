"""Classifier, forecaster and event model: causality, padding, streams, densities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.errors import ConfigError, ShapeError
from polyhead.testing import check_model
from polyhead_agents.classifier import ClassifierConfig, SeriesClassifier
from polyhead_agents.event_model import EventConfig, EventForecast, EventModel
from polyhead_agents.forecaster import ForecasterConfig, SeriesForecaster
from polyhead_agents.series import SeriesEncoder

MIXERS = ("aaren", "softmax")


def encoder(mixer: str) -> SeriesEncoder:
    torch.manual_seed(0)
    return SeriesEncoder(3, dim=16, depth=2, heads=2, ff_dim=32, dropout=0.1, mixer=mixer).eval()


def classifier(mixer: str = "aaren", head: str = "flatten") -> SeriesClassifier:
    torch.manual_seed(0)
    config = ClassifierConfig(3, 4, 9, mixer=mixer, head=head, dim=16, depth=2, heads=2, ff_dim=32)
    model = SeriesClassifier(config).eval()
    model.set_data(torch.tensor([1.0, 0.0, -2.0]), torch.tensor([2.0, 1.0, 0.5]))
    return model


def ragged() -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([9, 5, 1, 7])[:, None]
    return x, mask


@pytest.mark.parametrize("mixer", MIXERS)
def test_codes_see_no_later_reading_and_are_streamed(mixer: str) -> None:
    model, x = encoder(mixer), torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(x)
        changed = x.clone()
        changed[:, 5:] += 1
        assert torch.equal(model(changed)[:, :5], whole[:, :5])
        assert not torch.equal(model(changed)[:, 5], whole[:, 5])
        state = model.init_state(2)
        for t in range(9):
            code, state = model.step(x[:, t], state)
            torch.testing.assert_close(code, whole[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("head", ["flatten", "last", "mean"])
def test_a_classifier_reads_no_padding(mixer: str, head: str) -> None:
    model, (x, mask) = classifier(mixer, head), ragged()
    with torch.no_grad():
        before = model(x, mask)
        x[~mask] = float("nan")
        torch.testing.assert_close(model(x, mask), before, atol=1e-6, rtol=0)
        short = model(x[1:2, :5], mask[1:2, :5])
    torch.testing.assert_close(short, before[1:2], atol=1e-5, rtol=0)


def test_a_classifier_is_streamed_with_the_head_of_the_last_reading() -> None:
    model, (x, mask) = classifier(head="last"), ragged()
    state = model.init_state(1)
    with torch.no_grad():
        for t in range(9):
            logits, state = model.step(x[:1, t], state)
            whole = model(x[:1, : t + 1], mask[:1, : t + 1])
            torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r'The head "flatten" is not streamed\. Fit with model\.head=last'):
        classifier().init_state(1)


def test_forecasts_move_and_stretch_with_the_history() -> None:
    torch.manual_seed(0)
    model = SeriesForecaster(ForecasterConfig(2, 8, 4, dim=16, depth=1, heads=2, ff_dim=32)).eval()
    x, marks = torch.randn(3, 8, 2), torch.zeros(3, 12, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(100 * x + 7, marks), 100 * model(x, marks) + 7, atol=2e-2, rtol=0)
        later = marks.clone()
        later[:, 10:] = 0.5  # the calendar of the last steps ahead
        assert torch.equal(model(x, later)[:, :2], model(x, marks)[:, :2])
        assert not torch.equal(model(x, later)[:, 2:], model(x, marks)[:, 2:])


def events(mixer: str = "aaren") -> EventModel:
    torch.manual_seed(0)
    model = EventModel(EventConfig(3, mixer=mixer, dim=16, heads=2, ff_dim=16, components=3)).eval()
    model.set_data(2.0, 0.3, 0.8)
    return model


def sequences() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    return {
        "intervals": torch.rand(3, 6, generator=generator) * 3 + 0.1,
        "marks": torch.randint(3, (3, 6), generator=generator),
        "mask": mask,
    }


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_forecast_sees_the_events_before_and_no_others(mixer: str) -> None:
    model, batch = events(mixer), sequences()
    with torch.no_grad():
        before = model(**batch)
        later = {**batch, "intervals": batch["intervals"].clone()}
        later["intervals"][0, 3] += 5
        after = model(**later)
        short = model(**{name: value[1:2, :3] for name, value in batch.items()})
    for a, b, alone in zip(before, after, short, strict=True):
        assert torch.equal(a[0, :4], b[0, :4])  # the fourth interval is forecast by the fourth forecast
        assert not torch.equal(a[0, 4:], b[0, 4:])
        assert torch.equal(a[1:], b[1:])
        torch.testing.assert_close(alone[0], a[1, :4], atol=1e-5, rtol=0)


def test_the_density_is_one_and_its_mean_and_survival_are_its_own() -> None:
    forecast = EventForecast(
        torch.tensor([[[0.3, 0.7]]], dtype=torch.float64).log(),
        torch.tensor([[[0.0, 1.0]]], dtype=torch.float64),
        torch.tensor([[[0.5, 0.3]]], dtype=torch.float64),
        torch.zeros(1, 1, 2, dtype=torch.float64),
    )
    x = torch.linspace(1e-4, 60, 600_000, dtype=torch.float64)
    wide = EventForecast(*(part.expand(1, len(x), -1) for part in forecast))
    density = wide.log_density(x[None])[0].exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    assert forecast.mean().item() == pytest.approx(torch.trapezoid(density * x, x).item(), abs=1e-5)
    beyond = torch.trapezoid(density[x >= 3], x[x >= 3]).item()
    survival = forecast.log_survival(torch.tensor([3.0], dtype=torch.float64), torch.tensor([0])).exp().item()
    assert survival == pytest.approx(beyond, abs=1e-4)


def test_models_conform(tmp_path: Path) -> None:
    x, mask = ragged()
    model = classifier()
    assert check_model(model, {"x": x, "mask": mask}, forward=lambda m, b: m(**b))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(SeriesClassifier.from_pretrained(tmp_path / "saved").eval()(x, mask), model(x, mask))
    assert check_model(events(), sequences(), forward=lambda m, b: m(**b)._asdict())
    forecaster = SeriesForecaster(ForecasterConfig(2, 8, 4, dim=16, depth=1, heads=2, ff_dim=32))
    batch = {"x": torch.randn(3, 8, 2), "marks": torch.randn(3, 12, 4)}
    assert check_model(forecaster, batch, forward=lambda m, b: m(**b))


def test_the_mixer_of_aaren_has_one_token_a_layer_more() -> None:
    counts = [sum(p.numel() for p in encoder(mixer).parameters()) for mixer in MIXERS]
    assert counts[0] - counts[1] == 2 * 16


def test_wrong_configs_and_shapes_are_refused() -> None:
    for config in (
        lambda: ClassifierConfig(0, 2, 3),
        lambda: ForecasterConfig(0),
        lambda: EventConfig(0),
    ):
        with pytest.raises(ConfigError, match=r"(channels|marks) is 0, expected 1 or more"):
            config()
    with pytest.raises(ConfigError, match=r'head is "max"\. All: flatten, last, mean'):
        ClassifierConfig(3, 2, 3, head="max")
    x, mask = ragged()
    with pytest.raises(ShapeError, match=r"x \(4, 9, 2\) is not \(batch, up to 9, 3\)"):
        classifier()(x[..., :2], mask)
    with pytest.raises(
        ShapeError, match=r"x \(1, 7, 2\) and marks \(1, 12, 4\) are not \(batch, 8, 2\) and \(batch, 12, 4\)"
    ):
        SeriesForecaster(ForecasterConfig(2, 8, 4, dim=16, depth=1, heads=2))(
            torch.zeros(1, 7, 2), torch.zeros(1, 12, 4)
        )
    batch = sequences()
    with pytest.raises(ShapeError, match=r"\(3, 6\), \(3, 5\), \(3, 6\), expected the same"):
        events()(batch["intervals"], batch["marks"][:, :5], batch["mask"])


def test_a_silent_density_far_out_stays_finite() -> None:
    model, batch = events(), sequences()
    with torch.no_grad():
        forecast = model(**batch)
    assert forecast.log_density(torch.full((3, 7), 1e6)).isfinite().all()
    assert forecast.log_survival(torch.full((3,), 1e6), torch.tensor([6, 3, 1])).isfinite().all()
    assert math.isfinite(float(forecast.mean().max()))
