"""Projections and moments against the plain way: concatenate, multiply, ReducedBatchNorm, ReLU."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.nn import ReducedBatchNorm
from polyhead_traffic.layers import Dense, NormSettings, Place, Projection, chain, interleave, joint_moments

NORM = NormSettings(1e-3, 0.3, unbiased=False, start_var=1.0)
HEADS, HEAD_DIM, DIM, PLACE = 2, 3, 4, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def field(batch: int = 2, steps: int = 3, nodes: int = 4) -> tuple[Tensor, Place]:
    x = draw(batch, steps, nodes, DIM) + 3
    place = Place(draw(nodes, PLACE, seed=1) - 2, draw(batch, steps, PLACE, seed=2) + 1)
    for value in (x, *place):
        value.requires_grad_()
    return x, place


def projection(relu: tuple[bool, ...] = (True, True, True), dim: int = DIM, norm: NormSettings = NORM) -> Projection:
    layer = Projection(dim, PLACE, HEADS, HEAD_DIM, relu, norm).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=10 + seed))
    return layer


def joined(x: Tensor | None, place: Place) -> Tensor:
    e = place.nodes + place.steps.unsqueeze(2)
    return e if x is None else torch.cat([x, e], -1)


def plainly(layer: Projection, x: Tensor | None, place: Place) -> tuple[list[Tensor], ReducedBatchNorm]:
    """Do what the layer does one step after the other, with the layer's parameters."""
    norm: Any = layer.norm
    own = ReducedBatchNorm(norm.dim, norm.eps, norm.momentum, unbiased=norm.unbiased).double()
    own.load_state_dict(norm.state_dict())
    own.weight, own.bias = norm.weight, norm.bias
    own.train(layer.training)
    y = own(joined(x, place) @ layer.weight.t() + layer.bias).unflatten(-1, (HEADS, len(layer.relu), HEAD_DIM))
    parts = y.unbind(-2)
    return [part.relu() if active else part for part, active in zip(parts, layer.relu, strict=True)], own


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("relu", "dim"), [((True,) * 3, DIM), ((False, False, True), DIM), ((True,), 0), ((False,), 0)]
)
def test_projection(relu: tuple[bool, ...], dim: int, training: bool, unbiased: bool) -> None:
    layer = projection(relu, dim, NORM._replace(unbiased=unbiased)).train(training)
    field_x, place = field()
    x = field_x if dim else None
    expected, norm = plainly(layer, x, place)
    got = layer(x, place, joint_moments(x, place) if training else None)
    wanted = [*layer.parameters(), *place] + ([] if x is None else [x])
    cotangents = [draw(*part.shape, seed=20 + i) for i, part in enumerate(expected)]
    for part, target in zip(got, expected, strict=True):
        torch.testing.assert_close(part, target)
    grads = [
        torch.autograd.grad(sum((c * p).sum() for c, p in zip(cotangents, parts, strict=True)), wanted)
        for parts in (got, expected)
    ]
    for name, a, b in zip(["weight", "bias", "gamma", "beta", "nodes", "steps", "x"], *grads, strict=False):
        torch.testing.assert_close({name: a}, {name: b})
    torch.testing.assert_close(layer.norm.state_dict(), norm.state_dict())  # type: ignore[union-attr]


def test_gradcheck() -> None:
    x, place = field(1, 2, 3)
    layer = projection()

    def call(x: Tensor, nodes: Tensor, steps: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        at = Place(nodes, steps)
        inputs = (x, at, joint_moments(x, at))
        result: tuple[Tensor, ...] = torch.func.functional_call(layer, {"weight": weight}, inputs)
        return result

    assert torch.autograd.gradcheck(call, (x, *place, layer.weight))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_moments_are_those_of_the_joined_field(batch: int, steps: int, nodes: int, with_x: bool) -> None:
    field_x, place = field(batch, steps, nodes)
    x = field_x if with_x else None
    rows = joined(x, place).flatten(0, 2)
    moments = joint_moments(x, place)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.cov, torch.cov(rows.t(), correction=0).view_as(moments.cov))
    assert moments.elements == len(rows)


