"""additive_attention_scores: the definition against independent statements, published values, the contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import ConfigError, DtypeError, KernelError, ShapeError
from polyhead.ops import additive_attention_scores, explain, registry, use_kernel
from polyhead.ops.additive_attention_scores import tiles
from polyhead.ops.additive_attention_scores.masks import reach
from polyhead.ops.additive_attention_scores.spec import cost, describe

from .pointer_golden import replica

KERNELS = ("reference", "torch")
Size = tuple[int, int, int, int, int]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(additive_attention_scores=request.param):
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_qkw(size: Size, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, m, n, d = size
    return qkw(b, h, m, n, d, seed)


def qkw(b: int = 2, h: int = 3, m: int = 4, n: int = 5, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return draw(b, h, m, d, seed=seed), draw(b, h, n, d, seed=seed + 1), draw(h, d, seed=seed + 2)


def test_reference_equals_loops() -> None:
    """One number at a time, ragged and masked."""
    q, k, weight = qkw()
    mask = draw(2, 3, 4, 5, seed=7) > -0.5
    lengths, query_lengths = [5, 3], [2, 4]
    expected = np.full((2, 3, 4, 5), -np.inf)
    for b, h, i in np.ndindex(2, 3, 4):
        keys = [j for j in range(lengths[b]) if i < query_lengths[b] and mask[b, h, i, j]]
        for j in keys:
            total = sum(float(weight[h, c]) * math.tanh(q[b, h, i, c] + k[b, h, j, c]) for c in range(6))
            expected[b, h, i, j] = 1.5 * math.tanh(total)
        if not keys:
            expected[b, h, i] = 0
    with use_kernel(additive_attention_scores="reference"):
        got = additive_attention_scores(
            q,
            k,
            weight,
            mask=mask,
            lengths=torch.tensor(lengths),
            query_lengths=torch.tensor(query_lengths),
            clip=1.5,
        )
    np.testing.assert_allclose(got.logits, expected, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients(name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "ELEMENTS", {"cpu": 40})
    inputs = [x.requires_grad_() for x in qkw(2, 2, 4, 9, 2)]
    lengths = {"lengths": torch.tensor([9, 4]), "query_lengths": torch.tensor([3, 4])} if ragged else {}
    clip = 2.0 if ragged else None

    def function(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
        with use_kernel(additive_attention_scores=name):
            return additive_attention_scores(q, k, weight, clip=clip, **lengths).logits.clamp(min=-1e3)

    torch.autograd.gradcheck(function, inputs)
    if name == "reference":
        torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_published_values(kernel: str, dtype: torch.dtype, tolerance: float, shared: Path) -> None:
    """The replication's logits, loss and gradients, through its own LSTMs."""
    golden, outputs, model, states = replica(shared, dtype)
    q, k = states.queries @ model["attention.W2"], states.keys @ model["attention.W1"]
    logits = additive_attention_scores(
        q[:, None], k[:, None], model["attention.v"][None], lengths=states.lengths, query_lengths=states.query_lengths
    ).logits[:, 0]
    real = torch.arange(logits.shape[1])[:, None] < states.query_lengths[:, None, None]
    assert torch.equal(logits.isneginf(), (outputs["logits"] < -1e8) & real)
    torch.testing.assert_close(logits.clamp(min=-1e9), outputs["logits"].where(real, 0), rtol=0, atol=tolerance)
    cotangent = golden["inputs/cotangent"].to(dtype).where(logits.isfinite() & real, 0)
    (gradient,) = torch.autograd.grad(
        (logits.masked_fill(logits.isinf(), 0) * cotangent).sum(), states.points, retain_graph=True
    )
    torch.testing.assert_close(gradient, outputs["grad_points"], rtol=0, atol=50 * tolerance)


def test_heads_are_independent(kernel: str) -> None:
    q, k, weight = qkw()
    together = additive_attention_scores(q, k, weight).logits
    for head in range(3):
        one = slice(head, head + 1)
        alone = additive_attention_scores(q[:, one], k[:, one], weight[one]).logits
        torch.testing.assert_close(together[:, one], alone)


sizes = st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))


