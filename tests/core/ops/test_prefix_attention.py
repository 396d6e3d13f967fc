"""prefix_attention: the definition against independent statements, published values, and the contract as properties."""

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
from safetensors.torch import load_file
from torch import Tensor

from polyhead.errors import DtypeError, KernelError, ShapeError
from polyhead.ops import PrefixState, explain, prefix_attention, registry, use_kernel
from polyhead.ops.prefix_attention import init_state, torch_kernel
from polyhead.ops.prefix_attention.reference import joined
from polyhead.ops.prefix_attention.spec import cost, describe

KERNELS = ("reference", "torch")
quick = settings(deadline=None, max_examples=20)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(prefix_attention=request.param):
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(
    b: int = 2, h: int = 3, s: int = 7, d: int = 4, dv: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(h, d, seed=seed, dtype=dtype),
        draw(b, h, s, d, seed=seed + 1, dtype=dtype),
        draw(b, h, s, dv, seed=seed + 2, dtype=dtype),
    )


def random_qkv(size: tuple[int, int, int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, s, d, dv = size
    return qkv(b, h, s, d, dv, seed=seed)


def some_state(b: int = 2, h: int = 3, dv: int = 5, seed: int = 5) -> PrefixState:
    return PrefixState(draw(b, h, seed=seed), 1 + draw(b, h, seed=seed + 1).abs(), draw(b, h, dv, seed=seed + 2))


def random_mask(b: int, s: int, seed: int = 3) -> Tensor:
    return torch.rand(b, s, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_reference_equals_loops() -> None:
    """State each prefix's softmax with one number at a time, the initial state as one more token that weighs u."""
    q, k, v = qkv()
    mask, state = random_mask(2, 7), some_state()
    output = np.zeros((2, 3, 7, 5))
    sums = np.zeros((2, 3))
    for b, h, t in np.ndindex(2, 3, 7):
        total = math.exp(state.m[b, h]) * float(state.u[b, h])
        above = math.exp(state.m[b, h]) * state.w[b, h].numpy()
        for j in range(t + 1):
            if mask[b, j]:
                weight = math.exp(0.7 * float(q[h] @ k[b, h, j]))
                total += weight
                above = above + weight * v[b, h, j].numpy()
        output[b, h, t] = above / total
        sums[b, h] = total
    with use_kernel(prefix_attention="reference"):
        got = prefix_attention(q, k, v, key_mask=mask, initial_state=state, scale=0.7)
    np.testing.assert_allclose(got.output, output, atol=1e-13)
    final = got.final_state
    np.testing.assert_allclose(final.m.exp() * final.u, sums, atol=1e-12)
    np.testing.assert_allclose(final.w / final.u.unsqueeze(-1), output[:, :, -1], atol=1e-13)
    np.testing.assert_allclose(final.u, torch.exp(torch.tensor(sums).log() - final.m), atol=1e-12)


@pytest.mark.parametrize("by_row", [False, True])
def test_equals_sdpa_with_the_query_repeated(kernel: str, by_row: bool) -> None:
    """Outputs and gradients of causal attention, with padding, at the default scale."""
    _, k, v = qkv(s=70)
    q = draw(2, 3, 4) if by_row else draw(3, 4)
    mask = random_mask(2, 70)
    mask[:, 0] = True  # SDPA has no answer without a key
    inputs = [x.requires_grad_() for x in (q, k, v)]
    allowed = torch.ones(70, 70, dtype=torch.bool).tril() & mask[:, None, None, :]
    repeated = q.unsqueeze(-2).expand(2, 3, 70, 4)
    outputs = (
        prefix_attention(q, k, v, key_mask=mask).output,
        F.scaled_dot_product_attention(repeated, k, v, attn_mask=allowed),
    )
    results = [(x, *torch.autograd.grad(x.square().sum(), inputs)) for x in outputs]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def invariant(output: Tensor, state: PrefixState) -> tuple[Tensor, ...]:
    """What a result says whatever its scale m is, which is all that finite differences can see."""
    return output, state.m.detach() + state.u.log(), state.w / state.u.unsqueeze(-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients(name: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernel, "CHUNK", 3)
    monkeypatch.setattr(torch_kernel, "GROUP", {"cpu": 2})
    length = 4 if name == "reference" else 11
    mask = random_mask(2, length) if masked else None
    inputs = [x.requires_grad_() for x in (*qkv(2, 2, length, 2, 3), *some_state(2, 2, 3))]

    def function(q: Tensor, k: Tensor, v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        with use_kernel(prefix_attention=name):
            return invariant(*prefix_attention(q, k, v, key_mask=mask, initial_state=state, scale=0.5))

    torch.autograd.gradcheck(function, inputs)
    if name == "reference":
        torch.autograd.gradgradcheck(function, inputs)


def test_the_scale_of_a_state_has_no_gradient(kernel: str) -> None:
    """m is a constant of the final state; as an input its gradient is that of u and w multiplied by exp(m)."""
    q, k, v = (x.requires_grad_() for x in qkv())
    m, u, w = (x.requires_grad_() for x in some_state())
    got = prefix_attention(q, k, v, initial_state=(m, u, w))
    assert not got.final_state.m.requires_grad
    loss = got.output.square().sum() + got.final_state.w.sum()
    dm, du, dw = torch.autograd.grad(loss, (m, u, w))
    torch.testing.assert_close(dm, u * du + (w * dw).sum(-1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("situation", ["plain", "masked", "extreme", "monotone_up", "very_low", "ties"])
def test_recorded_values(kernel: str, situation: str, dtype: str, shared: Path) -> None:
    """SDPA's outputs and gradients; the key is the logit, and the query 1."""
    golden = load_file(shared / "golden" / "aaren" / "case.safetensors")
    kind = getattr(torch, dtype)

    def value(name: str) -> Tensor:
        return golden[f"inputs/{situation}/{name}"]

    def expected(name: str) -> Tensor:
        key = f"outputs/{situation}/{name}"
        return golden[f"{key}_f64"] if dtype == "float64" or key not in golden else golden[key]

    k, v = (x.to(kind).requires_grad_() for x in (value("scores").unsqueeze(-1), value("values")))
    q = torch.ones(k.shape[1], 1, dtype=kind)
    got = prefix_attention(q, k, v, key_mask=value("mask"), scale=1.0)
    dk, dv = torch.autograd.grad(got.output, (k, v), value("cotangent").to(kind))
    tight = dtype == "float64"
    assert (got.output - expected("out")).abs().max() <= (1e-10 if tight else 1e-5)
    for gradient, name in ((dk.squeeze(-1), "grad_scores"), (dv, "grad_values")):
        largest = expected(name).abs().max().clamp(min=1)
        assert (gradient - expected(name)).abs().max() <= (1e-10 if tight else 1e-4) * largest, name
    for x, name in zip(got.final_state, ("state_m", "state_u", "state_w"), strict=True):
        theirs = golden[f"outputs/{situation}/{name}_f64"]
        torch.testing.assert_close(x.double(), theirs, rtol=1e-10 if tight else 1e-4, atol=1e-10 if tight else 1e-5)


def test_masked_prefixes_are_zero_and_masked_keys_repeat(kernel: str) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(2, 3, 50))
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :40] = False
    mask[1, 10:20] = False
    got = prefix_attention(q, k, v, key_mask=mask)
    assert not got.output[0, :, :40].any()
    torch.testing.assert_close(got.output[1, :, 10:20], got.output[1, :, 9:10].expand(-1, 10, -1))
    first = torch.autograd.grad(got.output[0, :, :40].sum(), (q, k, v))
    assert not any(x.any() for x in first)


sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 150), st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), where=st.integers(0, 150))
@quick
def test_the_future_cannot_be_seen(name: str, size: Any, seed: int, where: int) -> None:
    q, k, v = random_qkv(size, seed)
    with use_kernel(prefix_attention=name):
        a = prefix_attention(q, k, v).output
        k[:, :, where:] += 1
        v[:, :, where:] -= 3
        b = prefix_attention(q, k, v).output
    torch.testing.assert_close(a[:, :, :where], b[:, :, :where], rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), cut=st.integers(0, 150))
@quick
def test_segments_with_carried_state_equal_the_whole(name: str, size: Any, seed: int, cut: int) -> None:
    """Gradients too: that of the second segment's initial state goes on as the first one's final state."""
    batch, heads, length, _, value_dim = size
    cut = min(cut, length)
    q, k, v = (x.requires_grad_() for x in random_qkv(size, seed))
    mask = random_mask(batch, length, seed)
    state = PrefixState(*(x.requires_grad_() for x in some_state(batch, heads, value_dim, seed + 5)))
    with use_kernel(prefix_attention=name):
        whole = prefix_attention(q, k, v, key_mask=mask, initial_state=state)
        one, two = slice(0, cut), slice(cut, length)
        first = prefix_attention(q, k[:, :, one], v[:, :, one], key_mask=mask[:, one], initial_state=state)
        last = prefix_attention(q, k[:, :, two], v[:, :, two], key_mask=mask[:, two], initial_state=first.final_state)
    both = (whole.output, whole.final_state), (torch.cat([first.output, last.output], 2), last.final_state)
    results = []
    for each in both:
        values = invariant(*each)
        loss = torch.stack([x.square().sum() for x in values]).sum()
        inputs = (q, k, v, state.u, state.w)
        results.append((*values, *torch.autograd.grad(loss, inputs, materialize_grads=True)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 1000), empty=st.lists(st.booleans(), min_size=3, max_size=3))
@quick
def test_joining_is_associative_and_has_a_neutral_element(seed: int, empty: list[bool]) -> None:
    nothing = init_state(2, 3, 5, dtype=torch.float64)
    a, b, c = (nothing if none else some_state(seed=seed + 9 * i) for i, none in enumerate(empty))
    for x, y in zip(joined(joined(a, b), c), joined(a, joined(b, c)), strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(joined(a, nothing), a, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@given(seed=st.integers(0, 1000), shift=st.floats(-300, 300))
@quick
def test_invariances(seed: int, shift: float) -> None:
    """A constant on all logits, another order of the past, values that are all alike."""
    _, k, v = qkv(1, 2, 60, 1, 3, seed=seed)
    q = torch.ones(2, 1, dtype=torch.float64)
    plain = prefix_attention(q, k, v).output
    torch.testing.assert_close(prefix_attention(q, k + shift, v).output, plain, rtol=1e-9, atol=1e-9)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(prefix_attention(q, k[:, :, order], v[:, :, order]).output[:, :, -1], plain[:, :, -1])
    same = prefix_attention(q, k, torch.full_like(v, 2.5)).output
    torch.testing.assert_close(same, torch.full_like(same, 2.5))
    assert torch.equal(plain[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize(("chunk", "group"), [(1, 1), (16, 2), (64, 16), (128, 300)])
def test_chunk_size_does_not_matter(chunk: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.requires_grad_() for x in (*qkv(2, 2, 201, 3, 4), *some_state(2, 2, 4))]

    def run() -> tuple[Tensor, ...]:
        got = prefix_attention(*inputs[:3], initial_state=inputs[3:])
        loss = got.output.square().sum() + got.final_state.u.sum() + got.final_state.w.sum()
        return (got.output, *got.final_state, *torch.autograd.grad(loss, inputs))

    expected = run()
    monkeypatch.setattr(torch_kernel, "CHUNK", chunk)
    monkeypatch.setattr(torch_kernel, "GROUP", {"cpu": group})
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_accumulates_in_float32(kernel: str, dtype: torch.dtype) -> None:
    """A count up to 2048 is exact only if no sum is kept in 16 bits."""
    one = torch.ones(1, 1, 2048, 1, dtype=dtype)
    got = prefix_attention(one[0, :, 0], one, one)
    assert got.output.dtype == dtype
    assert {x.dtype for x in got.final_state} == {torch.float32}
    torch.testing.assert_close(got.final_state.u.item(), 2048.0)
    torch.testing.assert_close(got.final_state.w.item(), 2048.0)


def test_autocast_casts_as_for_a_product(kernel: str) -> None:
    q, k, v = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = prefix_attention(q, k.bfloat16(), v)
    plain = prefix_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert mixed.output.dtype == torch.bfloat16
    assert torch.equal(mixed.output, plain.output)


def test_gradients_of_gradients_are_refused() -> None:
    inputs = [x.requires_grad_() for x in qkv()]
    (first, *_) = torch.autograd.grad(prefix_attention(*inputs).output.square().sum(), inputs, create_graph=True)
    with pytest.raises(KernelError, match=r'"torch" of prefix_attention has no gradients of gradients.*"reference"'):
        torch.autograd.grad(first.sum(), inputs)


def test_memory_for_gradients_is_linear() -> None:
    """What is kept beside inputs and output: logits, denominators and a mean for each chunk."""
    q, k, v = (x.requires_grad_() for x in qkv(1, 2, 640, 16, 16, dtype=torch.float32))
    sizes: list[int] = []

    def count(x: Tensor) -> Tensor:
        sizes.append(x.numel() * x.itemsize)
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        output = prefix_attention(q, k, v).output
    given = sum(x.numel() * x.itemsize for x in (k, v))
    assert output.requires_grad
    assert sum(sizes) - given < 2 * 640 * (4 + 8 + 4 * 16 / torch_kernel.CHUNK) + 1024


good: dict[str, Any] = {
    "q": torch.zeros(3, 4),
    "k": torch.zeros(2, 3, 9, 4),
    "v": torch.zeros(2, 3, 9, 5),
}
three = (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, 5))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": torch.zeros(3, 9, 4)}, ShapeError, r"k has 3 dimensions, expected 4: \(batch, heads, seq, head_d"),
        (
            {"v": torch.zeros(2, 3, 8, 5)},
            ShapeError,
            r"k and v must have the same batch, heads and seq.*\(2, 3, 8, 5\)",
        ),
        ({"v": torch.zeros(2, 3, 9, 0)}, ShapeError, r"each a head_dim of 1 or more"),
        ({"v": good["v"].double()}, DtypeError, r"v is float64 and k is float32: both must have the same dtype"),
        ({"q": good["q"].double()}, DtypeError, r"q is float64 and k is float32"),
        (
            {"q": torch.zeros(2, 3, 1, 4)},
            ShapeError,
            r"q \(2, 3, 1, 4\) is neither \(heads, head_dim\) = \(3, 4\) nor .* = \(2, 3, 4\): one query for each head",
        ),
        ({"key_mask": torch.ones(2, 9)}, DtypeError, r"key_mask is float32, expected bool, True = real token"),
        ({"key_mask": torch.ones(2, 8).bool()}, ShapeError, r"key_mask \(2, 8\) is not \(batch, seq\) = \(2, 9\)"),
        (
            {"key_mask": torch.ones(2, 9, device="meta").bool()},
            DtypeError,
            r"key_mask is on meta and v on cpu: move one of them",
        ),
        ({"initial_state": three[:2]}, ShapeError, r"The state has 2 parts, expected 3: \(m, u, w\)"),
        (
            {"initial_state": (*three[:2], torch.zeros(2, 3, 4))},
            ShapeError,
            r"w of the state \(2, 3, 4\) is not \(batch, heads, value_dim\) = \(2, 3, 5\)",
        ),
        ({"initial_state": (torch.zeros(3), *three[1:])}, ShapeError, r"m of the state \(3,\) is not \(batch, heads\)"),
        ({"initial_state": (three[0], three[1].int(), three[2])}, DtypeError, r"u of the state is int32, expected a f"),
        ({"initial_state": (three[0].to("meta"), *three[1:])}, DtypeError, r"m of the state is on meta and v on cpu"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prefix_attention(**(good | changes))


def test_description_and_cost() -> None:
    assert explain("prefix_attention", (1, 8, 4096, 64), by_row=True, masked=True, grad=True).chosen == "torch"
    with pytest.raises(ShapeError, match=r"The shape of k has 3 numbers, expected 4: batch,heads,seq,head_dim"):
        explain("prefix_attention", (8, 4096, 64))
    call = describe((1, 2, 128, 16), torch.float32, torch.device("cpu"), value_dim=32)
    forward, backward = cost(call), cost(call, backward=True)
    # By hand, for each of 256 tokens: a logit, 16 pairs of its chunk, and what enters and leaves the chunk.
    assert forward.flops == 256 * 2 * (16 + 18 * 32)
    assert forward.bytes == 4 * (256 * (16 + 2 * 32) + 2 * 16 + 2 * 2 * (2 + 32))
    assert backward.flops == 256 * 2 * (20 * 32 + 2 * 16)
    longer = cost(describe((1, 2, 256, 16), torch.float32, torch.device("cpu"), value_dim=32))
    assert longer.flops == 2 * forward.flops
    assert registry.operator("prefix_attention").reference == registry.kernel("prefix_attention", "reference").function
