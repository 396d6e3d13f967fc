"""pointer_nll: the definition against independent statements, published values, and the contract as properties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import DtypeError, KernelError, ShapeError
from polyhead.ops import additive_attention_scores, explain, pointer_nll, use_kernel
from polyhead.ops.additive_attention_scores import tiles
from polyhead.ops.pointer_nll.measures import written_out
from polyhead.ops.pointer_nll.spec import cost, describe

from .pointer_golden import replica

KERNELS = ("reference", "torch")
Size = tuple[int, int, int, int, int]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(pointer_nll=request.param):
        yield request.param


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_qkw(size: Size, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, m, n, d = size
    return qkw(b, h, m, n, d, seed)


def qkw(b: int = 2, h: int = 3, m: int = 4, n: int = 5, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return draw(b, h, m, d, seed=seed), draw(b, h, n, d, seed=seed + 1), draw(h, d, seed=seed + 2)


def draw_targets(b: int = 2, h: int = 3, m: int = 4, n: int = 5) -> Tensor:
    return torch.randint(n, (b, h, m), generator=torch.Generator().manual_seed(3))


def test_reference_equals_loops() -> None:
    q, k, weight = qkw()
    targets = draw_targets()
    targets[1, 2, 3] = 99
    mask = draw(2, 3, 4, 5, seed=7) > -0.5
    query_lengths = [2, 4]
    expected = np.zeros((2, 3, 4))
    for b, h, i in np.ndindex(2, 3, 4):
        chances = {}
        for j in range(5):
            if i < query_lengths[b] and mask[b, h, i, j]:
                total = sum(float(weight[h, c]) * math.tanh(q[b, h, i, c] + k[b, h, j, c]) for c in range(6))
                chances[j] = math.exp(1.5 * math.tanh(total))
        if chances:
            right = chances.get(int(targets[b, h, i]), 0) / sum(chances.values())
            expected[b, h, i] = -math.log(right) if right else math.inf
    assert np.isinf(expected).sum() >= 2
    with use_kernel(pointer_nll="reference"):
        got = pointer_nll(q, k, weight, targets, mask=mask, query_lengths=torch.tensor(query_lengths), clip=1.5)
    np.testing.assert_allclose(got.nll, expected, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients(name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "ELEMENTS", {"cpu": 40})
    inputs = [x.requires_grad_() for x in qkw(2, 2, 4, 9, 2)]
    targets = draw_targets(2, 2, 4, 4)
    lengths = {"lengths": torch.tensor([9, 4]), "query_lengths": torch.tensor([3, 4])} if ragged else {}
    clip = 2.0 if ragged else None

    def function(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
        with use_kernel(pointer_nll=name):
            return pointer_nll(q, k, weight, targets, clip=clip, **lengths).nll

    torch.autograd.gradcheck(function, inputs)
    if name == "reference":
        torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_published_values(kernel: str, dtype: torch.dtype, tolerance: float, shared: Path) -> None:
    """The replication's loss, and its gradient for every parameter of the model around the pointer."""
    golden, outputs, model, states = replica(shared, dtype)
    q, k = states.queries @ model["attention.W2"], states.keys @ model["attention.W1"]
    nll = pointer_nll(
        q[:, None],
        k[:, None],
        model["attention.v"][None],
        golden["inputs/target"][:, None],
        lengths=states.lengths,
        query_lengths=states.query_lengths,
    ).nll
    loss = nll.sum() / states.query_lengths.sum()
    torch.testing.assert_close(loss[None], outputs["loss"], rtol=0, atol=tolerance)
    names = [name.removeprefix("grad/") for name in outputs if name.startswith("grad/")]
    assert len(names) == 14
    for name, gradient in zip(names, torch.autograd.grad(loss, [model[name] for name in names]), strict=True):
        off = (gradient - outputs[f"grad/{name}"]).abs().max()
        assert off <= tolerance, f"gradient of {name} is off by {off:.2g}"


def test_equals_cross_entropy(kernel: str) -> None:
    q, k, weight = qkw()
    targets = draw_targets()
    torch.testing.assert_close(pointer_nll(q, k, weight, targets).nll, written_out(q, k, weight, targets))
    lengths = torch.tensor([5, 4])
    targets[1].clamp_(max=3)
    logits = additive_attention_scores(q, k, weight, lengths=lengths, clip=10).logits
    expected = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(2, 3, 4)
    torch.testing.assert_close(pointer_nll(q, k, weight, targets, lengths=lengths, clip=10).nll, expected)