@given(size=sizes, seed=st.integers(0, 1000), elements=st.integers(1, 400), data=st.data())
@settings(deadline=None, max_examples=60)
def test_ragged_batches_equal_rows_one_by_one(
    size: tuple[int, int, int, int, int], seed: int, elements: int, data: Any
) -> None:
    """Whatever the tiles are, with gradients: padding changes nothing."""
    batch, _, queries, keys, _ = size
    ends = [(data.draw(st.integers(0, queries)), data.draw(st.integers(0, keys))) for _ in range(batch)]
    inputs = [x.requires_grad_() for x in random_qkw(size, seed)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "ELEMENTS", {"cpu": elements})
        query_lengths, lengths = (torch.tensor(each) for each in zip(*ends, strict=True))
        q, k, weight = inputs
        with use_kernel(additive_attention_scores="torch"):
            logits = additive_attention_scores(q, k, weight, lengths=lengths, query_lengths=query_lengths).logits
    total = logits.new_zeros(())
    for row, (m, n) in enumerate(ends):
        with use_kernel(additive_attention_scores="reference"):
            alone = additive_attention_scores(q[row : row + 1, :, :m], k[row : row + 1, :, :n], weight).logits[0]
        torch.testing.assert_close(logits[row, :, :m, :n], alone)
        assert not logits[row, :, m:].any()
        assert logits[row, :, :m, n:].isneginf().all() if n else not logits[row].any()
        total = total + alone.square().sum()
    finite = logits.masked_fill(logits.isinf(), 0).square().sum()
    for got, expected in zip(
        torch.autograd.grad(finite, inputs), torch.autograd.grad(total, inputs, materialize_grads=True), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-1e30, -300.0, -44.0, -30.0, -8.0, -1e-3, 0.0, 1.0, 20.0, 33.0, 42.0, 80.0, 340.0, 1e30])
