"""The literature's figures of agents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyhead_agents.metrics import AgentMetric, half_width


def test_action_errors_are_over_real_steps_of_all_batches() -> None:
    mask = torch.tensor([[True, True, False]])
    metric = AgentMetric()
    metric.update(
        {"action": torch.tensor([[[1.0, 0], [1, 0], [1, 0]]])}, {"actions": torch.tensor([[0, 1, 1]]), "mask": mask}
    )
    metric.update(
        {"action": torch.tensor([[[0.0, 1], [1, 0], [1, 0]]])}, {"actions": torch.tensor([[1, 0, 1]]), "mask": mask}
    )
    assert metric.compute() == {"action_error": 0.25}


def test_the_squared_error_is_a_mean_over_numbers_too() -> None:
    metric = AgentMetric()
    batch = {"actions": torch.zeros(1, 2, 2), "mask": torch.tensor([[True, False]])}
    metric.update({"action": torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])}, batch)
    assert metric.compute() == {"action_error": 5.0}


def test_returns_have_an_interval_and_merge() -> None:
    parts = [AgentMetric(), AgentMetric()]
    parts[0].update({"return": np.array([1.0, 2.0])}, {"play": torch.tensor([0, 1])})
    parts[1].update({"return": np.array([3.0])}, {"play": torch.tensor([2])})
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == {"return": 2.0, "return_ci95": pytest.approx(2.4843, abs=1e-4)}


@pytest.mark.parametrize("count", [2, 5, 31, 32, 200])
def test_the_interval_is_students(count: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    values = np.random.default_rng(0).normal(size=count)
    expected = stats.t.ppf(0.975, count - 1) * stats.sem(values)
    assert half_width(values) == pytest.approx(expected, rel=2e-3)
    assert half_width(values[:1]) == 0