def test_probabilities_sum_to_one(kernel: str) -> None:
    q, k, weight = qkw()
    lengths = torch.tensor([5, 2])
    each = [pointer_nll(q, k, weight, torch.full((2, 3, 4), j), lengths=lengths).nll for j in range(5)]
    torch.testing.assert_close(torch.stack(each).neg().exp().sum(0), torch.ones(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("target", [-1, 4, 5, 2**40])
def test_impossible_targets_cost_everything_and_teach_nothing(kernel: str, target: int) -> None:
    inputs = [x.requires_grad_() for x in qkw()]
    targets = draw_targets().clamp(max=3)
    targets[0, 1, 2] = target
    mask = torch.tensor([True, True, True, True, False])
    q, k, weight = inputs
    nll = pointer_nll(q, k, weight, targets, mask=mask).nll
    assert nll[0, 1, 2] == torch.inf
    assert nll.isinf().sum() == 1
    got = torch.autograd.grad(nll.sum(), inputs)
    possible = pointer_nll(q, k, weight, targets.where(nll.isfinite(), 0), mask=mask).nll
    expected = torch.autograd.grad(possible.masked_fill(nll.isinf(), 0).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


sizes = st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))


@given(size=sizes, seed=st.integers(0, 1000), elements=st.integers(1, 400), data=st.data())
@settings(deadline=None, max_examples=60)
def test_ragged_batches_equal_rows_one_by_one(
    size: tuple[int, int, int, int, int], seed: int, elements: int, data: Any
) -> None:
    """Whatever the tiles are, with gradients, and points that were visited are masked."""
    batch, heads, queries, keys, _ = size
    ends = [(data.draw(st.integers(0, queries)), data.draw(st.integers(0, keys))) for _ in range(batch)]
    inputs = [x.requires_grad_() for x in random_qkw(size, seed)]
    targets = draw_targets(batch, heads, queries, keys)
    mask = draw(batch, 1, queries, keys, seed=seed) < 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "ELEMENTS", {"cpu": elements})
        query_lengths, lengths = (torch.tensor(each) for each in zip(*ends, strict=True))
        with use_kernel(pointer_nll="torch"):
            nll = pointer_nll(
                inputs[0], inputs[1], inputs[2], targets, mask=mask, lengths=lengths, query_lengths=query_lengths
            ).nll
        got = torch.autograd.grad(nll.masked_fill(nll.isinf(), 0).square().sum(), inputs)
    total = nll.new_zeros(())
    for row, (m, n) in enumerate(ends):
        one = slice(row, row + 1)
        with use_kernel(pointer_nll="reference"):
            q, k, right = inputs[0][one, :, :m], inputs[1][one, :, :n], targets[one, :, :m]
            alone = pointer_nll(q, k, inputs[2], right, mask=mask[one, :, :m, :n]).nll[0]
        torch.testing.assert_close(nll[row, :, :m], alone)
        assert not nll[row, :, m:].any()
        total = total + alone.masked_fill(alone.isinf(), 0).square().sum()
    for a, b in zip(got, torch.autograd.grad(total, inputs, materialize_grads=True), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_gradients_are_refused() -> None:
    q, k, weight = qkw()
    nll = pointer_nll(q.requires_grad_(), k, weight, draw_targets()).nll
    (first,) = torch.autograd.grad(nll.sum(), q, create_graph=True)
    with pytest.raises(KernelError, match=r'"torch" of pointer_nll has no gradients of gradients.*="reference"'):
        first.sum().backward()


one = dict(zip(("q", "k", "weight", "targets"), (*qkw(), draw_targets()), strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"targets": one["targets"].int()},
            DtypeError,
            r"targets is int32, expected int64. Convert it with targets.lo",
        ),
        ({"targets": one["targets"][:, 0]}, ShapeError, r"targets \(2, 4\) is not \(batch, heads, Sq\) = \(2, 3, 4\)"),
        ({"targets": one["targets"].to("meta")}, DtypeError, r"targets is on meta and q on cpu: move one of them"),
        ({"k": one["k"][:1]}, ShapeError, r"share batch, heads and a head_dim"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pointer_nll(**{**one, **arguments})


def test_description_and_cost() -> None:
    assert explain("pointer_nll", (64, 1, 100, 256), ragged=True, mask=True, grad=True).chosen == "torch"
    call = describe((2, 3, 4, 6), torch.float32, torch.device("cpu"), keys=5)
    forward, backward = cost(call), cost(call, backward=True)
    # By hand: 2 · 3 · 4 · 5 pairs of 6 hidden units; 24 targets and losses.
    assert forward.flops == 120 * 6 * 6
    assert forward.bytes == 4 * (2 * 3 * (4 + 5) * 6 + 3 * 6) + 24 * (8 + 4)
    assert backward.flops == 120 * 6 * 13
    assert backward.bytes == forward.bytes + 4 * (2 * 3 * (4 + 5) * 6 + 3 * 6)
