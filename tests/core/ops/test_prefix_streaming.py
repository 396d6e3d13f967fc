"""prefix_attention on a stream: what a long one ends with, rows that start anew, and what the verbs refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops import prefix_attention
from polyhead.ops.prefix_attention import PrefixState, init_state, prefill, step

TOKENS = 100_000


@pytest.mark.parametrize("logits", ["alike", "spread", "rising"])
def test_a_long_stream_equals_the_whole(logits: str) -> None:
    """100 000 tokens in float32, in steps and chunks of random sizes, against all at once in float64."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 2, TOKENS, dim, generator=generator) for dim in (4, 3))
    q = torch.randn(2, 4, generator=generator) * (10 if logits == "spread" else 1)
    if logits == "rising":
        k[:, :, :, 0] = torch.linspace(-100, 100, TOKENS)
        q[:, 0] = 1
    whole = prefix_attention(q.double(), k.double(), v.double())
    state = init_state(1, 2, 3)
    sizes = [x.shape for x in state]
    outputs, at = [], 0
    while at < TOKENS:
        count = min(int(torch.randint(1, 1500, (), generator=generator)) if at % 3 else 1, TOKENS - at)
        part = slice(at, at + count)
        if count == 1:
            output, state = step(state, q, k[:, :, at], v[:, :, at])
            outputs.append(output.unsqueeze(2))
        else:
            output, state = prefill(state, q, k[:, :, part], v[:, :, part])
            outputs.append(output)
        at += count
        assert [x.shape for x in state] == sizes
        assert {x.dtype for x in state} == {torch.float32}
    final = PrefixState(*(x.double() for x in state))
    same_scale = (final.m - whole.final_state.m).exp()  # m, u and w together: (m, u, w) is (m + c, u / e^c, w / e^c)
    pairs = [
        (torch.cat(outputs, 2), whole.output),
        (final.u * same_scale, whole.final_state.u),
        (final.w * same_scale.unsqueeze(-1), whole.final_state.w),
    ]
    for got, expected in pairs:
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_stream_of_single_steps_equals_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, generator=generator)
    k, v = (torch.randn(1, 2, 20_000, dim, generator=generator) for dim in (4, 3))
    state = init_state(1, 2, 3)
    for t in range(20_000):
        output, state = step(state, q, k[:, :, t], v[:, :, t])
    whole = prefix_attention(q.double(), k.double(), v.double())
    for got, expected in ((state.u, whole.final_state.u), (state.w, whole.final_state.w)):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (output - whole.output[:, :, -1]).abs().max() <= 1e-5


def test_step_leaves_the_state_it_is_given() -> None:
    state = init_state(2, 3, 4)
    output, after = step(state, torch.ones(3, 5), torch.ones(2, 3, 5), torch.ones(2, 3, 4))
    assert (state.m == -torch.inf).all()
    assert not state.u.any()
    assert not state.w.any()
    assert (output == 1).all()
    torch.testing.assert_close(after.m, torch.full((2, 3), 5**0.5))
    assert (after.u == 1).all()


def test_a_masked_step_keeps_its_row() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 4, generator=generator) for _ in range(3))
    first, state = step(init_state(2, 3, 4), q, k, v)
    k[1], v[1] = torch.nan, torch.inf
    second, after = step(state, q, k, v, key_mask=torch.tensor([True, False]))
    for a, b in zip(after, state, strict=True):
        assert torch.equal(a[1], b[1])
    assert torch.equal(second[1], first[1])
    nothing, empty = step(init_state(2, 3, 4), q, k, v, key_mask=torch.tensor([True, False]))
    assert not nothing[1].any()
    assert (empty.m[1] == -torch.inf).all()


def test_a_row_starts_anew_from_the_empty_state() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, generator=generator), *(torch.randn(2, 3, 9, 4, generator=generator) for _ in range(2))
    state = prefill(init_state(2, 3, 4), q, k, v).final_state
    reset = torch.tensor([False, True])
    pairs = zip(state, init_state(2, 3, 4), strict=True)
    state = PrefixState(*(torch.where(reset.view(-1, *(1,) * (x.ndim - 1)), empty, x) for x, empty in pairs))
    got = prefill(state, q, k, v).output
    whole = prefix_attention(q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)).output
    torch.testing.assert_close(got[0], whole[0, :, 9:])
    torch.testing.assert_close(got[1], whole[1, :, :9])


def test_gradients_go_through_steps() -> None:
    """Token by token gives the gradients of the whole; those of the state's scale are none."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (torch.randn(1, 2, 6, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    state, total = init_state(1, 2, 4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in range(6):
        output, state = step(state, q, k[:, :, t], v[:, :, t], scale=0.7)
        total = total + (t + 1) * output.square().sum()
    assert not state.m.requires_grad
    whole = prefix_attention(q, k, v, scale=0.7).output.square()
    expected = (whole * torch.arange(1, 7)[:, None]).sum()
    results = (torch.autograd.grad(loss, (q, k, v)) for loss in (total, expected))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_state_has_the_dtype_and_place_that_are_asked_for() -> None:
    state = init_state(2, 3, 5, dtype=torch.float64, device="meta")
    assert [tuple(x.shape) for x in state] == [(2, 3), (2, 3), (2, 3, 5)]
    assert {(x.dtype, x.device.type) for x in state} == {(torch.float64, "meta")}


def test_sixteen_bit_streams_keep_a_float32_state() -> None:
    """In bfloat16 the denominator would stop at 256."""
    one = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    state = init_state(1, 1, 1)
    for _ in range(300):
        output, state = step(state, one[0], one, one)
    assert output.dtype == torch.bfloat16
    assert state.u.item() == 300


good: dict[str, Any] = {
    "state": init_state(2, 3, 5),
    "q": torch.zeros(3, 4),
    "k": torch.zeros(2, 3, 4),
    "v": torch.zeros(2, 3, 5),
    "key_mask": torch.ones(2, dtype=torch.bool),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": torch.zeros(2, 3, 1, 4)}, ShapeError, r"k has 4 dimensions, expected 3: \(batch, heads, head_dim\)"),
        ({"state": init_state(2, 3, 4)}, ShapeError, r"w of the state \(2, 3, 4\) is not \(batch, heads, value_dim\)"),
        ({"state": init_state(1, 3, 5)}, ShapeError, r"m of the state \(1, 3\) is not \(batch, heads\) = \(2, 3\)"),
        ({"q": torch.zeros(3, 5)}, ShapeError, r"Expected q \(H, D\) or \(B, H, D\).*q \(3, 5\), k \(2, 3, 4\)"),
        ({"v": torch.zeros(2, 1, 5)}, ShapeError, r"Expected q \(H, D\).*v \(2, 1, 5\)"),
        ({"v": torch.zeros(2, 3, 5).double()}, DtypeError, r"v is float64 and k is float32"),
        ({"key_mask": torch.ones(2)}, DtypeError, r"key_mask is float32, expected bool, True = real token"),
        ({"key_mask": torch.ones(3).bool()}, ShapeError, r"key_mask \(3,\) is not \(batch,\) = \(2,\)"),
    ],
)
def test_wrong_arguments(changes: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        step(**(good | changes))
