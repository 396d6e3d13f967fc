"""ReducedBatchNorm against nn.BatchNorm1d, against plain formulas, and two processes against one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyhead import nn as polyhead_nn
from polyhead.errors import ShapeError
from polyhead.nn import ReducedBatchNorm


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(norm: ReducedBatchNorm, seed: int = 1) -> ReducedBatchNorm:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 5), (2, 1, 5)])
def test_equals_batch_norm_1d(shape: tuple[int, ...], affine: bool) -> None:
    norm = randomised(ReducedBatchNorm(5, eps=1e-3, momentum=0.3, affine=affine).double())
    oracle = nn.BatchNorm1d(5, eps=1e-3, momentum=0.3, affine=affine).double()
    oracle.load_state_dict(norm.state_dict(), strict=False)
    for seed in range(3):
        x = (draw(*shape, seed=seed) * 3 + 2).requires_grad_()
        other = x.detach().clone().requires_grad_()
        y, expected = norm(x), oracle(other.reshape(-1, 5)).reshape(shape)
        torch.testing.assert_close(y, expected)
        y.backward(draw(*shape, seed=9))
        expected.backward(draw(*shape, seed=9))
        torch.testing.assert_close(x.grad, other.grad)
    for (name, a), b in zip(norm.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close({name: a.grad}, {name: b.grad})
    torch.testing.assert_close(norm.running_mean, oracle.running_mean)
    torch.testing.assert_close(norm.running_var, oracle.running_var)
    norm.eval(), oracle.eval()
    x = draw(*shape, seed=5)
    torch.testing.assert_close(norm(x), oracle(x.reshape(-1, 5)).reshape(shape))


def test_full_mask_equals_no_mask() -> None:
    masked, plain = ReducedBatchNorm(5).double(), ReducedBatchNorm(5).double()
    x, other = draw(3, 4, 5).requires_grad_(), draw(3, 4, 5).requires_grad_()
    y, expected = masked(x, torch.ones(4, dtype=torch.bool)), plain(other)
    torch.testing.assert_close(y, expected)
    y.backward(draw(3, 4, 5, seed=2))
    expected.backward(draw(3, 4, 5, seed=2))
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(masked.running_var, plain.running_var)


def test_mask_counts_only_what_it_allows() -> None:
    norm = ReducedBatchNorm(2, momentum=1.0, unbiased=False).double()
    x = draw(6, 2)
    mask = torch.tensor([True, False, True, True, False, False])
    y = norm(x, mask)
    counted = x[mask]
    torch.testing.assert_close(norm.running_mean, counted.mean(0))
    torch.testing.assert_close(norm.running_var, counted.var(0, correction=0))
    torch.testing.assert_close(y, (x - counted.mean(0)) / (counted.var(0, correction=0) + norm.eps).sqrt())


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_variance_is_the_one_asked_for(unbiased: bool) -> None:
    norm = ReducedBatchNorm(2, momentum=1.0, unbiased=unbiased).double()
    x = draw(5, 2)
    norm(x)
    torch.testing.assert_close(norm.running_var, x.var(0, correction=int(unbiased)))


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 1.0, 0.5], [True, True, False, True]])
def test_gradcheck(weights: list[float] | None) -> None:
    norm = randomised(ReducedBatchNorm(3).double())
    mask = None if weights is None else torch.tensor(weights)
    x = draw(4, 3).requires_grad_()
    parameters = dict(norm.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        swapped = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(norm, swapped, (x, mask))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


def test_large_offset_does_not_cancel() -> None:
    x = draw(1000, 2, dtype=torch.float32) + 1e4
    norm = ReducedBatchNorm(2)
    expected = nn.BatchNorm1d(2).double()(x.double())
    # torch's kernel, which serves the plain call, rounds the mean more; the naive formula would be off by 10.
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(norm(x, torch.ones(1000)).double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_counted_element_uses_and_keeps_the_running_statistics(rows: int) -> None:
    norm = randomised(ReducedBatchNorm(2).double())
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    x = draw(rows, 2).requires_grad_()
    y = norm(x, torch.zeros(rows, dtype=torch.bool))
    scale, shift = norm.scale_shift()
    torch.testing.assert_close(y, x * scale + shift)
    y.sum().backward()
    torch.testing.assert_close(x.grad, scale.expand(rows, 2))
    assert norm.running_mean.tolist() == [2.0, 2.0]
    assert norm.running_var.tolist() == [4.0, 4.0]


def test_one_element_has_variance_zero() -> None:
    norm = ReducedBatchNorm(2, momentum=1.0)
    assert norm(torch.tensor([[3.0, 4.0]])).tolist() == [[0.0, 0.0]]
    assert norm.running_var.tolist() == [0.0, 0.0]


def test_scale_shift_folds_evaluation() -> None:
    for affine in (True, False):
        norm = randomised(ReducedBatchNorm(5, affine=affine).double())
        norm(draw(8, 5) * 2 + 1)
        norm.eval()
        scale, shift = norm.scale_shift()
        x = draw(3, 5, seed=4)
        torch.testing.assert_close(norm(x), x * scale + shift)


def test_half_precision_accumulates_in_float32() -> None:
    x = (draw(4096, 2, dtype=torch.float32) + 8).bfloat16()
    expected = nn.BatchNorm1d(2)(x.float())
    for mask in (None, torch.ones(4096)):
        norm = ReducedBatchNorm(2, momentum=1.0)
        y = norm(x, mask)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, atol=2e-2, rtol=0)
        torch.testing.assert_close(norm.running_mean, x.float().mean(0))


def test_compiles_and_exports() -> None:
    norm = randomised(ReducedBatchNorm(3))
    norm(draw(8, 3, dtype=torch.float32))
    norm.eval()
    x = draw(2, 4, 3, dtype=torch.float32)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(norm, (x,), dynamic_shapes=({0: rows},))
    other = draw(5, 4, 3, dtype=torch.float32)
    torch.testing.assert_close(program.module()(other), norm(other))
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(other), norm(other))


@pytest.mark.parametrize("masked", [False, True])
def test_training_compiles_and_momentum_stays_changeable(masked: bool) -> None:
    norm, eager = ReducedBatchNorm(3), ReducedBatchNorm(3)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    mask = torch.tensor([True] * 5 + [False] * 3) if masked else None
    for step, momentum in enumerate([0.5, 0.25, 0.125, 0.1, 0.05]):
        norm.momentum = eager.momentum = momentum
        x, other = draw(8, 3, seed=step, dtype=torch.float32), draw(8, 3, seed=step, dtype=torch.float32)
        x.requires_grad_(), other.requires_grad_()
        (compiled(x, mask) ** 3).sum().backward()
        (eager(other, mask) ** 3).sum().backward()
        torch.testing.assert_close(x.grad, other.grad)
        torch.testing.assert_close(norm.running_mean, eager.running_mean)
    torch.testing.assert_close(norm.running_var, eager.running_var)


def test_wrong_shapes_are_named() -> None:
    norm = ReducedBatchNorm(3)
    with pytest.raises(ShapeError, match=r"x has 4 features and the module 3\. x \(2, 4\)\."):
        norm(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"mask \(5,\) cannot be broadcast to x without its last axis, \(2, 4\)\."):
        norm(torch.zeros(2, 4, 3), torch.ones(5))


def test_names_resolve_lazily() -> None:
    assert "ReducedBatchNorm" in dir(polyhead_nn)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = polyhead_nn.Nothing


SPLITS = {"uneven": [5, 2], "one empty": [7, 0]}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_equal_one(tmp_path: Path, split: str, masked: bool) -> None:
    # fork: the children have torch imported already, and set up gloo themselves.
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_one_of_two, args=(rank, SPLITS[split], masked, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]

    x = (draw(7, 3) + 100).requires_grad_()
    norm = randomised(ReducedBatchNorm(3).double())
    y = _loss_of(norm, x, _mask(7) if masked else None)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y)
    torch.testing.assert_close(torch.cat([part["x.grad"] for part in parts]), x.grad)
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(sum(part[name] for part in parts), parameter.grad)
    for part in parts:
        torch.testing.assert_close(part["running_mean"], norm.running_mean)
        torch.testing.assert_close(part["running_var"], norm.running_var)


def _mask(rows: int) -> Tensor:
    return torch.arange(rows) % 3 != 1


def _loss_of(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    y = norm(x, mask)
    (y**3).sum().backward()
    return y.detach()


def _one_of_two(rank: int, sizes: list[int], masked: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x = (draw(7, 3) + 100)[own].requires_grad_()
    norm = randomised(ReducedBatchNorm(3).double())
    y = _loss_of(norm, x, _mask(7)[own] if masked else None)
    grads = {name: parameter.grad for name, parameter in norm.named_parameters()}
    torch.save({"y": y, "x.grad": x.grad, **grads, **dict(norm.named_buffers())}, folder / f"{rank}.pt")
    dist.destroy_process_group()