def test_moments_of_many_rows_and_of_a_large_offset() -> None:
    """More rows than one piece of the sum, and a mean that would cancel the variance in float32."""
    x, place = field(4, 12, 100)
    x = (x.detach() + 1000).float()
    moments = joint_moments(x, Place(place.nodes.float(), place.steps.float()))
    rows = joined(x.double(), place).flatten(0, 2)
    torch.testing.assert_close(moments.cov.double(), torch.cov(rows.t(), correction=0), rtol=1e-3, atol=1e-3)


def test_a_batch_of_nothing_changes_nothing() -> None:
    layer = projection()
    x, place = torch.zeros(0, 3, 4, DIM).double(), Place(draw(4, PLACE), torch.zeros(0, 3, PLACE).double())
    before = {name: value.clone() for name, value in layer.norm.state_dict().items()}  # type: ignore[union-attr]
    parts = layer(x, place, joint_moments(x, place))
    sum(part.sum() for part in parts).backward()
    assert [tuple(part.shape) for part in parts] == [(0, 3, 4, HEADS, HEAD_DIM)] * 3
    torch.testing.assert_close(layer.norm.state_dict(), before)  # type: ignore[union-attr]
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("sizes", [[3, 1], [4, 0], [0, 0]])
def test_two_processes_equal_one(tmp_path: Path, sizes: list[int]) -> None:
    # fork: the children have torch imported already, and set up gloo themselves.
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_one_of_two, args=(rank, sizes, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    expected = _step(slice(0, sum(sizes)))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), expected[name])
    for name in ("weight", "bias", "norm.weight", "norm.bias", "nodes"):
        torch.testing.assert_close({name: parts[0][name] + parts[1][name]}, {name: expected[name]})
    for name in ("norm.running_mean", "norm.running_var"):
        for part in parts:
            torch.testing.assert_close({name: part[name]}, {name: expected[name]})


def _step(own: slice) -> dict[str, Tensor]:
    layer = projection(norm=NORM._replace(unbiased=True))
    x, place = field(4)
    x, place = x.detach()[own].requires_grad_(), Place(place.nodes, place.steps.detach()[own])
    parts = layer(x, place, joint_moments(x, place))
    (torch.stack(parts) ** 3).sum().backward()
    assert x.grad is not None
    assert place.nodes.grad is not None
    grads = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    results = {"y": torch.stack(parts, 1).detach(), "x": x.grad, "nodes": place.nodes.grad}
    return results | grads | dict(layer.named_buffers())


def _one_of_two(rank: int, sizes: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(_step(slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_interleaved_rows_are_ordered_head_part_channel() -> None:
    q, k = torch.arange(4), torch.arange(10, 14)
    assert interleave([q, k], 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13]


@pytest.mark.parametrize("everywhere", [False, True])
def test_chain_normalises_before_its_activations_only(everywhere: bool) -> None:
    layers: Any = chain((3, 5, 2), NORM, everywhere=everywhere)
    assert [layer.relu for layer in layers] == [True, False]
    assert [layer.norm is not None for layer in layers] == [True, everywhere]


def test_dense_without_bias_folds() -> None:
    layer = Dense(3, 2, NORM, bias=False).double()
    layer(draw(8, 3))
    layer.eval()
    x = draw(4, 3, seed=3)
    expected = layer(x)
    layer.fold_norm()
    assert layer.norm is None
    torch.testing.assert_close(layer(x), expected)


def test_half_precision_region_keeps_moments_in_float32() -> None:
    layer = projection().float()
    x, place = field()
    x, place = x.detach().float().requires_grad_(), Place(place.nodes.detach().float(), place.steps.detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        moments = joint_moments(x, place)
        parts = layer(x, place, moments)
        sum(part.float().sum() for part in parts).backward()
    assert moments.cov.dtype == torch.float32
    assert {part.dtype for part in parts} == {torch.bfloat16}
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    expected = layer(x, place, joint_moments(x, place))
    for part, target in zip(parts, expected, strict=True):
        torch.testing.assert_close(part.float(), target, atol=0.1, rtol=0.02)
