"""Group spatial attention: against full attention at its limits, against a plain statement, partitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import ConfigError
from polyhead_traffic.attention import AttentionSettings, SpatialAttention
from polyhead_traffic.gman import GMAN
from polyhead_traffic.group_attention import (
    GroupSpatialAttention,
    balanced_sizes,
    best_group_size,
    group_order,
    random_partition,
)
from polyhead_traffic.layers import NormSettings, Place, joint_moments

SETTINGS = AttentionSettings(2, 3, "relu", NormSettings(1e-3, 0.5, unbiased=False, start_var=1.0), False)
BATCH, STEPS, DIM = 2, 3, 6


def layer(sizes: tuple[int, ...]) -> GroupSpatialAttention:
    torch.manual_seed(1)
    return GroupSpatialAttention(SETTINGS, sizes).double().eval()


def field(nodes: int) -> tuple[Tensor, Place]:
    generator = torch.Generator().manual_seed(nodes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(BATCH, STEPS, nodes, DIM), Place(draw(nodes, DIM), draw(BATCH, STEPS, DIM))


def plainly(model: GroupSpatialAttention, x: Tensor, place: Place, labels: list[int]) -> Tensor:
    """Each group by itself, then the groups, with the layer's own full attentions."""
    members = {g: [n for n, label in enumerate(labels) if label == g] for g in sorted(set(labels))}
    local = torch.empty_like(x)
    for own in members.values():
        local[:, :, own] = model.local(x[:, :, own], Place(place.nodes[own], place.steps))
    pooled = torch.stack([local[:, :, own].amax(2) for own in members.values()], 2)
    nodes = torch.stack([place.nodes[own].amax(0) for own in members.values()])
    shared = model.across(pooled, Place(nodes, place.steps))
    return local + shared[:, :, [list(members).index(label) for label in labels]]


@pytest.mark.parametrize("sizes", [(3, 3), (3, 3, 2), (4, 1, 2, 2), (1, 1, 1), (5,)])
def test_equals_the_plain_statement(sizes: tuple[int, ...]) -> None:
    model = layer(sizes)
    x, place = field(sum(sizes))
    labels = torch.repeat_interleave(torch.tensor(sizes)).tolist()
    torch.testing.assert_close(model(x, place), plainly(model, x, place, labels))


def test_one_group_of_all_is_full_attention_within() -> None:
    model = layer((5,))
    full = SpatialAttention(SETTINGS).double().eval()
    full.load_state_dict(model.local.state_dict())
    x, place = field(5)
    torch.testing.assert_close(model.within(x, place), full(x, place))


def test_groups_of_one_attend_to_themselves_within_and_to_all_between() -> None:
    model = layer((1,) * 5)
    x, place = field(5)
    _, _, v = model.local.project(x, place)
    torch.testing.assert_close(model.within(x, place), model.local.out(v.flatten(3)))
    moved = x.clone()
    moved[:, :, 2] += 1
    seen = (model(x, place) - model(moved, place)).abs().amax((0, 1, 3))
    assert (seen > 0).all()


def test_sensors_of_other_groups_are_seen_through_their_maximum_only() -> None:
    model = layer((3, 3))
    x, place = field(6)
    moved = x.clone()
    moved[:, :, 4] += 1
    torch.testing.assert_close(model.within(x, place)[:, :, :3], model.within(moved, place)[:, :, :3], rtol=0, atol=0)
    assert not torch.allclose(model(x, place)[:, :, :3], model(moved, place)[:, :, :3])


def test_training_normalises_with_the_moments_of_real_sensors() -> None:
    """There are no pads to disturb the statistics: the layer's norms see each sensor once."""
    model = layer((3, 3, 2)).train()
    x, place = field(8)
    model(x, place, joint_moments(x, place))
    other = SpatialAttention(SETTINGS).double()
    other.load_state_dict(layer((3, 3, 2)).local.state_dict())
    other.project(x, place, joint_moments(x, place))
    norms: list[Any] = [model.local.project.norm, other.project.norm]
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)


def test_training_reaches_every_parameter() -> None:
    model = layer((3, 2)).train()
    x, place = field(5)
    model(x, place, joint_moments(x, place)).pow(2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("depth", [1, 3])
def test_parameters_of_the_sheet(depth: int) -> None:
    full, groups = (GMAN(GMAN.Config(nodes=20, depth=depth, group_size=size)) for size in (0, 3))
    more = sum(p.numel() for p in groups.parameters()) - sum(p.numel() for p in full.parameters())
    assert more == 33_600 * 2 * depth


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_balanced_sizes(nodes: int, group_size: int) -> None:
    sizes = balanced_sizes(nodes, group_size)
    assert sum(sizes) == nodes
    assert len(sizes) == -(-nodes // group_size)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= group_size or len(sizes) == 1


@pytest.mark.parametrize("nodes", [10, 95, 207, 325, 883])
def test_best_group_size_makes_about_the_fewest_scores(nodes: int) -> None:
    def scores(size: int) -> float:
        return nodes * size + (nodes / size) ** 2

    least = min(scores(size) for size in range(1, nodes + 1))
    assert scores(best_group_size(nodes)) <= 1.02 * least
    assert least == pytest.approx(3 * 2 ** (-2 / 3) * nodes ** (4 / 3), rel=0.02)


@settings(max_examples=50, deadline=None)
@given(st.permutations([0, 0, 0, 7, 7, 7, -2, -2, 5, 5, 5, 5, 9]))
def test_order_puts_groups_side_by_side(labels: list[int]) -> None:
    sizes = (3, 2, 3, 4, 1)
    order = group_order(torch.tensor(labels), sizes)
    assert sorted(order.tolist()) == list(range(len(labels)))
    groups = [{labels[i] for i in part.tolist()} for part in order.split(list(sizes))]
    assert all(len(group) == 1 for group in groups)


def test_random_partition_is_drawn_from_its_seed() -> None:
    sizes = balanced_sizes(23, 5)
    first, same, other = (random_partition(23, sizes, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert torch.bincount(first).tolist() == list(sizes)


def test_partition_of_other_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"The partition has groups of 3, 1 sensors and the model groups of 2, 2\."):
        group_order(torch.tensor([0, 0, 1, 0]), (2, 2))


def test_given_partition_of_uneven_groups() -> None:
    torch.manual_seed(0)
    config = GMAN.Config(nodes=6, history=4, horizon=3, depth=1, heads=2, head_dim=3, group_sizes=(1, 3, 2), dropout=0)
    model = GMAN(config).set_data(partition=torch.tensor([4, 8, 8, 0, 4, 4])).eval()
    assert [set(part.tolist()) for part in model.order.split([1, 3, 2])] == [{3}, {0, 4, 5}, {1, 2}]
    x = torch.randn(1, 4, 6)
    assert model(x, torch.zeros(1, 7, 2, dtype=torch.int64)).isfinite().all()