def test_tanh_by_factors_is_exact(a: float, dtype: torch.dtype) -> None:
    """Every pair of magnitudes: factors, clamped factors, and a sigmoid for each pair."""
    others = torch.tensor([-1e30, -355.0, -81.0, -43.0, -33.0, -20.0, -2.0, 0.0, 1e-4, 9.0, 31.0, 45.0, 90.0, 400.0])
    for chosen in (others, others[others.abs() < 50], others[others.abs() < 32]):
        q = torch.full((1, 1, 9, 1), a, dtype=dtype)
        k = chosen.to(dtype)[None, None, :, None]
        with use_kernel(additive_attention_scores="torch"):
            got = additive_attention_scores(q, k, torch.ones(1, 1, dtype=dtype)).logits
        expected = (q.double() + k.double().mT).tanh()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_non_finite_arguments_stay_with_their_pairs(kernel: str) -> None:
    q, k, weight = qkw(1, 1, 16, 16, 4)
    q[0, 0, 3, 1], k[0, 0, 5, 2], k[0, 0, 6, 1], q[0, 0, 4, 0] = torch.nan, torch.inf, torch.nan, -torch.inf
    k[0, 0, 7, 0] = torch.inf
    logits = additive_attention_scores(q, k, weight).logits[0, 0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[3], expected[:, 6], expected[4, 7] = True, True, True
    assert torch.equal(logits.isnan(), expected)


def test_backward_is_deterministic() -> None:
    q, k, weight = (x.requires_grad_() for x in qkw(7, 2, 30, 40, 33))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(additive_attention_scores(q, k, weight).logits.square().sum(), (q, k, weight))

    for a, b in zip(gradients(), gradients(), strict=True):
        assert torch.equal(a, b)


def test_gradients_of_gradients_are_refused() -> None:
    q, k, weight = qkw()
    logits = additive_attention_scores(q.requires_grad_(), k, weight).logits
    (first,) = torch.autograd.grad(logits.square().sum(), q, create_graph=True)
    with pytest.raises(
        KernelError, match=r'"torch" of additive_attention_scores has no gradients of gradients.*="reference"'
    ):
        first.sum().backward()


def test_autocast_casts_as_for_a_product() -> None:
    q, k, weight = (x.float() for x in qkw())
    with torch.autocast("cpu", torch.bfloat16):
        logits = additive_attention_scores(q.bfloat16(), k, weight).logits
    assert logits.dtype == torch.bfloat16


def test_shared_masks_are_not_multiplied_out() -> None:
    q, k, _ = qkw()
    part = reach(q, k, torch.ones(1, 1, 1, 5, dtype=torch.bool), None, torch.tensor([0, 2]))
    assert part is not None
    assert part.queries.tolist() == [[[False] * 4] * 3, [[True, True, False, False]] * 3]
    assert part.keys.any(-1).tolist() == [[False] * 3, [True] * 3]
    assert part.mask is not None
    assert part.mask.stride()[:3] == (0, 0, 0)
    assert reach(q, k, None, None, None) is None


one = dict(zip(("q", "k", "weight"), qkw(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": one["q"][0]}, ShapeError, r"q has 3 dimensions, expected 4: \(batch, heads, seq, head_dim\)"),
        ({"k": one["k"].float()}, DtypeError, r"k is float32 and q is float64: both must have the same dtype"),
        ({"k": one["k"][:1]}, ShapeError, r"share batch, heads and a head_dim of 1 or more. q \(2, 3, 4, 6\), k \(1,"),
        ({"k": one["k"][:, :1]}, ShapeError, r"share batch, heads and a head_dim"),
        ({"k": one["k"][..., :2]}, ShapeError, r"share batch, heads and a head_dim"),
        (
            {"q": one["q"][..., :0], "k": one["k"][..., :0]},
            ShapeError,
            r"a head_dim of 1 or more. q \(2, 3, 4, 0\)",
        ),
        ({"weight": one["weight"][0]}, ShapeError, r"weight \(6,\) is not \(heads, head_dim\) = \(3, 6\)"),
        ({"mask": torch.ones(4, 5)}, DtypeError, r"mask is float32, expected bool, True = may attend"),
        ({"mask": torch.ones(4, 6) > 0}, ShapeError, r"mask \(4, 6\) does not broadcast to \(batch, heads, Sq, Sk\)"),
        ({"lengths": torch.ones(2)}, DtypeError, r"lengths is float32, expected int64. Convert it with lengths.long"),
        ({"query_lengths": torch.tensor([1])}, ShapeError, r"query_lengths \(1,\) is not \(batch,\) = \(2,\)"),
        ({"lengths": torch.ones(2, device="meta").long()}, DtypeError, r"lengths is on meta and q on cpu: move one"),
        ({"clip": 0.0}, ConfigError, r"clip is 0.0, expected a bound above 0, or None for no bound"),
        ({"clip": math.nan}, ConfigError, r"clip is nan, expected a bound above 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        additive_attention_scores(**{**one, **arguments})


def test_description_and_cost() -> None:
    assert explain("additive_attention_scores", (64, 1, 100, 256), ragged=True, mask=True, grad=True).chosen == "torch"
    with pytest.raises(ShapeError, match=r"The shape of q has 2 numbers, expected 4: batch,heads,seq,head_dim"):
        explain("additive_attention_scores", (8, 4096))
    call = describe((2, 3, 4, 6), torch.float32, torch.device("cpu"), keys=5)
    forward, backward = cost(call), cost(call, backward=True)
    # By hand: 2 · 3 · 4 · 5 pairs of 6 hidden units.
    assert forward.flops == 120 * 6 * 6
    assert forward.bytes == 4 * (2 * 3 * (4 + 5) * 6 + 3 * 6 + 120)
    assert backward.flops == 120 * 6 * 11
    assert backward.bytes == forward.bytes + 4 * (2 * 3 * (4 + 5) * 6 + 3 * 6)


def test_the_generator_covers_what_it_should() -> None:
    spec = registry.operator("additive_attention_scores")
    made = [case.make(torch.Generator().manual_seed(0), torch.float32) for case in spec.cases()]
    elements = tiles.ELEMENTS["cpu"]

    def some(rule: Callable[[dict[str, Tensor]], bool]) -> int:
        return sum(rule(dict(each.tensors)) for each in made)

    assert some(lambda x: 0 in x["q"].shape[:1])
    assert some(lambda x: x["q"].shape[2] == 0)
    assert some(lambda x: x["k"].shape[2] == 0)
    assert some(lambda x: x["q"].shape[2] * x["k"].shape[2] * x["q"].shape[3] > elements) >= 2
    assert some(lambda x: bool(x["q"].numel()) and float(x["q"].abs().max()) > 66) >= 3
    assert some(lambda x: x["q"].stride(-1) != 1)
    assert sum(bool(each.empty["logits"].any()) for each in made) >= 5
    assert sum(bool(each.unreachable["k"].any()) for each in made) >= 5
    assert len({case.name for case in spec.cases()}) == len(made)
