"""Learning rates, decay groups and averaged weights against plain formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.parts.training import make_net
from torch import nn

from polyhead.errors import ConfigError
from polyhead_apps.config import TrainSettings
from polyhead_apps.optim import AveragedWeights, learning_rate, make_optimizer


def rates(total: int = 20, per_epoch: int = 4, **settings: object) -> list[float]:
    made = TrainSettings.model_validate({"lr": 0.1, **settings})
    return [learning_rate(step, made, steps_total=total, steps_per_epoch=per_epoch) for step in range(total)]


def test_constant() -> None:
    assert rates() == [0.1] * 20


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step", "inverse_sqrt"])
def test_warm_up_rises_to_the_peak(schedule: str) -> None:
    found = rates(schedule=schedule, warmup_steps=5)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[4:]))


def test_cosine_is_half_way_in_the_middle_and_ends_at_the_floor() -> None:
    found = rates(schedule="cosine", lr_floor=0.02)
    assert found[0] == pytest.approx(0.1)
    assert found[10] == pytest.approx(0.06)
    assert found[19] == pytest.approx(0.02 + 0.04 * (1 + math.cos(math.pi * 0.95)))
    assert min(found) > 0.02


def test_linear_falls_evenly_to_the_floor() -> None:
    found = rates(schedule="linear", lr_floor=0.02)
    assert found == pytest.approx([0.1 - 0.004 * step for step in range(20)])


def test_step_drops_at_epochs_and_stops_at_the_floor() -> None:
    found = rates(schedule="step", step_epochs=1.5, step_factor=0.5, lr_floor=0.03)
    assert found == pytest.approx([0.1] * 6 + [0.05] * 6 + [0.03] * 8)
    # 0.7 ** drops as a published release states it: a drop every five epochs.
    assert rates(60, 4, schedule="step")[::20] == pytest.approx([0.1, 0.07, 0.049])


def test_inverse_sqrt_follows_the_step() -> None:
    found = rates(schedule="inverse_sqrt", warmup_steps=4, lr_floor=0.05)
    assert found[3] == pytest.approx(0.1)
    assert found[8] == pytest.approx(0.1 * math.sqrt(4 / 9))
    assert found[19] == 0.05


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model.add_module("odd", nn.ParameterDict({"bias": nn.Parameter(torch.ones(2, 2))}))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TrainSettings(weight_decay=0.1))
    by_decay = {group["weight_decay"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    assert by_decay == {
        0.1: {id(model[2].weight)},
        0.0: {id(model[1].weight), id(model[1].bias), id(model.get_parameter("odd.bias"))},
    }


def test_parts_of_a_model_have_their_share_of_the_learning_rate() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    model.learning_rates = {"backbone.": 0.1}  # type: ignore[assignment]  # a plain attribute of the model's class
    groups = make_optimizer(model, TrainSettings(lr=0.5, weight_decay=0.1)).param_groups
    found = {id(p): (group["lr"], group["weight_decay"], group["share"]) for group in groups for p in group["params"]}
    assert found == {
        id(model["backbone"].weight): (0.05, 0.1, 0.1),
        id(model["backbone"].bias): (0.05, 0.0, 0.1),
        id(model["head"].weight): (0.5, 0.1, 1.0),
        id(model["head"].bias): (0.5, 0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimisers_by_name(name: str, kind: type) -> None:
    settings = TrainSettings.model_validate({"optimizer": name, "betas": (0.8, 0.95), "lr": 0.3})
    optimizer = make_optimizer(make_net(), settings)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.3
    assert group["momentum" if name == "sgd" else "betas"] == (0.8 if name == "sgd" else (0.8, 0.95))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Identity has no parameter to train\."):
        make_optimizer(nn.Identity(), TrainSettings())


def test_averages_follow_the_formula_and_leave_the_model_alone() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    averaged = AveragedWeights(model, 0.5)
    expected = 1.0
    for step in range(1, 12):
        with torch.no_grad():
            model.weight.fill_(float(step))
        averaged.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert averaged.tensors["weight"].item() == pytest.approx(expected)
    with averaged.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 11.0
    averaged.copy_to_model()
    assert model.weight.item() == pytest.approx(expected)
