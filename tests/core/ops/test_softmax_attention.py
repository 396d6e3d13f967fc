"""softmax_attention: the definition against independent statements, and the contract as properties of every kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import DtypeError, KernelError, ShapeError
from polyhead.ops import SoftmaxAttention, softmax_attention, use_kernel

KERNELS = ("reference", "torch")
quick = settings(deadline=None, max_examples=25)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(softmax_attention=request.param):
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(b: int = 2, h: int = 4, sq: int = 5, sk: int = 7, d: int = 6, seed: int = 0, **kind: Any) -> list[Tensor]:
    return [
        draw(b, h, sq, d, seed=seed, **kind),
        draw(b, h, sk, d, seed=seed + 1, **kind),
        draw(b, h, sk, d, seed=seed + 2, **kind),
    ]


def loops(q: Any, k: Any, v: Any, allowed: Any, bias: Any, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """State the formula with one number at a time."""
    batch, heads, queries, dim = q.shape
    output, weights = np.zeros((batch, heads, queries, v.shape[-1])), np.zeros(allowed.shape)
    for b in range(batch):
        for h in range(heads):
            key_head = h // (heads // k.shape[1])
            for i in range(queries):
                logits = {}
                for j in range(k.shape[2]):
                    if allowed[b, h, i, j] and bias[b, h, i, j] > -math.inf:
                        product = sum(q[b, h, i, c] * k[b, key_head, j, c] for c in range(dim))
                        logits[j] = scale * product + bias[b, h, i, j]
                top = max(logits.values(), default=0.0)
                total = sum(math.exp(logit - top) for logit in logits.values())
                for j, logit in logits.items():
                    weights[b, h, i, j] = math.exp(logit - top) / total
                    output[b, h, i] += weights[b, h, i, j] * v[b, key_head, j]
    return output, weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 5), (5, 3), (4, 4)])
def test_reference_equals_loops(queries: int, keys: int, causal: bool) -> None:
    q, k, v = draw(2, 4, queries, 3), draw(2, 2, keys, 3, seed=1), draw(2, 2, keys, 5, seed=2)
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(3)) < 0.6
    bias = draw(1, 4, queries, keys, seed=4)
    bias[:, :, 0, keys // 2] = -math.inf
    with use_kernel(softmax_attention="reference"):
        got = softmax_attention(q, k, v, mask=mask, bias=bias, causal=causal, scale=0.7, return_weights=True)
    triangle = np.tril(np.ones((queries, keys), dtype=bool), keys - queries) if causal else True
    allowed = np.broadcast_to(mask.numpy(), (2, 4, queries, keys)) & triangle
    biased = np.broadcast_to(bias.numpy(), allowed.shape)
    output, weights = loops(q.numpy(), k.numpy(), v.numpy(), allowed, biased, 0.7)
    assert got.weights is not None
    np.testing.assert_allclose(got.output.numpy(), output, atol=1e-14)
    np.testing.assert_allclose(got.weights.numpy(), weights, atol=1e-14)


@pytest.mark.parametrize("arguments", [{}, {"mask": 1}, {"bias": 1}, {"causal": True}, {"scale": 0.1}])
def test_equals_sdpa_where_sdpa_is_defined(kernel: str, arguments: dict[str, Any]) -> None:
    q, k, v = qkv(sk=5)
    theirs: dict[str, Any] = {
        "attn_mask": None,
        "is_causal": arguments.get("causal", False),
        "scale": arguments.get("scale"),
    }
    if "mask" in arguments:
        arguments = {"mask": draw(2, 1, 5, 5) > -0.5}
        arguments["mask"][..., 0] = True
        theirs["attn_mask"] = arguments["mask"]
    if "bias" in arguments:
        arguments = {"bias": draw(1, 4, 5, 5)}
        theirs["attn_mask"] = arguments["bias"]
    expected = F.scaled_dot_product_attention(q, k, v, **theirs)
    torch.testing.assert_close(softmax_attention(q, k, v, **arguments).output, expected)


def test_causal_is_aligned_bottom_right(kernel: str) -> None:
    """By hand: with all logits equal, query i of 2 averages the first i + 2 of 3 keys."""
    v = torch.tensor([3.0, 6.0, 9.0]).reshape(1, 1, 3, 1)
    wide = softmax_attention(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 3, 1), v, causal=True).output
    torch.testing.assert_close(wide.flatten(), torch.tensor([4.5, 6.0]))
    tall = softmax_attention(torch.zeros(1, 1, 5, 1), torch.zeros(1, 1, 3, 1), v, causal=True).output
    torch.testing.assert_close(tall.flatten(), torch.tensor([0.0, 0.0, 3.0, 4.5, 6.0]))


MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("options", [{}, {"mask": MASK}, {"causal": True}, {"mask": MASK, "return_weights": [1]}])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_the_reference(options: dict[str, Any], biased: bool) -> None:
    inputs = [x.requires_grad_() for x in (draw(1, 2, 3, 2), draw(1, 1, 4, 2, seed=1), draw(1, 1, 4, 3, seed=2))]
    if biased:
        inputs.append(draw(1, 2, 3, 4, seed=3).requires_grad_())

    def function(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        with use_kernel(softmax_attention="reference"):
            return tuple(x for x in softmax_attention(q, k, v, bias=bias, **options) if x is not None)

    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs)


def test_gradients_of_the_torch_kernel() -> None:
    inputs = [x.requires_grad_() for x in (draw(1, 2, 3, 2), draw(1, 1, 4, 2, seed=1), draw(1, 1, 4, 3, seed=2))]
    torch.autograd.gradcheck(lambda *x: softmax_attention(*x, mask=MASK).output, inputs)
    torch.autograd.gradcheck(lambda *x: softmax_attention(*x, causal=True, scale=-2.0).output, inputs)
    inputs.append(draw(1, 2, 3, 4, seed=3).requires_grad_())
    torch.autograd.gradcheck(lambda *x: softmax_attention(*x[:3], bias=x[3], mask=MASK).output, inputs)


sizes = st.tuples(
    st.integers(1, 2),
    st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
)


def random_call(size: tuple[int, tuple[int, int], int, int, int], seed: int) -> dict[str, Any]:
    batch, (heads, groups), queries, keys, dim = size
    return {
        "q": draw(batch, heads, queries, dim, seed=seed),
        "k": draw(batch, groups, keys, dim, seed=seed + 1),
        "v": draw(batch, groups, keys, 3, seed=seed + 2),
        "mask": draw(batch, heads, queries, keys, seed=seed + 3) > -0.4,
        "bias": draw(batch, heads, queries, keys, seed=seed + 4),
    }


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000))
@quick
def test_order_of_keys_does_not_matter(name: str, size: Any, seed: int) -> None:
    call = random_call(size, seed)
    order = torch.randperm(size[3], generator=torch.Generator().manual_seed(seed))
    shuffled = {
        key: x if key == "q" else x[..., order] if key in ("mask", "bias") else x[:, :, order]
        for key, x in call.items()
    }
    with use_kernel(softmax_attention=name):
        a, b = softmax_attention(**call), softmax_attention(**shuffled)
    torch.testing.assert_close(a.output, b.output)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), junk=st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 7.0]))
@quick
def test_padding_changes_nothing(name: str, size: Any, seed: int, junk: float) -> None:
    """Keys that nobody may attend, of any value, reach neither outputs nor gradients."""
    call = random_call(size, seed)
    padded = {key: F.pad(call[key], (0, 0, 0, 2), value=junk) for key in ("k", "v")}
    padded |= {"q": call["q"].clone(), "mask": F.pad(call["mask"], (0, 2)), "bias": F.pad(call["bias"], (0, 2))}
    with use_kernel(softmax_attention=name):
        results = []
        for each in (call, padded):
            inputs = [each[key].requires_grad_() for key in ("q", "k", "v", "bias")]
            output = softmax_attention(*inputs[:3], mask=each["mask"], bias=inputs[3]).output
            results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    (a, qa, ka, va, ba), (b, qb, kb, vb, bb) = results
    keys = size[3]
    for x, y in ((a, b), (qa, qb), (ka, kb[:, :, :keys]), (va, vb[:, :, :keys]), (ba, bb[..., :keys])):
        torch.testing.assert_close(x, y)
    assert not kb[:, :, keys:].any()
    assert not vb[:, :, keys:].any()
    assert not bb[..., keys:].any()


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), junk=st.sampled_from([math.nan, math.inf, 1e300]))
@quick
def test_queries_without_keys_are_zero(name: str, size: Any, seed: int, junk: float) -> None:
    call = random_call(size, seed)
    call["mask"][:, :, -1] = False
    call["q"][:, :, -1] = junk
    inputs = [call[key].requires_grad_() for key in ("q", "k", "v", "bias")]
    with use_kernel(softmax_attention=name):
        output, weights = softmax_attention(*inputs[:3], mask=call["mask"], bias=inputs[3], return_weights=True)
    assert weights is not None
    assert not output[:, :, -1].any()
    assert not weights[:, :, -1].any()
    for gradient in torch.autograd.grad(output.sum() + weights.square().sum(), inputs):
        assert gradient.isfinite().all()
    gradient_q, *_, gradient_bias = torch.autograd.grad(
        softmax_attention(*inputs[:3], mask=call["mask"], bias=inputs[3]).output.sum(), inputs
    )
    assert not gradient_q[:, :, -1].any()
    assert not gradient_bias[:, :, -1].any()


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), where=st.integers(0, 8))
@quick
def test_the_future_cannot_be_seen(name: str, size: Any, seed: int, where: int) -> None:
    call = random_call(size, seed)
    queries, keys = size[2:4]
    changed = {key: x.clone() for key, x in call.items()}
    changed["k"][:, :, where:] += 1
    changed["v"][:, :, where:] -= 3
    with use_kernel(softmax_attention=name):
        a, b = (softmax_attention(x["q"], x["k"], x["v"], causal=True).output for x in (call, changed))
    before = max(0, min(queries, where - (keys - queries)))
    torch.testing.assert_close(a[:, :, :before], b[:, :, :before], rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), cut=st.integers(0, 9))
@quick
def test_queries_in_pieces_equal_the_whole(name: str, size: Any, seed: int, cut: int) -> None:
    """Bottom-right alignment is what makes a prefix of queries with its prefix of keys the same as the whole."""
    call = random_call(size, seed)
    q, k, v = call["q"], call["k"], call["v"]
    queries, keys = size[2:4]
    cut = min(cut, queries)
    with use_kernel(softmax_attention=name):
        whole = softmax_attention(q, k, v, causal=True).output
        seen = max(0, keys - queries + cut)
        first = softmax_attention(q[:, :, :cut], k[:, :, :seen], v[:, :, :seen], causal=True).output
        last = softmax_attention(q[:, :, cut:], k, v, causal=True).output
    torch.testing.assert_close(torch.cat([first, last], 2), whole)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), shift=st.floats(-50, 50))
@quick
def test_invariants_of_softmax(name: str, size: Any, seed: int, shift: float) -> None:
    call = random_call(size, seed)
    with use_kernel(softmax_attention=name):
        a = softmax_attention(**call, return_weights=True)
        b = softmax_attention(**{**call, "bias": call["bias"] + shift})
    torch.testing.assert_close(a.output, b.output)
    assert a.weights is not None
    some = call["mask"].any(-1)
    torch.testing.assert_close(a.weights.sum(-1), some.double())
    heads, groups = size[1]
    values = call["v"].repeat_interleave(heads // groups, 1)
    high, low = (f(2, keepdim=True).expand_as(a.output)[some] for f in (values.amax, values.amin))
    assert (a.output[some] <= high + 1e-12).all()
    assert (a.output[some] >= low - 1e-12).all()
    torch.testing.assert_close(a.weights @ values, a.output)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000))
@quick
def test_grouped_heads_equal_repeated_heads(name: str, size: Any, seed: int) -> None:
    call = random_call(size, seed)
    heads, groups = size[1]
    repeated = {key: call[key].repeat_interleave(heads // groups, 1) for key in ("k", "v")}
    with use_kernel(softmax_attention=name):
        a, b = softmax_attention(**call), softmax_attention(**{**call, **repeated})
    torch.testing.assert_close(a.output, b.output)


def test_weights_of_some_heads_and_the_same_output(kernel: str) -> None:
    q, k, v = qkv(dtype=torch.float32)
    mask = draw(2, 1, 5, 7) > 0
    without = softmax_attention(q, k, v, mask=mask)
    every = softmax_attention(q, k, v, mask=mask, return_weights=True)
    some = softmax_attention(q, k, v, mask=mask, return_weights=[3, 1])
    none = softmax_attention(q, k, v, mask=mask, return_weights=[])
    assert isinstance(without, SoftmaxAttention)
    assert without.weights is None
    assert every.weights is not None
    assert some.weights is not None
    assert none.weights is not None
    assert every.weights.shape == (2, 4, 5, 7)
    assert none.weights.shape == (2, 0, 5, 7)
    torch.testing.assert_close(some.weights, every.weights[:, [3, 1]])
    for other in (every, some, none):
        assert torch.equal(other.output, without.output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_accumulates_in_float32(kernel: str, dtype: torch.dtype) -> None:
    """The mean of 4096 equal values is exact only if no sum is kept in 16 bits; logits stay finite beyond 65504."""
    v = torch.full((1, 1, 4096, 8), 0.75, dtype=dtype)
    output = softmax_attention(torch.zeros(1, 1, 1, 8, dtype=dtype), torch.zeros_like(v), v).output
    torch.testing.assert_close(output, torch.full_like(output, 0.75))
    q = torch.full((1, 1, 3, 8), 240.0, dtype=dtype)
    k = torch.full((1, 1, 5, 8), 240.0, dtype=dtype)
    k[:, :, 3] = 241
    result = softmax_attention(q, k, draw(1, 1, 5, 8, dtype=dtype), scale=1.0, return_weights=True)
    assert result.weights is not None
    assert result.weights.dtype == result.output.dtype == dtype
    torch.testing.assert_close(result.weights[0, 0, :, 3], torch.ones(3, dtype=dtype))


def test_a_float32_bias_keeps_its_precision_beside_sixteen_bit(kernel: str) -> None:
    """bfloat16 would round 256.5 to 256 or 257; only the kernels of other devices take no second dtype."""
    zeros = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    bias = torch.tensor([256.0, 256.5]).reshape(1, 1, 1, 2)
    k, v = torch.zeros(1, 1, 2, 8, dtype=torch.bfloat16), draw(1, 1, 2, 8, dtype=torch.bfloat16)
    output = softmax_attention(zeros, k, v, bias=bias).output
    expected = softmax_attention(zeros.double(), k.double(), v.double(), bias=bias.double()).output
    torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.01)


def test_autocast_casts_as_for_a_product(kernel: str) -> None:
    q, k, v = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = softmax_attention(q.bfloat16(), k, v, return_weights=True)
        double = softmax_attention(q.double(), k.double(), v.double())
    plain = softmax_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), return_weights=True)
    assert mixed.output.dtype == torch.bfloat16
    assert double.output.dtype == torch.float64
    assert torch.equal(mixed.output, plain.output)
    assert mixed.weights is not None
    assert plain.weights is not None
    assert torch.equal(mixed.weights, plain.weights)


def test_gradients_of_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    (first,) = torch.autograd.grad(softmax_attention(q, k, v).output.square().sum(), q, create_graph=True)
    with pytest.raises(
        KernelError, match=r'no gradients of gradients: SDPA has none.*use_kernel\(softmax_attention="ref'
    ):
        first.sum().backward()
    bias = draw(2, 4, 5, 7).requires_grad_()  # the CPU has no fused kernel for this, and so it has second derivatives
    (first,) = torch.autograd.grad(softmax_attention(q, k, v, bias=bias).output.square().sum(), bias, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), bias)[0].any()


def test_a_learned_bias_stays_fused_without_gradients() -> None:
    q, k, v = qkv(dtype=torch.float32)
    bias = torch.nn.Parameter(draw(1, 4, 5, 7, dtype=torch.float32))
    with torch.no_grad(), torch.autograd.profiler.profile() as seen:
        softmax_attention(q, k, v, bias=bias)
    assert any("flash_attention_for_cpu" in event.key for event in seen.key_averages())


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch has no batching rule for SDPA
def test_torch_func(kernel: str) -> None:
    """Gradients per sample, with a mask: values cannot be looked at there."""
    q, k, v = qkv()
    mask = draw(2, 1, 5, 7) > 0

    def loss(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return softmax_attention(q[None], k[None], v[None], mask=mask[None]).output.square().sum()

    got = torch.func.vmap(torch.func.grad(loss))(q, k, v, mask)
    q.requires_grad_()
    (expected,) = torch.autograd.grad(softmax_attention(q, k, v, mask=mask).output.square().sum(), q)
    torch.testing.assert_close(got, expected)


def test_shared_memory_in_and_out(kernel: str) -> None:
    """Inputs may overlap in memory, and stay as they are."""
    x = draw(2, 4, 9, 6, dtype=torch.float32)
    copy = x.clone()
    softmax_attention(x[:, :, :5], x[:, :, 2:], x[:, :, 2:], causal=True)
    assert torch.equal(x, copy)


good = {"q": torch.zeros(2, 6, 128, 64), "k": torch.zeros(2, 3, 128, 64), "v": torch.zeros(2, 3, 128, 64)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"k": torch.zeros(2, 4, 128, 64)},
            ShapeError,
            r"k has 4 heads and q has 6: heads of q must be a multiple of heads of k. q \(2, 6, 128, 64\), k \(2, 4",
        ),
        ({"k": torch.zeros(2, 0, 128, 64)}, ShapeError, r"k has 0 heads and q has 6"),
        (
            {"q": torch.zeros(6, 128, 64)},
            ShapeError,
            r"q has 3 dimensions, expected 4: \(batch, heads, seq, head_dim\)",
        ),
        (
            {"k": torch.zeros(2, 3, 128, 32)},
            ShapeError,
            r"q and k must have the same head_dim, at least 1. q \(2, 6, 128",
        ),
        ({"v": torch.zeros(2, 3, 127, 64)}, ShapeError, r"k and v heads and seq too.*v \(2, 3, 127, 64\)"),
        ({"q": torch.zeros(1, 6, 128, 64)}, ShapeError, r"q, k and v must share batch"),
        (
            {"k": torch.zeros(2, 3, 128, 64, dtype=torch.float64)},
            DtypeError,
            r"k is float64 and q is float32: both must",
        ),
        (
            {"q": torch.zeros(2, 6, 128, 64, dtype=torch.int64)},
            DtypeError,
            r"q is int64, expected a float dtype. Convert",
        ),
        ({"k": torch.zeros(2, 3, 128, 64, device="meta")}, DtypeError, r"k is on meta and q on cpu: move one of them"),
        ({"mask": torch.zeros(128, 128)}, DtypeError, r"mask is float32, expected bool.*added to logits is the bias"),
        (
            {"mask": torch.ones(3, 128, dtype=torch.bool)},
            ShapeError,
            r"mask \(3, 128\) does not broadcast to \(batch, h",
        ),
        (
            {"mask": torch.ones(1, 1, 1, 1, 128, dtype=torch.bool)},
            ShapeError,
            r"mask \(1, 1, 1, 1, 128\) does not broad",
        ),
        (
            {"bias": torch.ones(128, dtype=torch.bool)},
            DtypeError,
            r"bias is bool, expected a float dtype. True/False b",
        ),
        ({"bias": torch.ones(5, 1)}, ShapeError, r"bias \(5, 1\) does not broadcast to .* = \(2, 6, 128, 128\)"),
        ({"return_weights": [6]}, ShapeError, r"return_weights asks for head 6, but q has heads 0 to 5"),
    ],
)
def test_messages(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        softmax_attention(**{**good, **changes})
